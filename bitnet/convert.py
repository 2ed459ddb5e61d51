"""One model from one form to another: Hugging Face checkpoints and GGUF files, verified before they appear.

A conversion plans every tensor, writes them one at a time into a hidden place, reads the result back, compares every
weight with its source, and only then gives it its name. What cannot be kept to the bit is said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet import hf_write
from bitnet.architecture import CONTRACTS, read_config
from bitnet.codecs import Codec, Layout
from bitnet.config import ModelConfig
from bitnet.errors import ModelFileError, TokenizerError, UsageError
from bitnet.formats import read_formats
from bitnet.gguf import GGUF, GGMLType, TensorData, write
from bitnet.gguf_types import ValueType, tensor_bytes
from bitnet.hf import Checkpoint, open_model
from bitnet.master_weights import as_float32
from bitnet.staging import staged
from bitnet.transcode import FILE_TYPES, Part, Plan, plan

#: Sees how far a conversion is: (`write` or `verify`, tensors done, tensors in all, the one at hand).
Progress = Callable[[str, int, int, str], None]

TARGETS = (*(t.name.lower() for t in FILE_TYPES), "hf")
_COMPARED = 1 << 22  # weights compared at a time
_HEADER_ROOM = 64 << 20  # bytes that a header and a tokenizer may take
_STORED = {GGMLType.F32: np.float32, GGMLType.F16: np.float16, GGMLType.BF16: np.uint16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was done.

    Attributes:
        source, target: Files or folders.
        to: One of `TARGETS`.
        arch: Architecture name in the target.
        n_tensors: Tensors written.
        n_bytes: Size of the weights in the target.
        n_verified: Weights that were read back and equal their source.
        losses: What could not be kept to the bit, a sentence each; empty for a lossless conversion.
        notices: What else its user should know.
        seconds: Wall time.
    """

    source: Path
    target: Path
    to: str
    arch: str
    n_tensors: int
    n_bytes: int
    n_verified: int
    losses: tuple[str, ...]
    notices: tuple[str, ...]
    seconds: float

    @property
    def lossless(self) -> bool:
        """Whether every weight of the target is one of the source's, to the bit."""
        return not self.losses

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        plain = {"source": str(self.source), "target": str(self.target), "lossless": self.lossless}
        lists = {"losses": list(self.losses), "notices": list(self.notices)}
        return asdict(self) | plain | lists


def _silent(_stage: str, _done: int, _total: int, _name: str) -> None:
    pass


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str],
    to: str,
    *,
    arch: str | None = None,
    force: bool = False,
    progress: Progress = _silent,
) -> Conversion:
    """Convert a model; the target appears whole, verified, or not at all.

    Args:
        source: A GGUF file, or the folder of a Hugging Face checkpoint.
        target: A new file, or a new folder for `hf`.
        to: One of `TARGETS`.
        arch: Another name for the architecture, of the same graph, for an engine that knows it by that name only.
        force: Replace `target` if it exists.
        progress: Called before each tensor.

    Raises:
        UsageError: `to` or `arch` has no meaning for this model, `target` exists, or cannot be written.
        ModelFileError: The source is damaged, or what was written does not equal it.
        ResourceLimitError: The disk has no room.
    """
    started = time.perf_counter()
    if to not in TARGETS:
        raise UsageError(f"cannot convert to {to!r}", remedy=f"one of {', '.join(TARGETS)}")
    opened, place = open_model(source), Path(target)
    if place.exists() and any(place.samefile(path) for path in (Path(source), *opened.paths)):
        raise UsageError("is the source itself", where=place, remedy="choose another name")
    config, notices = read_config(opened)
    name = _checked_arch(config, arch, to)
    if to == "hf":
        pairs = hf_write.plan(opened)
        parts = [part for part, tensor in pairs if not tensor.name.endswith("_scale")]
        size = sum(tensor.n_bytes for _, tensor in pairs)
    else:
        planned, more = _plan_gguf(opened, GGMLType[to.upper()], arch, config)
        parts = list(planned.parts)
        size = sum(tensor_bytes(part.type, part.shape) for part in parts)
    with staged(place, n_bytes=size + _HEADER_ROOM, force=force) as made:
        if to == "hf":
            more = hf_write.write_checkpoint(opened, made, _watched_pairs(pairs, opened, progress))
        else:
            write(made, planned.metadata, _watched(parts, opened, progress), alignment=opened.alignment)
        n_verified = _verify(opened, open_model(made), parts, progress)
    return Conversion(
        source=Path(source),
        target=place,
        to=to,
        arch=name,
        n_tensors=len(parts),
        n_bytes=size,
        n_verified=n_verified,
        losses=tuple(part.lost for part in parts if part.lost) + _master_losses(opened),
        notices=(*opened.notices, *notices, *more),
        seconds=time.perf_counter() - started,
    )


def _checked_arch(config: ModelConfig, arch: str | None, to: str) -> str:
    if arch is None or arch == config.arch:
        return config.arch
    if to == "hf":
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


def _master_losses(source: GGUF) -> tuple[str, ...]:
    """What reading a checkpoint of master weights has lost already."""
    if not isinstance(source, Checkpoint):
        return ()
    names = [name for name, matrix in source.matrices.items() if matrix.ternarised]
    return tuple(f"{name} is made ternary by mean|w|" for name in names)


def _plan_gguf(source: GGUF, to: GGMLType, arch: str | None, config: ModelConfig) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a GGUF, and what is to be told about it."""
    notices: list[str] = []
    try:
        planned = plan(source, to, arch=arch)
    except TokenizerError as error:
        assert isinstance(source, Checkpoint)  # a GGUF's keys are read already
        notices.append(f"no tokenizer is written: {error.what}")
        source.forget_tokenizer()
        planned = plan(source, to, arch=arch)
    name = arch or config.arch
    keys = dict(planned.metadata)
    if arch:  # the default of one name may be another's deviation
        keys[f"{arch}.hidden_activation"] = (ValueType.STRING, config.activation)
    if keys.get(f"{name}.tie_word_embeddings") == (ValueType.BOOL, False):
        notices.append(f"the head is not the embedding; other engines of {name} may ignore it")
    return replace(planned, metadata=keys), tuple(notices)


def _watched(parts: list[Part], source: GGUF, progress: Progress) -> Iterator[TensorData]:
    """The tensors for the writer, each letting go of the one before."""
    for i, part in enumerate(parts):

        def make(i: int = i, part: Part = part) -> NDArray[Any]:
            source.release()
            progress("write", i, len(parts), part.name)
            return part.make()

        yield TensorData(name=part.name, shape=part.shape, type=part.type, data=make)


def _watched_pairs(pairs: list[hf_write.Pair], source: GGUF, progress: Progress) -> list[hf_write.Pair]:
    def watched(i: int, pair: hf_write.Pair) -> hf_write.Pair:
        part, tensor = pair

        def data() -> Iterable[NDArray[Any]]:
            source.release()
            progress("write", i, len(pairs), tensor.name)
            return tensor.data()

        return part, replace(tensor, data=data)

    return [watched(i, pair) for i, pair in enumerate(pairs)]


def _verify(source: GGUF, target: GGUF, parts: list[Part], progress: Progress) -> int:
    """Compare every weight of the target with the source; return how many.

    Raises:
        ModelFileError: A tensor is missing, or a weight differs.
    """
    compared = 0
    table = read_formats(target, layout=Layout.X86).codecs
    for i, part in enumerate(parts):
        progress("verify", i, len(parts), part.name)
        found = target.tensors.get(part.name)
        if found is None or found.shape != part.shape:
            raise _differs(part, target, "is missing")
        if part.expected is None:
            _compare_bytes(part, target, source)
        else:
            _compare_weights(part, target, table, source, part.expected())
        compared += math.prod(part.shape)
        source.release()
        target.release()
    return compared


def _compare_bytes(part: Part, target: GGUF, source: GGUF) -> None:
    due, found = np.ascontiguousarray(part.make()).reshape(-1).view(np.uint8), target.raw(part.name)
    if len(due) != len(found):
        raise _differs(part, target, f"has {len(found)} bytes, not {len(due)}")
    for begin in range(0, len(due), _COMPARED):
        if not np.array_equal(due[begin : begin + _COMPARED], found[begin : begin + _COMPARED]):
            raise _differs(part, target, "differs")
        source.release()
        target.release()


def _compare_weights(
    part: Part,
    target: GGUF,
    table: Mapping[GGMLType, Codec],
    source: GGUF,
    due: Callable[[slice], NDArray[np.float32]],
) -> None:
    found = _weights(target, part.name, table)
    n_row = part.shape[0]
    step = max(1, _COMPARED // math.prod(part.shape[1:]))
    for begin in range(0, n_row, step):
        rows = slice(begin, min(begin + step, n_row))
        if not np.array_equal(due(rows), found(rows)):
            raise _differs(part, target, f"differs in rows {rows.start} to {rows.stop - 1}")
        source.release()
        target.release()


def _weights(target: GGUF, name: str, table: Mapping[GGMLType, Codec]) -> Callable[[slice], NDArray[np.float32]]:
    """The weights of some rows, as the format of the target defines them."""
    info, raw = target.tensors[name], target.raw(name)
    beside = name.removesuffix(".weight") + ".scale"
    scale = np.float32(target.raw(beside).view(np.float32)[0]) if beside in target.tensors else np.float32(1)
    unpack = table[info.type].unpack
    if unpack is not None:
        return lambda rows: unpack(raw, info.shape, rows).dense() * scale
    values = raw.view(_STORED[info.type]).reshape(info.shape)
    return lambda rows: as_float32(values[rows]) * scale


def _differs(part: Part, target: GGUF, what: str) -> ModelFileError:
    return ModelFileError(
        f"tensor {part.name} {what} after it was written; nothing is kept",
        where=target.path,
        remedy="the disk or the memory of this machine may be at fault; convert again",
    )
