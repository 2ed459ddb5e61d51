"""Two models, tensor by tensor, on what their tensors decode to.

A type is only a way to write weights down: I2_S, TQ2_0 and TL2 can hold the same ones to the bit. So values are
compared, a `.scale` tensor multiplied in, and never bytes. Tensors are decoded in pieces, so a model of any size fits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.architecture import read_config
from bitnet.codecs import Codec, Float32, codec_of, matrix_rows
from bitnet.formats import Formats, read_formats
from bitnet.gguf import GGUF, GGMLType, TensorInfo
from bitnet.tokenizer_files import embedded_sha256

Status = Literal["equal", "renamed", "differs", "shape", "only_a", "only_b"]
#: Called before each tensor with how many are done, how many there are, and its name.
Progress = Callable[[int, int, str], None]

_FLOATS = {GGMLType.F16: np.float16, GGMLType.F32: np.float32, GGMLType.F64: np.float64}
_PIECE = 1 << 22  # weights decoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """One tensor in both models.

    Attributes:
        name: In the first model, or in the second where only that has it.
        other: Its name in the second, or None.
        status: "equal" to the bit; "renamed": equal under another name; "differs" in values; of another "shape";
            or in one model alone.
        type_a, type_b: Types in the two files, None where it is missing.
        n: Elements.
        n_differ: Those whose values differ.
        max_abs: Largest |a − b|; None where nothing was compared or a value is not a number.
        n_signs: Those of another sign (−, 0, +): 0 in ternary matrices that differ in the scale alone.
        scale_a, scale_b: Largest magnitude, which is the scale of a ternary matrix.
    """

    name: str
    other: str | None
    status: Status
    type_a: str | None = None
    type_b: str | None = None
    n: int = 0
    n_differ: int = 0
    max_abs: float | None = None
    n_signs: int = 0
    scale_a: float | None = None
    scale_b: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A hyper-parameter or a part of the tokenizer that is not the same."""

    field: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models.

    Attributes:
        tensors: Every tensor, in the first model's order; `.scale` tensors count as part of their matrices.
        hyper_parameters: Those that differ.
        tokenizer: What differs in the embedded tokenizers.
    """

    tensors: tuple[TensorDifference, ...]
    hyper_parameters: tuple[Difference, ...]
    tokenizer: tuple[Difference, ...]

    @property
    def weights_equal(self) -> bool:
        """Whether every weight of one is a weight of the other, to the bit: a conversion was lossless."""
        return all(t.status in ("equal", "renamed") for t in self.tensors)

    @property
    def equal(self) -> bool:
        """Whether nothing differs; the types in the file do not count."""
        return self.weights_equal and not self.hyper_parameters and not self.tokenizer

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {
            "equal": self.equal,
            "weights_equal": self.weights_equal,
            "tensors": [asdict(t) for t in self.tensors],
            "hyper_parameters": [asdict(d) for d in self.hyper_parameters],
            "tokenizer": [asdict(d) for d in self.tokenizer],
        }


def compare(a: GGUF, b: GGUF, progress: Progress = lambda _done, _total, _name: None) -> Comparison:
    """Compare two open models.

    Raises:
        ModelFileError: A tensor cannot be decoded, or hyper-parameters are missing.
    """
    one, other = _Side(a), _Side(b)
    names = [*one.names, *(n for n in other.names if n not in one.names)]
    tensors = []
    for i, name in enumerate(names):
        progress(i, len(names), name)
        tensors.append(_compare(name, one, other))
        a.release()
        b.release()
    return Comparison(
        tensors=tuple(_renamed(tensors, one, other)),
        hyper_parameters=_fields(asdict(read_config(a)[0]), asdict(read_config(b)[0]), skip=("activation_source",)),
        tokenizer=_fields(_tokenizer(a), _tokenizer(b)),
    )


class _Side:
    """One of the models: its tensors, decoded in pieces."""

    def __init__(self, gguf: GGUF) -> None:
        self.gguf = gguf
        self.formats: Formats = read_formats(gguf)
        self.names = tuple(n for n in gguf.tensors if not self._is_scale(n))

    def _is_scale(self, name: str) -> bool:
        return name.endswith(".scale") and f"{name.removesuffix('.scale')}.weight" in self.gguf.tensors

    def beside(self, name: str) -> np.float32:
        """The scale in the tensor beside a matrix, or 1."""
        scale = f"{name.removesuffix('.weight')}.scale"
        info = self.gguf.tensors.get(scale) if name.endswith(".weight") else None
        if info is None:
            return np.float32(1)
        return np.float32(self._codec(info).decode(self.gguf.raw(scale), info.shape).reshape(-1)[0])

    def _codec(self, info: TensorInfo) -> Codec:
        return codec_of(info.type, self.formats.codecs)

    def pieces(self, name: str, step: int) -> Iterator[Float32]:
        """Values of some rows at a time, [rows, n_col] f32."""
        info = self.gguf.tensors[name]
        codec, raw, scale = self._codec(info), self.gguf.raw(name), self.beside(name)
        n_col = info.shape[-1]
        n_row = math.prod(info.shape[:-1])
        for begin in range(0, n_row, step):
            rows = slice(begin, min(begin + step, n_row))
            if codec.unpack is not None:
                values = codec.unpack(raw, info.shape, rows).dense()
            else:
                part = np.ascontiguousarray(matrix_rows(info.type, raw, info.shape, rows)).reshape(-1)
                values = codec.decode(part, (rows.stop - rows.start, n_col))
            yield values if scale == 1 else values * scale

    def same_bytes(self, name: str, other: _Side) -> bool:
        """Whether a tensor is the same bytes, read in the same way, in both: then it need not be decoded."""
        a, b = self.gguf.tensors[name], other.gguf.tensors[name]
        ours, theirs = self.formats, other.formats
        if a.type is not b.type or (ours.layout, ours.tiles) != (theirs.layout, theirs.tiles):
            return False
        raw = self.gguf.raw(name)
        same = self.beside(name) == other.beside(name) and _equal(raw, other.gguf.raw(name))
        return same and not _has_nan(raw, a.type)


def _has_nan(raw: NDArray[np.uint8], type_: GGMLType) -> bool:
    """Whether a float tensor holds what does not equal itself."""
    if type_ is GGMLType.BF16:
        bits = raw.view(np.uint16)
        return any(bool(((bits[i : i + _PIECE] & 0x7FFF) > 0x7F80).any()) for i in range(0, len(bits), _PIECE))
    if type_ not in _FLOATS:
        return False
    values = raw.view(_FLOATS[type_])
    return any(bool(np.isnan(values[i : i + _PIECE]).any()) for i in range(0, len(values), _PIECE))


def _equal(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(a[i : i + _PIECE], b[i : i + _PIECE]) for i in range(0, len(a), _PIECE)
    )


def _compare(name: str, a: _Side, b: _Side) -> TensorDifference:
    x, y = a.gguf.tensors.get(name), b.gguf.tensors.get(name)
    if x is None or y is None:
        info = x or y
        assert info is not None
        status: Status = "only_a" if y is None else "only_b"
        return TensorDifference(
            name=name,
            other=None,
            status=status,
            type_a=x.type.name if x else None,
            type_b=y.type.name if y else None,
            n=math.prod(info.shape),
        )
    types = {"name": name, "other": name, "type_a": x.type.name, "type_b": y.type.name, "n": math.prod(x.shape)}
    if x.shape != y.shape:
        return TensorDifference(**types, status="shape")  # type: ignore[arg-type]  # a mixed dict
    if a.same_bytes(name, b):
        return TensorDifference(**types, status="equal", max_abs=0.0)  # type: ignore[arg-type]  # a mixed dict
    n_differ = n_signs = 0
    largest, scale_a, scale_b = 0.0, 0.0, 0.0
    step = max(1, _PIECE // x.shape[-1])
    for one, other in zip(a.pieces(name, step), b.pieces(name, step), strict=True):
        differ = one != other  # true for NaN on either side
        scale_a, scale_b = _max(scale_a, one), _max(scale_b, other)
        if differ.any():
            n_differ += int(np.count_nonzero(differ))
            n_signs += int(np.count_nonzero(np.sign(one) != np.sign(other)))
            with np.errstate(invalid="ignore", over="ignore"):
                largest = _max(largest, one - other)
    return TensorDifference(
        **types,  # type: ignore[arg-type]  # a mixed dict
        status="differs" if n_differ else "equal",
        n_differ=n_differ,
        max_abs=_number(largest),
        n_signs=n_signs,
        scale_a=_number(scale_a),
        scale_b=_number(scale_b),
    )


def _max(before: float, values: Float32) -> float:
    """The larger of a magnitude and the largest of an array; NaN if either is."""
    return float(np.maximum(before, np.abs(values).max(initial=0.0)))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _renamed(tensors: list[TensorDifference], a: _Side, b: _Side) -> Iterator[TensorDifference]:
    """Pairs that are in one model each, under different names, with the same values, made one."""
    lonely: dict[str, list[TensorDifference]] = {"only_a": [], "only_b": []}
    for t in tensors:
        if t.status in lonely:
            lonely[t.status].append(t)
    sizes = {t.n for t in lonely["only_a"]} & {t.n for t in lonely["only_b"]}
    theirs: dict[str, list[str]] = {}
    for t in lonely["only_b"]:
        if t.n in sizes:
            theirs.setdefault(_digest(t.name, b), []).append(t.name)
    pairs: dict[str, str] = {}
    for t in lonely["only_a"]:
        same = theirs.get(_digest(t.name, a)) if t.n in sizes else None
        if same:
            pairs[t.name] = same.pop(0)
    taken = set(pairs.values())
    for t in tensors:
        if t.status == "only_b" and t.name in taken:
            continue
        if t.status == "only_a" and t.name in pairs:
            type_b = b.gguf.tensors[pairs[t.name]].type.name
            yield TensorDifference(
                name=t.name, other=pairs[t.name], status="renamed", type_a=t.type_a, type_b=type_b, n=t.n, max_abs=0.0
            )
            continue
        yield t


def _digest(name: str, side: _Side) -> str:
    info = side.gguf.tensors[name]
    digest = hashlib.sha256(repr(info.shape).encode())
    for piece in side.pieces(name, max(1, _PIECE // info.shape[-1])):
        digest.update(np.ascontiguousarray(piece + np.float32(0)).data)  # −0 becomes 0, which equals it
    return digest.hexdigest()


def _tokenizer(gguf: GGUF) -> dict[str, Any]:
    keys = {k.removeprefix("tokenizer."): v for k, v in gguf.metadata.items() if k.startswith("tokenizer.")}
    plain = {k: v for k, v in keys.items() if isinstance(v, (str, int, float, bool))}
    arrays = {k: f"{len(v)} entries" for k, v in keys.items() if k not in plain and hasattr(v, "__len__")}
    whole = {"digest": embedded_sha256(gguf.metadata)} if keys else {}
    return {**plain, **arrays, **whole}


def _fields(a: Mapping[str, Any], b: Mapping[str, Any], skip: tuple[str, ...] = ()) -> tuple[Difference, ...]:
    return tuple(
        Difference(field=key, a=_shown(a.get(key)), b=_shown(b.get(key)))
        for key in dict.fromkeys([*a, *b])
        if key not in skip and not _same(a.get(key), b.get(key))
    )


def _same(a: object, b: object) -> bool:
    """Whether two values are equal; as float32, for a GGUF holds no more of them."""
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.float32(a) == np.float32(b))
    return a == b


def _shown(value: object) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
