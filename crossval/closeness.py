"""How near two computations of logits have to be to count as the same: the three limits of a lane, judged together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from crossval import envelope
from crossval.envelope import Envelope
from crossval.metrics import Float64
from receipts.running import running_median


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """Limits of the relative L2 of logits by position.

    Attributes:
        median: Of the median over all positions.
        running: Of the running median over positions in a row.
        largest: Of the largest.
    """

    median: Envelope
    running: Envelope
    largest: Envelope

    @classmethod
    def over(
        cls, activation: str, head: str, *, median: float, running: float, largest: float, told: float = 0.0
    ) -> Self:
        """Limits over a noise of these three values; numerics and `told` as in `envelope.logits_max`."""
        return cls(
            median=envelope.logits_median(activation, median, told),
            running=envelope.logits_running(activation, running, told),
            largest=envelope.logits_max(activation, head, largest, told),
        )

    def measured(self, parts: Sequence[Float64]) -> list[tuple[Envelope, float]]:
        """Each limit with what it bounds.

        Args:
            parts: Relative L2 by position, of positions in a row each.
        """
        every = np.concatenate(parts)
        running = max((running_median(part.tolist()) for part in parts), default=0.0)
        values = (float(np.median(every)), running, float(every.max()))
        return list(zip((self.median, self.running, self.largest), values, strict=True))

    def hold(self, parts: Sequence[Float64]) -> bool:
        """Whether all three limits hold."""
        return all(limit.holds(value) for limit, value in self.measured(parts))
