"""The oracle: a transformer in plain float64 numpy, written from the papers and the formats, to judge the others by.

It shares no arithmetic with the engine and is never edited to agree with anyone. What an engine may choose is its
`numerics` (roundings); what an engine may get wrong is its `Semantics`. `operations.py` is the arithmetic; here is the
forward pass, whose taps are stored in float32 as every engine stores them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet import gguf as container
from reference import rounding
from reference.contract import hyper_parameters, weight_names
from reference.decode import decode
from reference.graph import left_out
from reference.lock import checked_lock, locked_rows
from reference.matrices import Matrices
from reference.operations import Float32, Float64, Operations
from reference.runner import (
    Observation,
    ReferenceUnavailableError,
    Request,
    Rows,
    RunnerInfo,
    TapKey,
    tap_order,
)
from reference.semantics import CONTRACT, Semantics

Tap = Callable[[str, int, NDArray[Any]], Float64]

_SOURCES = (
    "activations.py",
    "contract.py",
    "decode.py",
    "graph.py",
    "lock.py",
    "matrices.py",
    "operations.py",
    "oracle.py",
    "rounding.py",
    "semantics.py",
)
#: Models up to this many weights are held as float64 (512 MiB); larger ones are widened product by product.
_WIDE_LIMIT = 1 << 26


class Oracle(Operations):
    """A `Runner` in this process.

    Args:
        model: GGUF file.
        semantics: What the file means; the contract by default.
        numerics: Roundings by name, as `rounding.NUMERICS` lists them; the defaults are BitNet's own.
        n_layer_kept: Layers whose weights are held at a time; None holds all, decoded at once.

    Raises:
        ReferenceUnavailableError: An architecture, tensor type or tensor that the contract does not know.
        bitnet.errors.ModelFileError: The file is not a readable GGUF (from the container reader).
        ValueError: Unknown numerics.
    """

    def __init__(
        self,
        model: str,
        *,
        semantics: Semantics | None = None,
        numerics: Mapping[str, str] | None = None,
        n_layer_kept: int | None = None,
    ) -> None:
        self.semantics = semantics or CONTRACT
        self.numerics = rounding.resolve(numerics)
        self._gguf = container.read(model)
        self._wide = sum(int(np.prod(t.shape)) for t in self._gguf.tensors.values()) <= _WIDE_LIMIT
        self._kept = n_layer_kept
        self._read(None)
        if n_layer_kept is None:
            self._weights.load()
        self.info = RunnerInfo(
            name="oracle",
            family="oracle",
            version="1",
            library_sha256=_own_sha256(),
            obtained="live",
            numerics=dict(self.numerics),
            model_sha256=self._gguf.sha256(),
            detail=self._detail(),
        )

    def _detail(self) -> dict[str, str]:
        return {"numpy": np.__version__, **{k: str(v) for k, v in self.semantics.changes().items()}}

    def _read(self, shared: Matrices | None) -> None:
        """Hyper-parameters and weights of the file, as the semantics understands them."""
        tensors = self._gguf.tensors
        self.hyper = hyper_parameters(self._gguf.metadata, tensors, self.semantics)
        self.absent = left_out(self.semantics, sub_norms=self.hyper.sub_norms)
        names = weight_names(self.hyper, {name: t.shape for name, t in tensors.items()})
        self._weights = Matrices(
            self._gguf, names, self.semantics, wide=self._wide, n_layer_kept=self._kept, shared=shared
        )

    def under(self, semantics: Semantics | None = None, numerics: Mapping[str, str] | None = None) -> Oracle:
        """The same file understood otherwise; what both decode alike is decoded once.

        Raises:
            ReferenceUnavailableError: The file cannot be understood so.
        """
        other = Oracle.__new__(Oracle)
        vars(other).update(vars(self))
        other.semantics = semantics or self.semantics
        other.numerics = rounding.resolve({**self.numerics, **(numerics or {})})
        other._read(self._weights)
        other.info = replace(self.info, numerics=dict(other.numerics), detail=other._detail())
        return other

    def _forward(self, ids: NDArray[np.int64], start: int, cache: list[tuple[Float64, Float64]], tap: Tap) -> Float32:
        """Tokens `ids` at positions start, start + 1, …; `cache` holds K and V of the earlier ones and grows."""
        values: dict[TapKey, Float64] = {}
        for key in tap_order(self.hyper.n_layer):
            name, il = key
            if name in self.absent:
                continue
            inputs = [values[source] for source in self.inputs(key)]
            if name == "kqv_out":
                q, *new = inputs
                past = cache[il]
                cache[il] = tuple(np.concatenate([p, self.cached(n)]) for p, n in zip(past, new, strict=True))  # type: ignore[assignment]  # two of each
                inputs = [q, *cache[il]]
            values[key] = tap(name, il, self.operation(key, inputs, ids, start))
            if name == "l_out":
                values = {key: values[key]}
        return values["result_output", -1].astype(np.float32)

    # ---- the protocol -----------------------------------------------------------------------------------------

    def run(self, request: Request) -> Observation:
        """Compute. Raises `ValueError` for no ids, an id outside the vocabulary, or a lock of wrong name or shape."""
        lock = checked_lock(request, self.hyper.n_layer, self.n_vocab)
        n_token = len(request.ids)
        n_first = n_token if request.n_batch is None else request.n_batch
        ids, rows, seconds = list(request.ids), [], {"prefill": 0.0, "decode": 0.0}
        empty = np.empty((0, self.hyper.n_head_kv * self.hyper.head_dim))
        cache = [(empty, empty)] * self.hyper.n_layer
        recorded: dict[TapKey, list[Float32]] = {}
        start = 0
        while start < n_token + max(request.n_greedy - 1, 0):
            stop = n_first if start == 0 else start + 1

            def tap(name: str, il: int, value: NDArray[Any], start: int = start, stop: int = stop) -> Float64:
                stored = value.astype(np.float32)
                if request.taps and start < n_token:
                    recorded.setdefault((name, il), []).append(stored)
                if (name, il) in lock and start < n_token:
                    stored = locked_rows(lock[name, il], (name, il), stored.shape[-1], start, stop)
                return stored.astype(np.float64)

            began = time.perf_counter()
            with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are findings, not accidents
                rows.append(self._forward(np.array(ids[start:stop]), start, cache, tap))
            seconds["prefill" if start == 0 else "decode"] += time.perf_counter() - began
            start = stop
            if len(ids) == start < n_token + request.n_greedy:
                ids.append(int(rows[-1][-1].argmax()))
        return Observation(
            ids=tuple(ids),
            logits=np.concatenate(rows)[n_token - 1 if request.last_only else 0 :],
            generated=tuple(ids[n_token:]),
            taps={key: np.concatenate(parts) for key, parts in recorded.items()},
            seconds=seconds,
        )

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return self.hyper.n_layer

    @property
    def n_vocab(self) -> int:
        """Width of a row of logits."""
        return int(self._weights[self.hyper.head].values.shape[0])

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """The oracle reads ids only: always a `ReferenceUnavailableError`."""
        del text, add_special, parse_special
        raise ReferenceUnavailableError("the oracle has no tokenizer", remedy="give it token ids")

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor decoded, [rows, columns], with its own scale and without its `.scale` tensor; or some rows."""
        if name not in self._gguf.tensors:
            raise ReferenceUnavailableError(f"the file has no tensor {name!r}")
        return decode(self._gguf, name, self.semantics).dense(self.semantics, rows)

    def close(self) -> None:
        """Drop the weights."""
        self._weights = Matrices(self._gguf, (), self.semantics, wide=self._wide)


def _own_sha256() -> str:
    """Over the oracle's own source files, in order of name."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()
