"""The engine under test, behind the same protocol as every reference."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

import bitnet
from bitnet.codecs import codec_of
from bitnet.config import Numerics
from bitnet.errors import TokenizerError
from bitnet.kernels import instruction_set
from bitnet.linear import TernaryMatrix
from bitnet.model import keep
from bitnet.sampler import greedy
from bitnet.weights import Layer
from crossval.metrics import ShapeMismatchError
from reference.runner import Float32, Observation, ReferenceUnavailableError, Request, Rows, RunnerInfo, TapKey, span

#: Taps that are projections → the field of `bitnet.weights.Layer` that holds their matrix, and the tap they read.
PROJECTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "q": ("q", ("attn_norm",)),
    "k": ("k", ("attn_norm",)),
    "v": ("v", ("attn_norm",)),
    "attn_out": ("o", ("attn_sub_norm", "kqv_out")),
    "ffn_gate": ("gate", ("ffn_norm",)),
    "ffn_up": ("up", ("ffn_norm",)),
    "ffn_down": ("down", ("ffn_sub_norm", "ffn_act")),
}


class EngineRunner:
    """`bitnet` on one model file with one set of numerics.

    Args:
        model: The file.
        numerics: What it computes in; the model's default otherwise.
        n_threads: Threads; results do not depend on them.
    """

    def __init__(self, model: Path, *, numerics: Numerics | None = None, n_threads: int | None = None) -> None:
        self.model = bitnet.load(model, numerics=numerics, n_threads=n_threads, packed_cache=False)
        network = self.model.network
        self.info = RunnerInfo(
            name="bitnet",
            family="bitnet",
            version=bitnet.__version__,
            library_sha256=source_digest(),
            obtained="live",
            numerics=network.numerics.to_dict(),
            model_sha256=self.model.gguf.sha256(),
            detail={
                "threads": str(network.backend.n_threads),
                "isa": instruction_set(network.backend.device),
                "device": network.backend.device,
            },
        )

    def run(self, request: Request) -> Observation:
        """Compute, replacing taps by `request.lock` after they are recorded.

        Raises:
            ShapeMismatchError: A lock has another shape than what it replaces; a kernel would read past its end.
            ModelFileError: The file was written to since it was opened.
        """
        self.model.network.check_unchanged()
        for (name, layer), value in (request.lock or {}).items():
            shape = len(request.ids), self._width(name)
            if value.shape != shape:
                where = name if layer < 0 else f"{name} of layer {layer}"
                raise ShapeMismatchError(f"{where}: ours has shape {list(shape)}, theirs {list(value.shape)}")
        network, n = self.model.network, len(request.ids)
        cache = network.new_cache(n + request.n_greedy)
        recorded: dict[TapKey, list[Float32]] = {}
        lock = request.lock or {}
        done = 0

        def tap(name: str, layer: int, value: Float32) -> Float32:
            if request.taps:
                recorded.setdefault((name, layer), []).append(np.array(value, np.float32))
            locked = lock.get((name, layer))
            return value if locked is None else np.ascontiguousarray(locked[done : done + len(value)], np.float32)

        first = n if request.n_batch is None else min(request.n_batch, n)
        borders = [0, first, *range(first + 1, n + 1)]
        rows: list[Float32] = []
        began = time.perf_counter()
        prefilled = began
        for done, end in pairwise(borders):  # `tap` reads `done`
            watched = tap if request.taps or lock else keep  # unwatched, the layers run as one compiled call
            rows.append(network.forward(request.ids[done:end], cache, tap=watched, last_only=request.last_only))
            if len(rows) == 1:
                prefilled = time.perf_counter()
        generated: list[int] = []
        while len(generated) < request.n_greedy:
            generated.append(greedy(rows[-1][-1]))
            if len(generated) < request.n_greedy:
                rows.append(network.forward(generated[-1:], cache))
        return Observation(
            ids=(*request.ids, *generated),
            logits=np.concatenate(rows)[-(1 + max(len(generated) - 1, 0)) if request.last_only else 0 :],
            generated=tuple(generated),
            taps={key: np.concatenate(parts) for key, parts in recorded.items()},
            seconds={"prefill": prefilled - began, "decode": time.perf_counter() - prefilled},
        )

    def _width(self, tap: str) -> int:
        """Columns of a tap."""
        c = self.model.config
        if tap in ("q", "q_rope", "kqv_out", "attn_sub_norm"):
            return c.n_head * c.head_dim
        if tap in ("k", "v", "k_rope"):
            return c.n_head_kv * c.head_dim
        if tap in ("ffn_gate", "ffn_up", "ffn_act", "ffn_sub_norm"):
            return c.n_ff
        return c.n_vocab if tap == "result_output" else c.n_embd

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text. Raises `ReferenceUnavailableError` without a usable tokenizer."""
        try:
            return self.model.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
        except TokenizerError as error:
            raise ReferenceUnavailableError(error.what, remedy=error.remedy) from error

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor, or some of its rows, as the engine's codecs decode it, [rows, columns], without its `.scale`."""
        gguf = self.model.gguf
        info, raw = gguf.tensors[name], gguf.raw(name)
        n_row, n_col = info.shape if len(info.shape) > 1 else (1, *info.shape)
        codec = codec_of(info.type, self.model.weights.formats.codecs)
        some = span(rows)
        if rows is None or codec.ternary:  # whose rows may be interleaved, and share a scale
            return codec.decode(raw, (n_row, n_col))[some]
        return codec.decode(raw.reshape(n_row, -1)[some].reshape(-1), (len(range(n_row)[some]), n_col))

    def integer_sums(self, tap: str, layer: int, x: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]] | None:
        """Exact ternary × int8 sums of one projection, or None where its weights are not ternary."""
        weights: Layer = self.model.weights.layers[layer]
        matrix = getattr(weights, PROJECTIONS[tap][0])
        if not isinstance(matrix, TernaryMatrix):
            return None
        return self.model.network.backend.integer_sums(matrix, x)

    def embedding(self, ids: tuple[int, ...]) -> Float32:
        """Rows of the token embedding, [len(ids), n_embd] f32."""
        return self.model.network.embed(ids)

    def release(self) -> None:
        """Give the pages of the file back to the system; what is needed of them is read again."""
        self.model.gguf.release()

    def close(self) -> None:
        """Nothing is held outside this process."""


def source_digest() -> str:
    """sha256 over the engine's own source: what computed, when there is no library file."""
    digest = hashlib.sha256()
    root = Path(bitnet.__file__).parent
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
