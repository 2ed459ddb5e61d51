"""How sure a median is: an interval from the order of the values alone, whatever their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

#: Probability that the interval holds the true median, where there are values enough for it.
CONFIDENCE = 0.95


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics that hold the median with a probability of at least `CONFIDENCE`.

    The number of values below the true median is binomial with p = 1/2. With fewer than six values no interval is that
    sure, and the smallest and the largest are given.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("the interval of no values")
    ranked, n = sorted(values), len(values)
    below, cut = 0.0, 0
    for k in range(n // 2):
        below += comb(n, k) / 2**n  # probability that at most k values lie below the median
        if 2 * below > 1 - CONFIDENCE:
            break
        cut = k
    return ranked[cut], ranked[n - 1 - cut]


def rates(tokens: int, seconds: Sequence[float]) -> tuple[float, ...]:
    """Tokens per second of each repetition; none where something took no time."""
    return tuple(tokens / second for second in seconds) if all(second > 0 for second in seconds) else ()
