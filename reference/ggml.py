"""What is asked of libggml itself, by ctypes: tensors in the middle of a graph, and its own reading of a GGUF file.

The binding exposes neither. Of `ggml_tensor` only the first 80 bytes are assumed (type, buffer, ne, nb); name,
operation, size and data come from functions, and the extents must multiply to what `ggml_nelements` says. The
library that is asked is the one that libllama has mapped, not another copy of the same name.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reference.runner import Float32, ReferenceUnavailableError, Rows, span

F32 = 0

_LIBRARY = re.compile(r"lib(llama|ggml)[\w-]*\.(so|dylib)[\d.]*|lib(llama|ggml)[\w.-]*\.dylib")


class TensorHead(ctypes.Structure):
    """The first 80 bytes of `ggml_tensor`: ne are extents, fastest first; nb are strides in bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


class _TypeTraits(ctypes.Structure):
    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_P, _S, _I64, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_size_t
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_get_name": (_S, (_P,)),
    "ggml_op_desc": (_S, (_P,)),
    "ggml_nbytes": (_SIZE, (_P,)),
    "ggml_nelements": (_I64, (_P,)),
    "ggml_backend_tensor_get": (None, (_P, _P, _SIZE, _SIZE)),
    "ggml_type_name": (_S, (ctypes.c_int,)),
    "ggml_blck_size": (_I64, (ctypes.c_int,)),
    "ggml_type_size": (_SIZE, (ctypes.c_int,)),
    "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), (ctypes.c_int,)),
    "ggml_version": (_S, ()),
    "ggml_commit": (_S, ()),
    "gguf_init_from_file": (_P, (_S, _InitParams)),
    "gguf_free": (None, (_P,)),
    "gguf_get_data_offset": (_SIZE, (_P,)),
    "gguf_get_n_tensors": (_I64, (_P,)),
    "gguf_get_tensor_name": (_S, (_P, _I64)),
    "gguf_get_tensor_type": (ctypes.c_int, (_P, _I64)),
    "gguf_get_tensor_ne": (ctypes.POINTER(_I64), (_P, _I64)),
    "gguf_get_tensor_offset": (_SIZE, (_P, _I64)),
    "gguf_get_tensor_size": (_SIZE, (_P, _I64)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as ggml's own parser sees it in a file.

    Attributes:
        type: Number of its type.
        type_name: Name of its type as ggml spells it (`tq2_0`).
        shape: [rows, columns]; a vector is one row.
        offset: First byte in the file.
        n_bytes: Size in the file.
    """

    type: int
    type_name: str
    shape: tuple[int, int]
    offset: int
    n_bytes: int


class Ggml:
    """The mapped libggml-base.

    Args:
        folder: Where libllama was loaded from.

    Raises:
        ReferenceUnavailableError: If it is not there, or lacks a function.
    """

    def __init__(self, folder: Path) -> None:
        self.files = mapped_libraries(folder)
        base = next((file for file in self.files if file.name.startswith("libggml-base")), None)
        if base is None:
            raise ReferenceUnavailableError(f"libllama in {folder} came without libggml-base")
        self._library = ctypes.CDLL(str(base))
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise ReferenceUnavailableError(f"{base} has no {name}: it is too old or too new") from error
            function.restype, function.argtypes = result, arguments

    @property
    def version(self) -> str:
        """Version and commit of ggml."""
        return f"{self._library.ggml_version().decode()} ({self._library.ggml_commit().decode()})"

    def name(self, tensor: int) -> str:
        """Name of a tensor in the graph, at most 63 bytes."""
        return bytes(self._library.ggml_get_name(tensor)).decode("utf-8", "replace")

    def operation(self, tensor: int) -> str:
        """What computes it: `MUL_MAT`, `ROPE`, `SWIGLU`, ….

        For unary and gated operations the function's own name.
        """
        return bytes(self._library.ggml_op_desc(tensor)).decode()

    def read(self, tensor: int) -> tuple[Float32, tuple[int, ...]]:
        """The values of a contiguous float32 tensor, flat, and its extents, fastest first.

        Raises:
            ValueError: If it is of another type, has gaps, or is not laid out as assumed.
        """
        head = TensorHead.from_address(tensor)
        extents = tuple(head.ne)
        count = math.prod(extents)
        if head.type != F32 or count != self._library.ggml_nelements(tensor):
            raise ValueError(f"{self.name(tensor)} has type {head.type} and extents {extents}")
        if count * 4 != self._library.ggml_nbytes(tensor):
            raise ValueError(f"{self.name(tensor)} has gaps: extents {extents}, strides {tuple(head.nb)}")
        values = np.empty(count, np.float32)
        self._library.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
        return values, extents

    def tensors(self, path: Path) -> dict[str, StoredTensor]:
        """Every tensor of a GGUF file. ggml may abort the process on a damaged one.

        Raises:
            ReferenceUnavailableError: If ggml refuses the file.
        """
        lib = self._library
        context = lib.gguf_init_from_file(str(path).encode(), _InitParams(no_alloc=True, ctx=None))
        if not context:
            raise ReferenceUnavailableError(f"ggml cannot read {path}")
        try:
            start = lib.gguf_get_data_offset(context)
            return {
                lib.gguf_get_tensor_name(context, i).decode("utf-8", "replace"): self._stored(context, i, start)
                for i in range(lib.gguf_get_n_tensors(context))
            }
        finally:
            lib.gguf_free(context)

    def _stored(self, context: int, i: int, start: int) -> StoredTensor:
        lib = self._library
        number = lib.gguf_get_tensor_type(context, i)
        columns, *rest = lib.gguf_get_tensor_ne(context, i)[:4]
        return StoredTensor(
            type=number,
            type_name=lib.ggml_type_name(number).decode(),
            shape=(math.prod(rest), columns),
            offset=start + lib.gguf_get_tensor_offset(context, i),
            n_bytes=lib.gguf_get_tensor_size(context, i),
        )

    def decode(self, path: Path, stored: StoredTensor, rows: Rows = None) -> Float32:
        """The values of a tensor, or of some of its rows, by ggml's own decoder, [rows, columns].

        Raises:
            ReferenceUnavailableError: If ggml has no decoder for its type.
        """
        start, stop, _ = span(rows).indices(stored.shape[0])
        n_row = max(stop - start, 0)
        each = stored.n_bytes // max(stored.shape[0], 1)  # every type of ggml's keeps a row together
        raw = np.fromfile(path, np.uint8, n_row * each, offset=stored.offset + start * each)
        if raw.size != n_row * each:
            raise ReferenceUnavailableError(f"{path} ends inside a tensor")
        if stored.type == F32:
            return raw.view(np.float32).reshape(n_row, stored.shape[1])
        traits = self._library.ggml_get_type_traits(stored.type).contents
        sizes = (self._library.ggml_blck_size(stored.type), self._library.ggml_type_size(stored.type))
        laid_out = traits.type_name == stored.type_name.encode() and (traits.blck_size, traits.type_size) == sizes
        if not laid_out or not traits.to_float:
            raise ReferenceUnavailableError(f"this ggml does not decode {stored.type_name}")
        values = np.empty((n_row, stored.shape[1]), np.float32)
        traits.to_float(raw.ctypes.data, values.ctypes.data, values.size)
        return values


def mapped_libraries(folder: Path, pid: int | None = None) -> tuple[Path, ...]:
    """The files of libllama and libggml that a process has mapped; where no list is kept, those of the folder.

    Args:
        folder: Where they were loaded from.
        pid: Of the process; None for this one.
    """
    try:
        lines = Path(f"/proc/{pid or 'self'}/maps").read_text().splitlines()
    except OSError:
        return tuple(sorted({path.resolve() for path in folder.iterdir() if _LIBRARY.fullmatch(path.name)}))
    names = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return tuple(sorted(Path(name) for name in names if _LIBRARY.fullmatch(Path(name).name)))


def digest(files: tuple[Path, ...]) -> str:
    """One hash over the contents of several files, whatever they are called and wherever they lie."""
    return hashlib.sha256("\n".join(sorted(map(file_sha256, files))).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
