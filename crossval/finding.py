"""What is wrong with one operation, said so that a person can act: positions, rows, heads, and the shape of the error.

`walk` goes through captured operations in graph order, one layer of weights and of computed values at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crossval import envelope
from crossval.metrics import Float32
from crossval.replay import Replay
from reference.runner import TapKey

#: Taps whose columns are heads side by side.
_HEADS = ("q", "k", "v", "q_rope", "k_rope", "kqv_out", "attn_sub_norm")
#: A ratio is constant if it varies by less: float32 noise is 1e-7, a rounding flipped by int8 is 1e-2.
_CONSTANT = 1e-4
#: A factor that rounds to 1 is what differs if it leaves less than this share of the difference.
_EXPLAINED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One operation out of its envelope.

    Attributes:
        key: Tap and layer.
        ratio: max|error| / max|reference|, as `conditioning.judged` measures it.
        positions: Tokens that are wrong.
        rows: Columns of the value (rows of the matrix that made it) that are wrong.
        heads: Heads that hold them; empty where columns are no heads.
        worst: (token, column) of the largest difference, with what was expected and found there.
        expected, found: The two values there.
        integer: Whether the operation is an exact sum, so that any difference is an error.
        words: What the error looks like.
    """

    key: TapKey
    ratio: float
    positions: tuple[int, ...]
    rows: tuple[int, ...]
    heads: tuple[int, ...]
    worst: tuple[int, int]
    expected: float
    found: float
    integer: bool
    words: str


def walk(replay: Replay) -> Iterator[Finding]:
    """Every captured operation that is out of its locked envelope, in graph order."""
    made: dict[TapKey, Float32] = {}
    for key in replay.keys:
        if key[0] in replay.oracle.absent:
            continue
        if key[0] == "attn_norm":
            made.clear()  # nothing but captured values crosses into a new layer
        expected = replay.operation(key, replay.oracle, made)
        found = finding(key, expected, replay.outputs[key], replay)
        if found is not None:
            yield found


def finding(key: TapKey, expected: Float32, found: Float32, replay: Replay) -> Finding | None:
    """One operation against the contract; None inside its envelope."""
    limit = envelope.LOCKED_OPERATION
    d = replay.judged(key, expected, found)
    if limit.holds(d.ratio):
        return None
    with np.errstate(invalid="ignore"):
        error = np.abs(expected.astype(np.float64) - found)
    wrong = ~(error <= limit.limit * d.max_abs_ref)  # NaN is wrong
    rows = np.flatnonzero(wrong.any(axis=0))
    heads: tuple[int, ...] = ()
    if key[0] in _HEADS:
        heads = tuple(np.unique(rows // replay.oracle.hyper.head_dim).tolist())
    at = d.worst_token, d.worst_index
    return Finding(
        key=key,
        ratio=d.ratio,
        positions=tuple(np.flatnonzero(wrong.any(axis=1)).tolist()),
        rows=tuple(rows.tolist()),
        heads=heads,
        worst=at,
        expected=float(expected[at]),
        found=float(found[at]),
        integer=False,
        words=_words(expected, found, wrong),
    )


def _words(expected: Float32, found: Float32, wrong: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
    a, b = expected.astype(np.float64), found.astype(np.float64)
    broken = int((~np.isfinite(b)).sum())
    if broken:
        return f"{broken} of {b.size} values are not finite"
    if not b.any():
        return "every value is zero"
    if (b == b.reshape(-1)[0]).all():
        return "every value is the same"
    scale = float((a * b).sum() / (a * a).sum()) if a.any() else 0.0
    share, left, apart = wrong.mean(), np.linalg.norm(b - scale * a), np.linalg.norm(b - a)
    if scale and left < _CONSTANT * np.linalg.norm(b):
        factor = f"{scale:.4g}"
        if factor == "1":
            if left > _EXPLAINED * apart:
                return f"{share:.0%} of the values are wrong, by {apart / np.linalg.norm(b):.2g} of their size"
            factor = f"1 {'+' if scale > 1.0 else '−'} {abs(scale - 1.0):.2g}"
        return f"it is {factor} times what it should be, everywhere"
    correlation = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b) or 1.0))
    return f"{share:.0%} of the values are wrong; cosine {correlation:.4f}"
