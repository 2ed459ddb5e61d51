"""Float matrices read as ternary, a few rows at a time, so that a matrix may be larger than memory.

BitNet is trained on float master weights: scale = mean|w|, trit = clip(round half to even(w / scale), −1, 1). Floats
that hold one magnitude are ternary already and are taken as they are: averaging them again would shrink the scale by
the share of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.codecs.base import chunks

Float32 = NDArray[np.float32]
Trits = NDArray[np.int8]
Rows = NDArray[np.intp]

_LEAST_MEAN = np.float32(1e-5)  # below it, transformers and BitNet's own code take this for mean|w|


def as_float32(values: NDArray[Any]) -> Float32:
    """Floats of a file as float32, exactly; uint16 is bfloat16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ternarised:
    """A float matrix as a ternary one.

    Attributes:
        scale: What a trit is multiplied by.
        trits: Row numbers → trits of those rows, int8.
        exact: Whether the floats were ternary already; if not, they are taken for master weights.
    """

    scale: np.float32
    trits: Callable[[Rows | slice], Trits]
    exact: bool


def ternarise(values: NDArray[Any]) -> Ternarised | None:
    """Read a float matrix as ternary, a few rows at a time: its one magnitude, or absmean; None for NaN or infinity.

    The reciprocal of mean|w| is rounded before it is used, as transformers and BitNet's own code do it.
    """
    total, largest, magnitude, exact = 0.0, np.float32(0), np.float32(0), True
    for part in chunks(*values.shape):
        size = np.abs(as_float32(values[part]))
        total += float(size.sum(dtype=np.float64))
        largest = np.fmax(largest, size.max())
        magnitude = magnitude or largest
        exact = exact and bool(((size == 0) | (size == magnitude)).all())
    if not np.isfinite(total):
        return None
    if exact and largest > 0:
        return Ternarised(
            scale=largest, trits=lambda rows: np.sign(as_float32(values[rows])).astype(np.int8), exact=True
        )
    inverse = np.float32(1) / max(np.float32(total / values.size), _LEAST_MEAN)

    def trits(rows: Rows | slice) -> Trits:
        rounded: Float32 = np.rint(as_float32(values[rows]) * inverse)
        return np.clip(rounded, -1, 1).astype(np.int8)

    return Ternarised(scale=np.float32(1) / inverse, trits=trits, exact=False)
