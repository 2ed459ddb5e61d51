"""The oracle: a transformer in plain float64 numpy, written from the papers and the formats, to judge the others by.

It shares no arithmetic with the engine and is never edited to agree with anyone. What an engine may choose is its
`numerics` (roundings); what an engine may get wrong is its `Semantics`. Every sum (of squares, of a dot product, of a
softmax) is float64, so no order of summation is preferred. What every engine stores in float32 is stored in float32:
each tap, the factor of a norm and its two multiplications, the activation before it meets `up`, the rotary table, and
a product with int8 activations, (Σ / s) · scale, whose Σ is an exact integer. Without these declared roundings a norm
differs from every engine by one unit in the last place in half of its values, and int8 quantisation turns about one
in 10⁵ of those into a difference of 10⁻².
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet import gguf as container
from reference import rounding
from reference.activations import ACTIVATIONS
from reference.contract import PROJECTIONS, hyper_parameters, weight_names
from reference.decode import Matrix, decode
from reference.graph import left_out, sources
from reference.lock import checked_lock, locked_rows
from reference.matrices import Matrices
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

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Tap = Callable[[str, int, NDArray[Any]], Float64]

_SOURCES = (
    "activations.py",
    "contract.py",
    "decode.py",
    "graph.py",
    "lock.py",
    "matrices.py",
    "oracle.py",
    "rounding.py",
    "semantics.py",
)
#: Models up to this many weights are held as float64 (512 MiB); larger ones are widened product by product.
_WIDE_LIMIT = 1 << 26


class Oracle:
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
            detail={"numpy": np.__version__, **{k: str(v) for k, v in self.semantics.changes().items()}},
        )

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
        return other

    # ---- the operations ---------------------------------------------------------------------------------------

    def _norm(self, x: Float64, name: str) -> Float64:
        """Squares in float32, their sum in float64, then 1/√(mean + eps), · x, · weight, each in float32."""
        s, one = self.semantics, np.float32(1)
        weight = self._weights[f"{name}.weight"].values.reshape(-1).astype(np.float32)
        weight = {"multiply": weight, "ignore": np.ones_like(weight), "plus_one": one + weight}[s.norm_weight]
        if s.norm == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        x32 = x.astype(np.float32)
        mean = self._mean_square(x32)
        if s.norm == "l2":
            mean = mean * np.float32(x.shape[-1])
        eps = self.hyper.rms_eps
        factor = one / (np.sqrt(mean) + eps if s.norm_eps == "outside" else np.sqrt(mean + eps))
        return _round(x32 * factor * weight, s.norm_type)

    def _mean_square(self, x: Float32) -> Float32:
        """Over the last axis, kept."""
        mean: Float32 = (x * x).mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        return mean

    def _project(self, x: Float64, il: int, tap: str) -> Float32:
        """One of the seven quantised projections. x: [T, K] → [T, rows] f32."""
        w, s, kind = self._weights[f"blk.{il}.{PROJECTIONS[tap]}.weight"], self.semantics, self.numerics["activation"]
        x32 = x.astype(np.float32)
        if not s.activation_quantised or kind == "none":
            y = self._product(w, x).astype(np.float32)
        elif kind in rounding.INT8_TOKEN:
            q, divisor = rounding.int8_token(x32, s, kind)
            y = self._divided(rounding.wrapped(self._product(w, q), s.accumulator), divisor)
        elif kind in rounding.BLOCK:
            q, d = rounding.int8_blocks(self._blocked(x32, kind), kind, s)
            y = self._product(w, (q * d).reshape(x.shape)).astype(np.float32)  # an int8 times a float32 is exact here
        else:
            y = self._product(w, rounding.float_type(x32, kind).astype(np.float64)).astype(np.float32)
        y = w.scaled(y, s)
        if s.projections == "empty":
            return np.zeros_like(y)
        if s.batch_rows is not None and len(y) > 1:
            y[s.batch_rows :] = 0.0
        return y

    @staticmethod
    def _blocked(x: Float32, kind: str) -> Float32:
        if x.shape[-1] % rounding.BLOCK[kind]:
            raise ReferenceUnavailableError(
                f"{kind} needs rows of a multiple of {rounding.BLOCK[kind]}, not {x.shape[-1]}"
            )
        return x

    def _rotate(self, x: Float64, positions: NDArray[np.int64]) -> Float64:
        """x: [T, heads · head_dim] → the same, rotated."""
        d, s = self.hyper.head_dim, self.semantics
        heads = x.reshape(len(x), -1, d)
        turned = 2 * round(s.rope_share * d / 2)
        angles = rounding.rope_angles(positions, turned, self.hyper.rope_theta, self.numerics["rope"])
        angles = angles * (s.rope_position_factor * s.rope_direction)
        cos, sin = _round(np.cos(angles), "f32")[:, None, :], _round(np.sin(angles), "f32")[:, None, :]
        if self.hyper.rope_style == "half_split":
            first, second = slice(0, turned // 2), slice(turned // 2, turned)
        else:
            first, second = slice(0, turned, 2), slice(1, turned, 2)
        out = heads.copy()
        out[..., first] = heads[..., first] * cos - heads[..., second] * sin
        out[..., second] = heads[..., first] * sin + heads[..., second] * cos
        return out.reshape(x.shape)

    def attention_scores(self, q: Float64, k: Float64, start: int) -> Float64:
        """Query · key / √d, −∞ where masked. q: [T, n_q], k: [S, n_kv] → [n_head, T, S]; q[0] is at `start`."""
        queries = q.reshape(len(q), self.hyper.n_head, -1).transpose(1, 0, 2)  # [n_head, T, d]
        keys = self.per_query_head(k).transpose(0, 2, 1)  # [n_head, d, S]
        scores = queries @ keys
        scores *= self.semantics.attention_scale_factor / np.sqrt(self.hyper.head_dim)  # in the width that q and k have
        behind = start + np.arange(len(q))[:, None] - np.arange(len(k))  # [T, S] tokens from key to query
        if self.semantics.causal:
            scores[:, behind < -self.semantics.mask_offset] = -np.inf
        if self.semantics.window is not None:
            scores[:, behind >= self.semantics.window] = -np.inf
        masked: Float64 = scores
        return masked

    def attention_probabilities(self, q: Float64, k: Float64, start: int) -> Float64:
        """Softmax of the scores, shapes as there."""
        scores = self.attention_scores(q, k, start)
        p: Float64 = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return p

    def _attend(self, q: Float64, k: Float64, v: Float64, start: int) -> Float64:
        """q: [T, n_q], k and v: [S, n_kv] as cached → [T, n_q]."""
        p = self.attention_probabilities(_round(q, self.numerics["query"]), k, start)
        p = _round(p, self._when_single(self.numerics["probs"], len(q)))
        out: Float64 = p @ self.per_query_head(v)  # [n_head, T, d]
        return out.transpose(1, 0, 2).reshape(len(q), -1)

    def per_query_head(self, cached: Float64) -> Float64:
        """The key or value head that each query head uses. [S, n_kv] → [n_head, S, d]."""
        h, n_kv = np.arange(self.hyper.n_head), self.hyper.n_head_kv
        use = {"block": h // (self.hyper.n_head // n_kv), "stride": h % n_kv, "first": 0 * h}[
            self.semantics.head_grouping
        ]
        return cached.reshape(len(cached), n_kv, -1).transpose(1, 0, 2)[use]

    def _activate(self, gate: Float64) -> Float64:
        return _round(ACTIVATIONS[self.hyper.activation](gate), "f32")

    def _gated(self, gate: Float64, up: Float64) -> Float64:
        if self.semantics.gating == "swapped":
            gate, up = up, gate
        act = self._activate(gate)
        return _round(act if self.semantics.gating == "none" else act * up, self.semantics.ffn_type)

    def _embed(self, ids: NDArray[np.int64]) -> Float64:
        table = self._weights["token_embd.weight"].values
        read = (ids + self.semantics.token_offset) % len(table)
        return table[read].astype(np.float64) * self.semantics.embedding_scale

    def _head(self, x: Float64) -> Float64:
        """x: [T, n_embd] → [T, n_vocab]."""
        x = _round(x, self._when_single(self.numerics["head"], len(x)))
        logits, cap = (
            self._product(self._weights[self.hyper.head], x) * self.semantics.logit_scale,
            self.semantics.logit_softcap,
        )
        return logits if cap is None else cap * np.tanh(logits / cap)

    # How a sum is ordered and a quotient is written is each engine's own; the oracle does neither in float32.

    def _product(self, w: Matrix, x: Float64) -> Float64:
        return w.product(x)

    def _divided(self, sums: Float64, divisor: Float32) -> Float32:
        return sums.astype(np.float32) / divisor

    @staticmethod
    def _when_single(kind: str, n_token: int) -> str:
        return kind if not kind.endswith("_decode") else "f16" if n_token == 1 else "f32"

    # ---- the forward pass -------------------------------------------------------------------------------------

    def inputs(self, key: TapKey) -> tuple[TapKey, ...]:
        """The taps that an operation reads."""
        return sources(key, self.hyper.n_layer, self.semantics, self.absent)

    def operation(
        self, key: TapKey, inputs: Sequence[Float64], ids: NDArray[np.int64], start: int
    ) -> Float64 | Float32:
        """One operation on tokens `ids`, which are at positions start, start + 1, ….

        Args:
            key: Which.
            inputs: Values of the taps that `inputs` names, [T, width]; for `kqv_out` the keys and values of all
                positions so far, rounded as they are cached.
            ids: The tokens evaluated together.
            start: Position of the first.
        """
        tap, il = key
        if tap == "embd":
            return self._embed(ids)
        if tap == "result_norm":
            return self._norm(inputs[0], "output_norm")
        if tap.endswith("norm"):
            return self._norm(inputs[0], f"blk.{il}.{tap}")
        if tap in PROJECTIONS:
            return self._project(inputs[0], il, tap)
        if tap in ("q_rope", "k_rope"):
            target = self.semantics.rope_target
            positions = np.arange(start, start + len(ids)) + self.semantics.position_offset
            turned = target == "qk" or (target == "q" and tap == "q_rope")
            return self._rotate(inputs[0], positions) if turned else inputs[0]
        if tap == "kqv_out":
            q, k, v = inputs
            return self._attend(q, k, v, start)
        if tap == "ffn_act":
            return self._gated(inputs[0], inputs[1])
        if tap == "result_output":
            return self._head(inputs[0])
        x, branch = inputs  # ffn_inp, l_out
        return _round(branch if self.semantics.residual == "none" else x + branch, self.semantics.residual_type)

    def cached(self, value: Float64) -> Float64:
        """Keys or values as the cache holds them."""
        return _round(value, self.numerics["kv"])

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

    def matrix(self, name: str) -> Matrix:
        """A tensor of the model as this oracle understands it, its scales beside it."""
        return self._weights[name]

    def integer_sums(self, tap: str, layer: int, x: Float32) -> NDArray[np.int64]:
        """The exact ternary × int8 sums of one projection, before any scale.

        Args:
            tap: `q`, `k`, `v`, `attn_out`, `ffn_gate`, `ffn_up` or `ffn_down`.
            layer: Its layer.
            x: [T, K] f32, the projection's input.

        Returns:
            [T, rows] for the int8 quantisers; [T, rows, K / block] for the block quantisers, one sum a block.

        Raises:
            ReferenceUnavailableError: The weights are not ternary or the numerics quantise to no integers.
        """
        w, kind = self._weights[f"blk.{layer}.{PROJECTIONS[tap]}.weight"], self.numerics["activation"]
        if not w.ternary or kind not in (*rounding.INT8_TOKEN, *rounding.BLOCK):
            raise ReferenceUnavailableError(f"{tap} of layer {layer} has no integer sums (activation {kind})")
        if kind in rounding.INT8_TOKEN:
            q, _ = rounding.int8_token(x, self.semantics, kind)
            bare = replace(w, block_scale=None)  # integers below 2⁵³ are exact in float64, in any order
            return bare.product(q).astype(np.int64)
        trits = w.values.astype(np.int64)
        q, _ = rounding.int8_blocks(self._blocked(x, kind), kind, self.semantics)
        blocked = trits.reshape(len(trits), -1, rounding.BLOCK[kind])
        sums: NDArray[np.int64] = np.einsum("tbk,rbk->trb", q.astype(np.int64), blocked)
        return sums

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


def _round(x: Float64, kind: str) -> Float64:
    return rounding.float_type(x, kind).astype(np.float64)


def _own_sha256() -> str:
    """Over the oracle's own source files, in order of name."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()
