"""The engine with its operations watched, against itself as users run it: the premise of comparing operations.

Unwatched, its layers run as one compiled call; watched, one operation after the other. What is compared, located and
attributed is of the watched one, and says nothing of the other unless both give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from crossval.envelope import SAME_UNWATCHED
from crossval.lane import Lane
from crossval.metrics import Float32, relative_l2
from receipts.record import Rung
from reference.runner import Request


def otherwise_unwatched(lane: Lane, requests: Iterable[tuple[str, Request]]) -> Rung | None:
    """The rung of operations where the engine computes other logits with them watched; None where it does not.

    Args:
        lane: Whose engine is run twice a request.
        requests: Name of the case, and the request with its operations watched.

    Raises:
        ShapeMismatchError: The two have different shapes.
    """
    compared, differing, largest, where = 0, 0, 0.0, ""
    for case, request in requests:
        lane.progress(f"operations of {case}, watched and unwatched")
        watched, alone = (lane.engine.run(asked).logits for asked in (request, replace(request, taps=False)))
        apart = relative_l2(alone, watched)
        other = _other_bits(watched, alone)
        compared, differing = compared + len(other), differing + int(other.sum())
        if other.any():
            largest = max(largest, float(apart[other].max()))
            where = where or f"{case}, position {int(other.argmax())}"
    if SAME_UNWATCHED.holds(differing):
        return None
    return Rung(
        name="operations",
        outcome="fail",
        why=f"the engine's logits at {differing} of {compared} positions, the first in {where}, differ by up to "
        f"{largest:.1e} from its own when its operations are watched: these are not the ones that it computes",
        metric=SAME_UNWATCHED.metric,
        measured=float(differing),
        limit=SAME_UNWATCHED.limit,
        compared=compared,
    )


def _other_bits(a: Float32, b: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Rows that have other bits; one NaN is as good as another."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32) != np.ascontiguousarray(b, np.float32).view(np.uint32)
    return np.asarray((bits & ~(np.isnan(a) & np.isnan(b))).any(axis=1))
