"""A file's tensors as packed, kernel-ready matrices, each checked against the hyper-parameters.

Ternary matrices stay at two bits a weight (an I2_S file is not even copied: its codes are views of the mapping);
floats stay in the file's type. Everything a layer needs is named here once, and a tensor that nobody consumes is an
error: the sub-norms of a model were once loaded and never used.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs import Codec, codec_of, ternary_codes
from bitnet.config import ModelConfig
from bitnet.errors import BitNetError, GGUFError, ModelFileError
from bitnet.formats import Formats, read_formats
from bitnet.gguf import GGUF, GGMLType, TensorInfo
from bitnet.kernels.row_tiles import as_rows
from bitnet.linear import Backend, DenseMatrix, Float32, Int8Matrix, Matrix, TernaryMatrix
from bitnet.weight_statistics import constant_fault, is_finite

if TYPE_CHECKING:
    from bitnet.packed_file import PackedMatrix

#: Types whose float data a kernel reads in place, and the element type the kernel expects.
_DENSE: dict[GGMLType, type[np.generic]] = {
    GGMLType.F32: np.float32,
    GGMLType.F16: np.uint16,
    GGMLType.BF16: np.int16,
}
_VECTORS = (*_DENSE, GGMLType.F64)
#: What a file divides its rotary frequencies by.
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Weights of one layer; sub-norms are None where the architecture has none."""

    attn_norm: Float32
    q: Matrix
    k: Matrix
    v: Matrix
    attn_sub_norm: Float32 | None
    o: Matrix
    ffn_norm: Float32
    gate: Matrix
    up: Matrix
    ffn_sub_norm: Float32 | None
    down: Matrix

    def projections(self) -> Iterator[Matrix]:
        """The seven matrices, in graph order."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Matrix):
                yield value


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """All weights of a model.

    Attributes:
        embd: Token embedding [n_vocab, n_embd].
        head: Output head; the embedding itself where it is tied.
        rope_factors: [head_dim / 2] divisors of the rotary frequencies, or None.
        formats: How the file's tensors are read.
        notices: What a user should know about how tensors were read.
    """

    embd: Matrix
    layers: tuple[Layer, ...]
    output_norm: Float32
    head: Matrix
    rope_factors: Float32 | None
    formats: Formats
    notices: tuple[str, ...]

    def projections(self) -> Iterator[Matrix]:
        """Every ternary-by-design matrix of every layer."""
        for layer in self.layers:
            yield from layer.projections()

    @property
    def n_bytes(self) -> int:
        """Bytes of weights read for one token: all projections and the head."""
        return sum(m.n_bytes for m in self.projections()) + self.head.n_bytes

    def packed(self, backend: Backend, done: Callable[[int, int], None] = lambda *_: None) -> Weights:
        """The same, ternary matrices in the layout that the backend's kernels read.

        Args:
            backend: Its threads take a matrix each.
            done: Told how many matrices are packed, of how many.
        """
        layout = backend.variant.layout
        loose = [m for m in self.projections() if isinstance(m, TernaryMatrix) and m.tiles.layout != layout]
        packed: dict[str, Matrix] = {}
        with ThreadPoolExecutor(backend.n_threads, thread_name_prefix="bitnet-pack") as pool:
            for matrix in pool.map(backend.pack, loose):
                packed[matrix.name] = matrix
                done(len(packed), len(loose))

        def layer(old: Layer) -> Layer:
            changed: dict[str, Any] = {}
            for field in fields(old):
                value = getattr(old, field.name)
                changed[field.name] = packed.get(value.name, value) if isinstance(value, Matrix) else value
            return replace(old, **changed)

        return replace(self, layers=tuple(layer(old) for old in self.layers)) if packed else self

    def digest(self) -> str:
        """sha256 over the decoded ternary weights (codes and scales), equal for every lossless container of them."""
        digest = hashlib.sha256()
        for m in self.projections():
            if isinstance(m, TernaryMatrix):
                digest.update(f"{m.name} {m.n_row} {m.n_col} {m.scale!r} ternary\n".encode())
                digest.update(m.codes.data)
                if m.block_scale is not None:
                    digest.update(np.ascontiguousarray(m.block_scale).data)
            else:
                digest.update(f"{m.name} {m.n_row} {m.n_col} {m.scale!r} {m.type_name}\n".encode())
                digest.update(getattr(m, "data"))  # noqa: B009  both other kinds have it
                if isinstance(m, Int8Matrix):
                    digest.update(m.block_scale.data)
        return digest.hexdigest()


class TensorReader:
    """Takes tensors out of a file, remembering which were asked for."""

    def __init__(self, gguf: GGUF, formats: Formats, kept: Mapping[str, PackedMatrix] = MappingProxyType({})) -> None:
        self.gguf = gguf
        self.formats = formats
        self.kept = kept
        self.consumed: set[str] = set()
        self.notices: list[str] = list(formats.notices)
        self.unpacked: Counter[str] = Counter()  # matrices by type that has no kernel

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self.gguf.tensors.get(name)
        if info is None:
            raise GGUFError(
                f"tensor {name} is missing",
                path=self.gguf.path,
                field=f"tensor {name}",
                remedy="the file is incomplete or was made for another architecture",
            )
        if info.shape != shape:
            raise GGUFError(
                f"tensor {name} has shape {list(info.shape)}; the hyper-parameters ask for {list(shape)}",
                path=self.gguf.path,
                field=f"tensor {name}",
                offset=info.offset,
            )
        self.consumed.add(name)
        return info

    def vector(self, name: str, n: int) -> Float32:
        """A float vector, finite."""
        info = self._info(name, (n,))
        if info.type not in _VECTORS:
            raise ModelFileError(
                f"tensor {name} is {info.type.name}; a vector must be F32, F16, BF16 or F64",
                where=self.gguf.path,
                remedy="convert the model again, with its norms and scales in F32",
            )
        value = np.ascontiguousarray(self._decoded(info, (1, n)).reshape(n), np.float32)
        if not np.isfinite(value).all():
            raise ModelFileError(f"tensor {name} holds NaN or infinity", where=self.gguf.path)
        if name == ROPE_FREQS and not (value > 0).all():
            raise ModelFileError(f"tensor {name} holds divisors that are not positive", where=self.gguf.path)
        return value

    def matrix(self, base: str, n_row: int, n_col: int) -> Matrix:
        """`<base>.weight`, with `<base>.scale` where the file has one, packed for the kernels."""
        name = f"{base}.weight"
        info = self._info(name, (n_row, n_col))
        scale = self.vector(f"{base}.scale", 1)[0] if f"{base}.scale" in self.gguf.tensors else np.float32(1)
        if name in self.kept:
            return _packed(info, self.kept[name])
        raw = self.gguf.raw(name)
        if self._codec(info).ternary:
            return self._ternary(info, raw, scale)
        kept = {"name": name, "type_name": info.type.name, "n_row": n_row, "n_col": n_col, "n_bytes": info.n_bytes}
        if info.type in _DENSE:
            data = raw.view(_DENSE[info.type]).reshape(n_row, n_col)
            return DenseMatrix(**kept, data=data, scale=scale)  # type: ignore[arg-type]  # a mixed dict
        if info.type == GGMLType.Q8_0:
            blocks = raw.reshape(n_row, n_col // 32, 34)
            codes = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(n_row, n_col)
            block_scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
            return Int8Matrix(**kept, data=codes, block_scale=block_scale, scale=scale)  # type: ignore[arg-type]  # a mixed dict
        return self._other(info, scale)

    def _ternary(self, info: TensorInfo, raw: NDArray[np.uint8], scale: np.float32) -> TernaryMatrix:
        try:
            codes, tensor_scale, block_scale = ternary_codes(info.type, raw, info.shape, self.formats.codecs)
        except BitNetError as error:
            raise self._named(error, info) from error
        if block_scale is not None and (block_scale == 1).all():
            block_scale = None  # a lossless carrier: the scale is in the `.scale` tensor
        with np.errstate(over="ignore"):  # infinity is refused below
            total = np.float32(np.float32(tensor_scale) * scale)
        if not np.isfinite(total) or (block_scale is not None and not np.isfinite(block_scale).all()):
            raise ModelFileError(f"tensor {info.name} has a scale that is not finite", where=self.gguf.path)
        return TernaryMatrix(
            name=info.name,
            type_name=info.type.name,
            n_row=info.shape[0],
            n_col=info.shape[1],
            n_bytes=codes.nbytes + (0 if block_scale is None else block_scale.nbytes),
            tiles=as_rows(codes),
            scale=total,
            block_scale=block_scale,
        )

    def _other(self, info: TensorInfo, scale: np.float32) -> DenseMatrix:
        """A type without a kernel, unpacked to float32 once."""
        data = np.ascontiguousarray(self._decoded(info, info.shape), np.float32)
        self.unpacked[info.type.name] += 1
        return DenseMatrix(
            name=info.name,
            type_name=info.type.name,
            n_row=info.shape[0],
            n_col=info.shape[1],
            n_bytes=data.nbytes,
            data=data,
            scale=scale,
        )

    def _decoded(self, info: TensorInfo, shape: tuple[int, ...]) -> Float32:
        try:
            return self._codec(info).decode(self.gguf.raw(info.name), shape)
        except BitNetError as error:
            raise self._named(error, info) from error

    def _codec(self, info: TensorInfo) -> Codec:
        try:
            return codec_of(info.type, self.formats.codecs)
        except ModelFileError as error:
            raise self._named(error, info) from error

    def _named(self, error: BitNetError, info: TensorInfo) -> ModelFileError:
        """A codec's error with the file and the tensor: whatever it is, the file is at fault."""
        return ModelFileError(f"tensor {info.name}: {error.what}", where=self.gguf.path, remedy=error.remedy)

    def layer(self, il: int, c: ModelConfig) -> Layer:
        """The weights of layer `il`."""

        def at(name: str) -> str:
            return f"blk.{il}.{name}"

        return Layer(
            attn_norm=self.vector(at("attn_norm.weight"), c.n_embd),
            q=self.matrix(at("attn_q"), c.n_q, c.n_embd),
            k=self.matrix(at("attn_k"), c.n_kv, c.n_embd),
            v=self.matrix(at("attn_v"), c.n_kv, c.n_embd),
            attn_sub_norm=self.vector(at("attn_sub_norm.weight"), c.n_q) if c.sub_norms else None,
            o=self.matrix(at("attn_output"), c.n_embd, c.n_q),
            ffn_norm=self.vector(at("ffn_norm.weight"), c.n_embd),
            gate=self.matrix(at("ffn_gate"), c.n_ff, c.n_embd),
            up=self.matrix(at("ffn_up"), c.n_ff, c.n_embd),
            ffn_sub_norm=self.vector(at("ffn_sub_norm.weight"), c.n_ff) if c.sub_norms else None,
            down=self.matrix(at("ffn_down"), c.n_embd, c.n_ff),
        )


def _packed(info: TensorInfo, kept: PackedMatrix) -> TernaryMatrix:
    """A matrix that an earlier load read, checked and packed."""
    return TernaryMatrix(
        name=info.name,
        type_name=info.type.name,
        n_row=kept.tiles.n_row,
        n_col=kept.tiles.n_col,
        n_bytes=kept.tiles.data.nbytes,
        tiles=kept.tiles,
        scale=kept.scale,
        block_scale=None,
    )


def read_weights(
    gguf: GGUF,
    config: ModelConfig,
    formats: Formats | None = None,
    kept: Mapping[str, PackedMatrix] = MappingProxyType({}),
) -> Weights:
    """Every tensor of a file as the engine uses it.

    Args:
        gguf: The open file.
        config: Its hyper-parameters.
        formats: How its tensors are read; default what `read_formats` finds out.
        kept: Matrices of this very file that were read, checked and packed before; they are taken as they are, and
            the floats beside them are not looked through again.

    Raises:
        ModelFileError: A tensor is missing, of the wrong shape or type, damaged, not finite, constant, or used by
            nobody.
    """
    reader = TensorReader(gguf, formats or read_formats(gguf), kept)
    embd = reader.matrix("token_embd", config.n_vocab, config.n_embd)
    layers = tuple(reader.layer(il, config) for il in range(config.n_layer))
    output_norm = reader.vector("output_norm.weight", config.n_embd)
    head = embd if config.tied_head else reader.matrix("output", config.n_vocab, config.n_embd)
    rope_factors = reader.vector(ROPE_FREQS, config.head_dim // 2) if ROPE_FREQS in gguf.tensors else None
    matrices = {m.name: m for m in (embd, head, *(m for layer in layers for m in layer.projections()))}
    for name, matrix in matrices.items():
        fault = constant_fault(matrix) if name not in kept else None
        if fault is not None:
            raise ModelFileError(f"tensor {name} is {fault}", where=gguf.path)
        if not kept and not gguf.made_here and not is_finite(matrix):  # a checkpoint looks where it makes the bytes
            raise ModelFileError(f"tensor {name} holds NaN or infinity", where=gguf.path)
        if matrix is embd:
            gguf.release()  # of which few rows are read again before the head is
    unused = sorted(set(gguf.tensors) - reader.consumed)
    if unused:
        raise ModelFileError(
            f"{len(unused)} tensor(s) that no operation of {config.arch} uses: {', '.join(unused[:5])}",
            where=gguf.path,
            remedy="the architecture name may be wrong, or the file belongs to another engine",
        )
    notices = [f"{n} tensor(s) of {name} are unpacked to float32" for name, n in sorted(reader.unpacked.items())]
    return Weights(
        embd=embd,
        layers=layers,
        output_norm=output_norm,
        head=head,
        rope_factors=rope_factors,
        formats=reader.formats,
        notices=(*reader.notices, *notices),
    )
