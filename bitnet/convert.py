"""One model from one form to another: Hugging Face checkpoints and GGUF files, verified before they appear.

A conversion plans every tensor, writes them one at a time into a hidden place, reads the result back, compares every
weight with its source, and only then gives it its name. What cannot be kept to the bit is said, tensor by tensor.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from bitnet import hf_write
from bitnet.architecture import CONTRACTS, read_config
from bitnet.codecs import Tiles
from bitnet.config import ModelConfig
from bitnet.convert_check import Change, check
from bitnet.errors import TokenizerError, UsageError
from bitnet.formats import tiles_of_build
from bitnet.gguf import GGUF, GGMLType, TensorData, write
from bitnet.gguf_types import ValueType, tensor_bytes
from bitnet.hf import Checkpoint, open_model
from bitnet.parts import MADE_TERNARY, Part
from bitnet.staging import check_free, staged
from bitnet.transcode import EMBEDDING_TYPES, FILE_TYPES, Plan, plan

#: Sees how far a conversion is: (`write` or `verify`, bytes done, bytes in all, the tensor at hand).
Progress = Callable[[str, int, int, str], None]

_HF: Mapping[str, hf_write.Form] = MappingProxyType(
    {"hf": "autobitlinear", "hf-bitlinear": "bitlinear", "hf-bf16": "bf16"}
)
_TYPES = {t.name.lower(): t for t in FILE_TYPES}
_EMBEDDINGS = {t.name.lower(): t for t in EMBEDDING_TYPES}
#: What a model can be converted to: the types of a GGUF's projections, and the forms of a checkpoint.
TARGETS = (*_TYPES, *_HF)
_HEADER_ROOM = 16 << 20  # bytes that a header and a tokenizer may take


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedTensor:
    """One tensor of the target.

    Attributes:
        name: As a GGUF spells it.
        source_type, target_type: What the weights are stored as; a checkpoint's packed weights are U8.
        n_bytes: In the target.
        lost: What changed, or "".
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    target_type: str
    n_bytes: int
    lost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was done.

    Attributes:
        source, target: Files or folders.
        type: One of `TARGETS`.
        arch: Architecture name in the target.
        tensors: Every tensor written.
        n_verified: Weights that were read back and are what they must be.
        notices: What else its user should know.
        seconds: Wall time.
    """

    source: Path
    target: Path
    type: str
    arch: str
    tensors: tuple[ConvertedTensor, ...]
    n_verified: int
    notices: tuple[str, ...]
    seconds: float

    @property
    def n_bytes(self) -> int:
        """Size of the weights in the target."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def losses(self) -> tuple[str, ...]:
        """What could not be kept to the bit, a sentence each; empty for a lossless conversion."""
        return tuple(f"{t.name} is {t.lost}" for t in self.tensors if t.lost)

    @property
    def lossless(self) -> bool:
        """Whether every weight of the target is one of the source's, to the bit."""
        return not self.losses

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON (`schemas/model-convert-1.schema.json`)."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "type": self.type,
            "arch": self.arch,
            "lossless": self.lossless,
            "n_bytes": self.n_bytes,
            "n_verified": self.n_verified,
            "tensors": [asdict(t) | {"shape": list(t.shape)} for t in self.tensors],
            "notices": list(self.notices),
            "seconds": self.seconds,
        }


def _silent(_stage: str, _done: int, _total: int, _name: str) -> None:
    pass


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    type: str,  # noqa: A002  # the flag of the command, and the word of the field
    embedding_type: str | None = None,
    kernel_config: str | PathLike[str] | None = None,
    arch: str | None = None,
    force: bool = False,
    progress: Progress = _silent,
) -> Conversion:
    """Convert a model; the target appears whole, verified, or not at all.

    Args:
        source: A GGUF file, or the folder of a Hugging Face checkpoint.
        target: A new file, or a new folder for the forms of a checkpoint.
        type: One of `TARGETS`.
        embedding_type: f32, f16, bf16 or q8_0 for the embedding and the head of a GGUF; default: as they are.
        kernel_config: For tl1 and tl2: the `kernel_config.ini` of the bitnet.cpp build that will read the target.
            Default: bitnet.cpp's own tiles, and for shapes that it does not know, the largest that suit.
        arch: Another name for the architecture, of the same graph, for an engine that knows it by that name only.
        force: Replace `target` if it exists: a file by a file, a folder that holds a checkpoint and nothing else by a
            checkpoint.
        progress: Called before each tensor.

    Raises:
        UsageError: An argument has no meaning for this model, `target` exists, or cannot be written.
        ModelFileError: The source is damaged, or what was written does not equal it.
        ResourceLimitError: The disk has no room.
    """
    started = time.perf_counter()
    if type not in TARGETS:
        raise UsageError(f"cannot convert to {type!r}", remedy=f"one of {', '.join(TARGETS)}")
    embedding = _embedding(type, embedding_type)
    if kernel_config is not None and type not in ("tl1", "tl2"):
        raise UsageError("only tl1 and tl2 have tiles to choose", where="--kernel-config", remedy="leave it out")
    tiles = None if kernel_config is None else tiles_of_build(kernel_config)
    opened, place = open_model(source), Path(target)
    _refuse_itself(place, (Path(source), *opened.paths))
    check_free(place, folder=type in _HF, force=force)
    config, notices = read_config(opened)
    name = _checked_arch(config, arch, type)
    pairs: list[hf_write.Pair] = []
    if type in _HF:
        pairs = hf_write.plan(opened, _HF[type])
        parts = [part for part, tensor in pairs if not tensor.name.endswith("_scale")]
        stored = {part.name: (tensor.dtype, tensor.n_bytes) for part, tensor in reversed(pairs)}
    else:
        planned, more = _plan_gguf(opened, config, _TYPES[type], arch=arch, embedding=embedding, tiles=tiles)
        parts = list(planned.parts)
        stored = {part.name: (part.type.name, tensor_bytes(part.type, part.shape)) for part in parts}
    meter = _Meter(sum(n_bytes for _, n_bytes in stored.values()), progress)
    with staged(place, folder=type in _HF, n_bytes=meter.total + _HEADER_ROOM, force=force) as made:
        if type in _HF:
            more = hf_write.write_checkpoint(opened, made, _watched_pairs(pairs, opened, meter), _HF[type])
        else:
            write(made, planned.metadata, _watched(parts, opened, meter), alignment=opened.alignment)
        meter.begin("verify")
        changes = check(opened, open_model(made), parts, lambda part: meter.next(part.name, stored[part.name][1]))
    meter.end()
    return Conversion(
        source=Path(source),
        target=place,
        type=type,
        arch=name,
        tensors=tuple(
            ConvertedTensor(
                name=part.name,
                shape=part.shape,
                source_type=_source_type(opened, part.source),
                target_type=stored[part.name][0],
                n_bytes=stored[part.name][1],
                lost=_lost(opened, part, change, stored[part.name][0]),
            )
            for part, change in zip(parts, changes, strict=True)
        ),
        n_verified=sum(math.prod(part.shape) for part in parts),
        notices=tuple(dict.fromkeys((*opened.notices, *notices, *more))),
        seconds=time.perf_counter() - started,
    )


def _embedding(type_: str, wanted: str | None) -> GGMLType | None:
    if wanted is None:
        return None
    if wanted not in _EMBEDDINGS:
        raise UsageError(f"an embedding cannot be {wanted!r}", remedy=f"one of {', '.join(_EMBEDDINGS)}")
    if type_ in _HF:
        raise UsageError("the embedding of a checkpoint is always f32", where="--embedding-type", remedy="leave it out")
    return _EMBEDDINGS[wanted]


def _refuse_itself(target: Path, sources: Iterable[Path]) -> None:
    """Neither the source nor a folder it lies in can be replaced by what is made from it."""
    if not os.path.exists(target):  # noqa: PTH110  # which is false, and no error, for a name that is too long
        return
    place = target.resolve()
    for path in sources:
        if target.samefile(path) or path.resolve().is_relative_to(place):
            what = "is the source itself" if target.samefile(path) else "holds the source"
            raise UsageError(what, where=target, remedy="choose another name")


def _checked_arch(config: ModelConfig, arch: str | None, type_: str) -> str:
    if arch is None or arch == config.arch:
        return config.arch
    if type_ in _HF:
        raise UsageError("a checkpoint has no architecture name to choose", where="--arch", remedy="leave it out")
    wanted = CONTRACTS.get(arch)
    if wanted is None:
        raise UsageError(f"architecture {arch!r} is unknown", remedy=f"known are {', '.join(sorted(CONTRACTS))}")
    if (wanted.sub_norms, wanted.rope_style) != (config.sub_norms, config.rope_style):
        raise UsageError(
            f"architecture {arch} is another graph than {config.arch}: sub-norms or rotary pairs differ",
            where="--arch",
            remedy=f"keep {config.arch}",
        )
    return arch


def _source_type(source: GGUF, name: str) -> str:
    """What the file holds: a checkpoint's matrices are made into I2_S as they are read."""
    if isinstance(source, Checkpoint):
        matrix = source.matrices.get(name.removesuffix(".scale") + ".weight" if name.endswith(".scale") else name)
        if matrix is not None:
            return matrix.entry.dtype
    return source.tensors[name].type.name


def _lost(source: GGUF, part: Part, change: Change, stored: str) -> str:
    """What one tensor lost: by reading a checkpoint of master weights, by being made ternary, by its type."""
    matrix = source.matrices.get(part.name) if isinstance(source, Checkpoint) else None
    told = [MADE_TERNARY] if matrix is not None and matrix.ternarised else []
    if part.lost and part.lost not in told:
        told.append(part.lost)
    if change.n:
        n = math.prod(part.shape)
        told.append(f"rounded to {stored}: {change.n} of {n} weights change, by {change.max_abs:.2g} at most")
    return ", ".join(told)


def _plan_gguf(
    source: GGUF,
    config: ModelConfig,
    to: GGMLType,
    *,
    arch: str | None,
    embedding: GGMLType | None,
    tiles: Tiles | None,
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a GGUF, and what is to be told about it."""
    notices: list[str] = []
    try:
        planned = plan(source, to, arch=arch, embedding=embedding, tiles=tiles)
    except TokenizerError as error:
        assert isinstance(source, Checkpoint)  # a GGUF's keys are read already
        notices.append(f"no tokenizer is written: {error.what}")
        source.forget_tokenizer()
        planned = plan(source, to, arch=arch, embedding=embedding, tiles=tiles)
    name = arch or config.arch
    keys = dict(planned.metadata)
    if arch:  # the default of one name may be another's deviation
        keys[f"{arch}.hidden_activation"] = (ValueType.STRING, config.activation)
    if keys.get(f"{name}.tie_word_embeddings") == (ValueType.BOOL, False):
        notices.append(f"the head is not the embedding; other engines of {name} may ignore it")
    if isinstance(source, Checkpoint):  # whose tokenizer is told in the keys of a GGUF
        notices += source.tokenizer_notices
    return replace(planned, metadata=keys), (*planned.notices, *notices)


class _Meter:
    """Counts bytes as tensors take their turns."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total = total
        self._progress = progress
        self.begin("write")

    def begin(self, stage: str) -> None:
        """Count from 0 again."""
        self._stage, self._done, self._pending = stage, 0, 0

    def next(self, name: str, n_bytes: int) -> None:
        """One tensor is at hand, so the one before it is done."""
        self._done += self._pending
        self._pending = n_bytes
        self._progress(self._stage, self._done, self.total, name)

    def end(self) -> None:
        """All are done."""
        self._progress(self._stage, self.total, self.total, "")


def _watched(parts: list[Part], source: GGUF, meter: _Meter) -> Iterator[TensorData]:
    """The tensors for the writer, each letting go of the one before."""
    for part in parts:

        def make(part: Part = part) -> Iterable[NDArray[Any]]:
            source.release()
            meter.next(part.name, tensor_bytes(part.type, part.shape))
            return part.pieces()

        yield TensorData(name=part.name, shape=part.shape, type=part.type, data=make)


def _watched_pairs(pairs: list[hf_write.Pair], source: GGUF, meter: _Meter) -> list[hf_write.Pair]:
    def watched(pair: hf_write.Pair) -> hf_write.Pair:
        part, tensor = pair

        def data() -> Iterable[NDArray[Any]]:
            source.release()
            meter.next(part.name, tensor.n_bytes)
            return tensor.data()

        return part, replace(tensor, data=data)

    return [watched(pair) for pair in pairs]
