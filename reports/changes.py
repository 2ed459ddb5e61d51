"""Where a series changed: Pettitt's test, applied again to each side of what it finds.

Ranks are taken, so that one outlier moves nothing, no distribution is assumed, and a series of equal values has no
change. U(k) = 2·(r₁ + … + r_k) − k·(n + 1) compares the first k values with the others; K is the largest |U|, and the
chance to see as much without a change is at most about 2·exp(−6K² / (n³ + n²)) (Pettitt 1979).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import exp

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Chance of a mark where nothing changed: one series in a thousand.
ALPHA = 1e-3
#: Values on each side of a mark: fewer cannot be told from an accident.
LEAST = 5
#: Medians that are nearer than this are the same to anybody who has to act: 1 %.
SMALLEST = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A place where a series changed.

    Attributes:
        at: Index of the first value behind it.
        before, after: Medians of the stretches on both sides.
        p: Chance to see as much without a change.
    """

    at: int
    before: float
    after: float
    p: float


def changes(values: NDArray[np.float64], *, alpha: float = ALPHA) -> tuple[Change, ...]:
    """The changes of a series, in order.

    Args:
        values: Finite, oldest first.
        alpha: Chance of a mark in a series in which nothing changed.
    """
    marks = sorted(_marks(values, alpha).items())
    ends = [0, *(at for at, _ in marks), len(values)]
    medians = [float(np.median(values[a:b])) for a, b in pairwise(ends) if b > a]
    return tuple(
        Change(at=at, before=medians[i], after=medians[i + 1], p=p)
        for i, (at, p) in enumerate(marks)
        if not np.isclose(medians[i], medians[i + 1], rtol=SMALLEST, atol=0)
    )


def _marks(values: NDArray[np.float64], alpha: float) -> dict[int, float]:
    """Index → p of every split, each side of a split searched again."""
    marks: dict[int, float] = {}
    stretches = [(0, len(values))]
    while stretches:
        start, end = stretches.pop()
        found = pettitt(values[start:end])
        if found is not None and found[1] < alpha:
            at = start + found[0]
            marks[at] = found[1]
            stretches += [(start, at), (at, end)]
    return marks


def pettitt(values: NDArray[np.float64]) -> tuple[int, float] | None:
    """Index of the first value behind the likeliest change, and its p; None for a series too short for one."""
    n = len(values)
    if n < 2 * LEAST:
        return None
    ranks = pd.Series(values).rank().to_numpy()
    u = np.abs(2 * np.cumsum(ranks) - np.arange(1, n + 1) * (n + 1))[LEAST - 1 : n - LEAST]
    at = int(u.argmax())
    return at + LEAST, min(1.0, 2 * exp(-6 * float(u[at]) ** 2 / (n**3 + n**2)))
