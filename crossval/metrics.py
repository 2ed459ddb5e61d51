"""What is measured between two arrays: shapes must agree, NaN agrees with nothing, zero rows are no comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from receipts.tables import BINS, EDGES

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Elements of a matrix that are looked at together: their float64 copies are small whatever the matrix is.
_AT_ONCE = 1 << 22


class ShapeMismatchError(ValueError):
    """Two arrays that should hold the same thing have different shapes."""


def _pair(ours: Float32, theirs: Float32) -> tuple[Float64, Float64]:
    if ours.shape != theirs.shape:
        raise ShapeMismatchError(f"ours has shape {list(ours.shape)}, theirs {list(theirs.shape)}")
    return ours.astype(np.float64), theirs.astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor against another, [n_token, width].

    Attributes:
        compared: Number of elements.
        max_abs_err: Largest absolute difference; ∞ where either side is not a finite number.
        max_abs_ref: Largest absolute value of the reference; more where `crossval.conditioning` says so.
        worst_token, worst_index: Where the largest difference is.
        by_token: Largest absolute difference of each token.
    """

    compared: int
    max_abs_err: float
    max_abs_ref: float
    worst_token: int
    worst_index: int
    by_token: Float64

    @property
    def ratio(self) -> float:
        """max_abs_err / max_abs_ref; 0 where nothing differs, ∞ where a zero reference is missed."""
        if self.max_abs_err == 0.0:
            return 0.0
        return self.max_abs_err / self.max_abs_ref if self.max_abs_ref > 0.0 else float("inf")

    def positions(self, limit: float) -> tuple[int, ...]:
        """Tokens whose largest difference exceeds `limit` · max_abs_ref."""
        return tuple(int(t) for t in np.flatnonzero(self.by_token > limit * self.max_abs_ref))


def difference(ours: Float32, theirs: Float32) -> Difference:
    """Largest absolute difference between two tensors, and where it is.

    Raises:
        ShapeMismatchError: The shapes differ.
    """
    x, y = np.atleast_2d(ours), np.atleast_2d(theirs)
    if x.shape != y.shape:
        raise ShapeMismatchError(f"ours has shape {list(x.shape)}, theirs {list(y.shape)}")
    by_token, index, largest = np.zeros(len(x)), np.zeros(len(x), np.int64), 0.0
    for some in _blocks(x):
        a, b = _pair(x[some], y[some])
        with np.errstate(invalid="ignore"):
            error = np.abs(a - b)
        error[~(np.isfinite(a) & np.isfinite(b))] = np.inf
        index[some] = error.argmax(axis=1)
        by_token[some] = error.max(axis=1)
        largest = max(largest, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    token = int(by_token.argmax()) if x.size else 0
    return Difference(
        compared=int(x.size),
        max_abs_err=float(by_token[token]) if x.size else 0.0,
        max_abs_ref=largest,
        worst_token=token,
        worst_index=int(index[token]) if x.size else 0,
        by_token=by_token,
    )


def _blocks(values: Float32) -> Iterator[slice]:
    """Rows that are looked at together; none of an array without elements."""
    n = max(_AT_ONCE // max(values.shape[1], 1), 1)
    return (slice(i, i + n) for i in range(0, len(values) if values.size else 0, n))


def histogram(values: Float32, scale: float) -> list[int]:
    """How many values lie in each bin of `receipts.tables`, as shares of `scale`; what is not finite is in none."""
    flat, edges = values.reshape(-1, 1), np.array([-edge for edge in reversed(EDGES)] + list(EDGES))
    counts = np.zeros(BINS, np.int64)
    for some in _blocks(flat):
        shares = flat[some][np.isfinite(flat[some])].astype(np.float64) / (scale or 1.0)
        counts += np.bincount(np.searchsorted(edges, shares), minlength=BINS)
    return [int(count) for count in counts]


def relative_l2(ours: Float32, theirs: Float32) -> Float64:
    """‖ours − theirs‖ / ‖theirs‖ by row; ∞ for a row that is not finite on either side.

    Raises:
        ShapeMismatchError: The shapes differ.
    """
    a, b = _pair(ours, theirs)
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    out = np.full(len(a), np.inf)
    norm = np.linalg.norm(b[finite], axis=1)
    error = np.linalg.norm(a[finite] - b[finite], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        out[finite] = np.where(error == 0.0, 0.0, error / norm)
    return out


def max_abs(ours: Float32, theirs: Float32) -> Float64:
    """Largest absolute difference by row; ∞ for a row that is not finite on either side."""
    a, b = _pair(ours, theirs)
    with np.errstate(invalid="ignore"):
        error = np.abs(a - b)
    error[~(np.isfinite(a) & np.isfinite(b))] = np.inf
    return np.asarray(error.max(axis=1, initial=0.0), np.float64)


def log_softmax(logits: Float32) -> Float64:
    """Log-probabilities by row, float64."""
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a row with NaN or infinity becomes NaN, which no limit holds
        x = x - x.max(axis=1, keepdims=True, initial=-np.inf)
        return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)), np.float64)


def aligned(told: Float32, to: Float32) -> Float32:
    """Log-probabilities with the constant of each row that logits have: what they leave open, and nothing else.

    Raises:
        ShapeMismatchError: The shapes differ.
    """
    a, b = _pair(told, to)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so, and no limit holds it
        return np.asarray(a + (b - a).mean(axis=1, keepdims=True), np.float32)


def kl_divergence(ours: Float32, theirs: Float32) -> Float64:
    """KL(theirs ‖ ours) of the next-token distributions by row, nats; never below 0, ∞ where a row is not finite."""
    _pair(ours, theirs)
    p, q = log_softmax(theirs), log_softmax(ours)
    found = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return np.asarray(np.where(np.isnan(found), np.inf, found), np.float64)


def top1_margin(logits: Float32) -> Float64:
    """Largest logit minus the second largest, by row."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    best = np.partition(logits.astype(np.float64), -2, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], np.float64)


def best(row: Float32, k: int) -> tuple[int, ...]:
    """Ids of the k largest logits of one position, best first; of equal ones the lower id."""
    return tuple(int(i) for i in np.lexsort((np.arange(len(row)), -row))[:k])


def logits_digest(logits: Float32) -> str:
    """sha256 over float32 little-endian logits, row by row."""
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").data).hexdigest()


def negative_log_likelihood(logits: Float32, ids: tuple[int, ...]) -> Float64:
    """−log p of each token after the first, nats: row i of the logits scores ids[i + 1]."""
    following = np.asarray(ids[1:], np.int64)
    scores = log_softmax(logits[: len(following)])
    return np.asarray(-scores[np.arange(len(following)), following], np.float64)
