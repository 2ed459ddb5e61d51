"""Memory for arrays: from the beginning of a cache line on, and in huge pages.

A vector that lies across two cache lines takes twice as long to load.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Bytes of a cache line.
ALIGNMENT = 64


def aligned(shape: tuple[int, ...], dtype: DTypeLike = np.uint8, *, zeros: bool = False) -> NDArray[Any]:
    """An array that begins at a cache line.

    Args:
        shape: Its shape.
        dtype: Its type.
        zeros: Whether it holds zeros, which cost nothing before they are read; else what lay there.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    store = (np.zeros if zeros else np.empty)(size + ALIGNMENT, np.uint8)
    start = -store.ctypes.data % ALIGNMENT
    return store[start : start + size].view(dtype).reshape(shape)


def pages(size: int) -> NDArray[np.uint8]:
    """Memory of its own, that the system gives when it is first written: in huge pages where it has them."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # Python's own choice, shared memory, has huge pages nowhere
    memory = mmap.mmap(-1, size, flags=private)
    want_huge_pages(memory)
    return np.frombuffer(memory, np.uint8)


def want_huge_pages(memory: mmap.mmap) -> None:
    """Ask for huge pages; a system without them gives others."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
