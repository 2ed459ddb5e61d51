"""The running median: what half of so many positions in a row exceed, where that is most.

A defect that shows from some position on moves all of those that follow it. The median over every position is still
that of those before, and the largest may be a flipped rounding's; the median of a window tells.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

#: Positions in a row that are looked at together.
WINDOW = 32


def running_median(values: Sequence[float]) -> float:
    """Largest median of `WINDOW` values in a row; 0 where there are fewer."""
    windows = (values[i : i + WINDOW] for i in range(len(values) - WINDOW + 1))
    return max(map(statistics.median, windows), default=0.0)
