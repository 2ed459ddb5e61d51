"""Arrays that begin at a cache line: a vector that lies across two of them takes twice as long to load."""

from __future__ import annotations

import math
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
