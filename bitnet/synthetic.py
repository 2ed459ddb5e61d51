"""Models of any shape with made-up weights: for measuring speed and memory, and for trying odd shapes.

Speed depends on shapes and types, not on what the weights say. Trits are drawn as in trained models (two thirds are
not zero), each matrix with the scale that keeps its output as large as its input, so that activations stay finite
through any number of layers. The vocabulary is the 256 bytes and names without meaning.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import CODECS, Ternary
from bitnet.errors import UsageError
from bitnet.gguf import GGMLType, TensorData, write
from bitnet.gguf_types import ValueType

_END = 3  # special tokens after all others: begin, end, end of turn
_BLOCK = 1 << 22  # random numbers drawn once; every tensor is a piece of them, begun elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The hyper-parameters of a model to be made.

    Attributes:
        arch: Architecture name; decides activation and sub-norms.
        tied: Whether the output head is the token embedding.
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx: int = 4096
    rope_theta: float = 500_000.0
    arch: str = "bitnet-b1.58"
    tied: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    def __post_init__(self) -> None:
        rules = (
            ("n_layer", 1 <= self.n_layer <= 1024, "1 to 1024"),
            ("n_embd", 128 <= self.n_embd <= 65536 and self.n_embd % 128 == 0, "a multiple of 128"),
            ("n_ff", 128 <= self.n_ff <= 262_144 and self.n_ff % 128 == 0, "a multiple of 128"),
            ("n_head", self.n_head >= 1 and self.n_embd % (32 * self.n_head) == 0, "heads of a multiple of 32"),
            ("n_head_kv", self.n_head_kv >= 1 and self.n_head % self.n_head_kv == 0, "a divisor of n_head"),
            ("n_vocab", 257 + _END <= self.n_vocab <= 1 << 22, f"at least {257 + _END}"),
            ("n_ctx", 1 <= self.n_ctx <= 1 << 24, "1 or more"),
        )
        for name, ok, remedy in rules:
            if not ok:
                raise UsageError(f"{name} is {getattr(self, name)}", where="Shape", remedy=remedy)


#: Shapes of published models, by the name they are asked for.
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "tiny": Shape(n_layer=4, n_embd=256, n_ff=768, n_head=4, n_head_kv=2, n_vocab=2048, n_ctx=2048),
        "0.7b": Shape(
            n_layer=24, n_embd=1536, n_ff=4096, n_head=16, n_head_kv=16, n_vocab=32_002, arch="bitnet", rope_theta=1e4
        ),
        "2b-4t": Shape(n_layer=30, n_embd=2560, n_ff=6912, n_head=20, n_head_kv=5, n_vocab=128_256),
        "falcon3-7b": Shape(
            n_layer=28, n_embd=3072, n_ff=23_040, n_head=12, n_head_kv=4, n_vocab=131_072, arch="llama", tied=False
        ),
        "llama3-8b": Shape(
            n_layer=32, n_embd=4096, n_ff=14_336, n_head=32, n_head_kv=8, n_vocab=128_256, arch="llama", tied=False
        ),
    }
)


def make(
    target: str | os.PathLike[str], shape: Shape, *, seed: int = 0, done: Callable[[int, int], None] | None = None
) -> Path:
    """Write a model as GGUF: I2_S projections, F16 embedding and head, F32 norms.

    Args:
        target: The file; it appears whole or not at all.
        shape: Its hyper-parameters.
        seed: The same seed makes the same file.
        done: Told the bytes written so far, and of all, before each tensor.

    Raises:
        UsageError: The file cannot be written.
    """
    rng = np.random.default_rng(seed)
    material = _Material(rng)
    tensors = [material.tensor(i, name, dims) for i, (name, dims) in enumerate(_tensors(shape))]
    written = Path(target)
    written.parent.mkdir(parents=True, exist_ok=True)
    write(written, _metadata(shape), _told(tensors, done))
    return written


def _told(tensors: list[TensorData], done: Callable[[int, int], None] | None) -> list[TensorData]:
    """The tensors, each of which says how far the file is when its turn comes."""
    if done is None:
        return tensors
    total = sum(CODECS[t.type].n_bytes(t.shape) for t in tensors)
    begun = 0
    told = []
    for tensor in tensors:
        told.append(replace(tensor, data=_after(done, begun, total, tensor)))
        begun += CODECS[tensor.type].n_bytes(tensor.shape)
    return told


def _after(
    done: Callable[[int, int], None], begun: int, total: int, tensor: TensorData
) -> Callable[[], NDArray[np.uint8]]:
    def data() -> NDArray[np.uint8]:
        done(begun, total)
        assert callable(tensor.data)
        return np.asarray(tensor.data())

    return data


def _tensors(s: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in file order."""
    n_kv = s.n_head_kv * s.head_dim
    sub_norms = s.arch != "llama"
    yield "token_embd.weight", (s.n_vocab, s.n_embd)
    for il in range(s.n_layer):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (s.n_embd,),
            "attn_q": (s.n_embd, s.n_embd),
            "attn_k": (n_kv, s.n_embd),
            "attn_v": (n_kv, s.n_embd),
            "attn_sub_norm": (s.n_embd,),
            "attn_output": (s.n_embd, s.n_embd),
            "ffn_norm": (s.n_embd,),
            "ffn_gate": (s.n_ff, s.n_embd),
            "ffn_up": (s.n_ff, s.n_embd),
            "ffn_sub_norm": (s.n_ff,),
            "ffn_down": (s.n_embd, s.n_ff),
        }
        for name, dims in layer.items():
            if sub_norms or "sub_norm" not in name:
                yield f"blk.{il}.{name}.weight", dims
    yield "output_norm.weight", (s.n_embd,)
    if not s.tied:
        yield "output.weight", (s.n_vocab, s.n_embd)


class _Material:
    """Random numbers that every tensor takes a piece of: drawing billions would take minutes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._seed = int(rng.integers(1 << 31))
        trits = rng.choice(np.array([-1, 0, 1], np.int8), _BLOCK, p=(1 / 3, 1 / 3, 1 / 3)).reshape(-1, 128)
        packed = CODECS[GGMLType.I2_S].encode(Ternary(trits=trits, scale=1.0))
        self._codes = packed[: trits.size // 4]
        self._normal = rng.normal(0, 1, _BLOCK).astype(np.float16).view(np.uint8)

    def tensor(self, number: int, name: str, shape: tuple[int, ...]) -> TensorData:
        """A norm, a ternary matrix, or an embedding or head."""
        if len(shape) == 1:
            return TensorData(name=name, shape=shape, type=GGMLType.F32, data=lambda: self._norm(number, shape[0]))
        if name.startswith(("token_embd", "output.")):
            return TensorData(name=name, shape=shape, type=GGMLType.F16, data=lambda: self._dense(number, shape))
        return TensorData(name=name, shape=shape, type=GGMLType.I2_S, data=lambda: self._ternary(number, shape))

    def _norm(self, number: int, n: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng((self._seed, number))
        return rng.uniform(0.5, 1.5, n).astype("<f4").view(np.uint8)

    def _dense(self, number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return self._piece(self._normal, number, 2 * math.prod(shape), unit=2)

    def _ternary(self, number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        tail = np.zeros(8, "<f4")
        tail[0] = math.sqrt(1.5 / shape[1])  # two thirds of the trits are not zero
        codes = self._piece(self._codes, number, math.prod(shape) // 4, unit=32)
        return np.concatenate([codes, tail.view(np.uint8)])

    def _piece(self, source: NDArray[np.uint8], number: int, n: int, *, unit: int) -> NDArray[np.uint8]:
        """`n` bytes, begun at a place of its own, whole units of `unit` bytes; repeated with other shifts."""
        rng = np.random.default_rng((self._seed, number))
        out = np.empty(n, np.uint8)
        filled = 0
        while filled < n:
            at = int(rng.integers(len(source) // unit)) * unit
            part = source[at : at + n - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out


def _metadata(s: Shape) -> dict[str, Any]:
    a = s.arch
    tokens = [_byte_symbol(b) for b in range(256)]
    tokens += ["Ġt", *(f"Ġword{i}" for i in range(s.n_vocab - 257 - _END))]
    tokens += ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    return {
        "general.architecture": a,
        "general.name": "synthetic",
        "general.file_type": 40,
        f"{a}.block_count": s.n_layer,
        f"{a}.context_length": s.n_ctx,
        f"{a}.embedding_length": s.n_embd,
        f"{a}.feed_forward_length": s.n_ff,
        f"{a}.attention.head_count": s.n_head,
        f"{a}.attention.head_count_kv": s.n_head_kv,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": s.head_dim,
        f"{a}.rope.freq_base": s.rope_theta,
        f"{a}.vocab_size": s.n_vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (s.n_vocab - _END) + [3] * _END, np.int32),
        "tokenizer.ggml.merges": ["Ġ t"],  # readers want at least one
        "tokenizer.ggml.bos_token_id": s.n_vocab - 3,
        "tokenizer.ggml.eos_token_id": s.n_vocab - 2,
        "tokenizer.ggml.add_bos_token": (ValueType.BOOL, True),
    }


def _byte_symbol(byte: int) -> str:
    """The printable character that stands for a byte in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + byte - sum(1 for p in printable if p < byte))
