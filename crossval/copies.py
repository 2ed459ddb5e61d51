"""Lossless copies of a model for engines that read other types: made once, and held to what the model declares.

A copy is trusted no further than it can be checked: a damaged one is made again, its weights are compared on the
weights rung, and what else an engine reads from it must be what its model says.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bitnet import gguf as container
from bitnet import transcode as converter
from bitnet.errors import BitNetError
from bitnet.formats import KERNEL_CONFIG_KEY
from bitnet.gguf import GGUF, GGMLType

#: llama.cpp's names for its architectures; it computes SiLU in `bitnet` whatever a file declares.
LLAMA_CPP_ARCH = {"bitnet-b1.58": "bitnet", "bitnet-25": "bitnet", "bitnet": "bitnet", "llama": "llama"}
#: All code that decides what bytes a copy has, beside `bitnet/`.
CONVERTER = ("transcode.py", "parts.py", "formats.py", "master_weights.py", "gguf*.py", "codecs/*.py")


def lossless_copy(source: GGUF, folder: Path, to: GGMLType, *, arch: str | None = None) -> Path:
    """The copy of a model in a folder of copies, made where there is none, or none that is whole.

    Its name holds the hash of the model and of the code that made it: a fault of an older converter does not live on.

    Raises:
        UsageError, ModelFileError: As `transcode`.
    """
    stem = source.path.name.removesuffix(".gguf").removesuffix(".i2_s")
    key = hashlib.sha256(f"{source.sha256()} {to.name} {arch} {_converter()}".encode()).hexdigest()[:12]
    target = folder / f"{stem}.{key}.{to.name.lower()}.gguf"
    return target if _whole(target) else converter.transcode(source, target, to, arch=arch)


@cache
def _converter() -> str:
    digest = hashlib.sha256()
    folder = Path(converter.__file__).parent
    for source in sorted(path for pattern in CONVERTER for path in folder.glob(pattern)):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _whole(path: Path) -> bool:
    """Whether a copy is there and has room for all its tensors: a look at its header, however large it is."""
    try:
        container.read(path)
    except BitNetError:
        return False
    return True


def declared_otherwise(model: GGUF, copy: GGUF) -> str:
    """The first thing that a copy declares otherwise than its model, with both values; "" where there is none.

    Compared are its architecture (its own name, or llama.cpp's for it), every hyper-parameter under that name, and the
    tokenizer. What `general.*` tells of the file may differ.
    """
    archs = [file.get("general.architecture", str) for file in (model, copy)]
    if archs[1] not in (archs[0], LLAMA_CPP_ARCH.get(archs[0])):
        return f"general.architecture is {archs[0]!r} in the model and {archs[1]!r} in the copy"
    said, again = (_declared(file, arch) for file, arch in zip((model, copy), archs, strict=True))
    for key in said | again:
        if key not in said or key not in again or not _equal(said[key], again[key]):
            mine, other = (_told(of, key) for of in (said, again))
            return f"{key} is {mine} in the model and {other} in the copy"
    return ""


def _declared(file: GGUF, arch: str) -> dict[str, Any]:
    return {
        key.removeprefix(f"{arch}."): value
        for key, value in file.metadata.items()
        if key.startswith((f"{arch}.", "tokenizer.")) and key != KERNEL_CONFIG_KEY  # tiles are of the weights' type
    }


def _equal(one: Any, other: Any) -> bool:  # noqa: ANN401  # whatever a file may hold
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | float):  # bit by bit: NaN that was copied is no difference
        mine, theirs = np.asarray(one), np.asarray(other)
        return mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()
    if isinstance(one, container.TypedArray):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _told(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    value = values[key]
    return f"{value!r:.60}" if isinstance(value, str | int | float) else f"an array of {len(value)}"
