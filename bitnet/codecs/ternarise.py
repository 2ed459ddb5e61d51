"""From dense weights to trits and one scale, as BitNet does it, and what that costs.

Absmean: scale = mean|w|, trit = clip(round half to even(w / scale), −1, 1). Done again to its own result this would
shrink the scale by the share of zeros (a defect that engines have shipped), so a matrix that is ternary already is
taken as it is: both ways are idempotent, and exact on ternary weights.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from bitnet.codecs.base import Float32, Ternary, as_ternary, check_finite, chunks
from bitnet.errors import UsageError

How = Literal["absmean", "exact"]
_LEAST_SCALE = 1e-5  # BitNet's own: keeps the quotient finite for weights that are all but zero


def ternarise(weights: Float32, how: How = "absmean") -> Ternary:
    """Trits and one scale.

    Args:
        weights: [n_row, n_col] f32.
        how: `absmean`, or `exact` for weights that must be ternary already.

    Raises:
        UsageError: A weight is NaN or infinite, or `exact` and there is more than one magnitude.
    """
    if how not in get_args(How):
        raise UsageError(f"how is {how!r}", remedy=f"one of {', '.join(get_args(How))}")
    dense = check_finite(weights)
    found = as_ternary(dense)
    if found is not None:
        return Ternary(trits=found[0], scale=found[1])
    if how == "exact":
        raise UsageError("the matrix is not ternary: it has more than one magnitude", remedy="use absmean")
    total = sum(float(np.abs(dense[part]).sum(dtype=np.float64)) for part in chunks(*dense.shape))
    scale = np.float32(max(total / dense.size, _LEAST_SCALE))
    trits = np.empty(dense.shape, np.int8)
    for part in chunks(*dense.shape):
        trits[part] = np.clip(np.rint(dense[part] / scale), -1, 1)
    return Ternary(trits=trits, scale=float(scale))


def ternarisation_error(weights: Float32, ternary: Ternary) -> float:
    """What ternarising costs by itself: mean (w − trit × scale)² ÷ mean w²; 0 if they were ternary."""
    lost = power = 0.0
    for part in chunks(*weights.shape):
        dense = weights[part].astype(np.float64)
        kept = ternary.trits[part] * np.float64(np.float32(ternary.scale if ternary.scale is not None else 1.0))
        lost += float(((dense - kept) ** 2).sum())
        power += float((dense**2).sum())
    return lost / power if power else 0.0
