"""The exact best k logits without reading the whole head: integer rows bound every logit, few rows are computed.

Let w be a row of the head (float16, bfloat16 or float32, exact as real numbers), x the input, and y the logit as
`kernels.head.dense_row` computes it. Kept for every row are small integers c with a scale s, ŵ = c · s, and

    E ≥ ‖w − ŵ‖,    N ≥ ‖ŵ‖.

For an input, integers q with a step t (a power of two), x̂ = q · t, and X ≥ ‖x‖, D ≥ ‖x − x̂‖. The integer product c ·
q is exact: |q| ≤ A with A · levels · n < 2^31. Let ŷ = s · t · (c · q).

**Claim.** |y − ŷ| ≤ B = E · (1 + γ) · X + N · (D + γ · X) + η, with u = 2^-24, m = n / 16 + 4, γ = m·u / (1 − m·u), η
= n · 2^-149.

*Proof.* (a) Each product w_i · x_i passes through at most n / 16 fused multiply-adds of its lane and 4 additions of
the tree; each is rounded once, by a factor 1 + δ with |δ| ≤ u, or, where a multiply-add gives a subnormal number, by
at most 2^-150 more. Additions that give subnormal numbers are exact. So |y − w·x| ≤ γ · Σ |w_i · x_i| + n · 2^-149 ≤ γ
· ‖w‖ · X + η by Cauchy and Schwarz, and ‖w‖ ≤ N + E. Nothing overflows, because every partial sum is at most (1 + γ) ·
(N + E) · X, and inputs where that could reach 2^127 are not screened. (b) w·x − ŷ = (w − ŵ)·x + ŵ·(x − x̂), at most E
· X + N · D. The two together are B. ∎

**Rounding of the bound itself.** All of it is computed in float64, whose unit is 2^-53. Errors and norms are sums of
fewer than 2^20 squares, so a relative 2^-30 covers them, and another 2^-30 the few operations on bounds; ŷ takes two
roundings, at most 2^-51 · |ŷ| ≤ 2^-51 · N · (X + D), and so does each sum ŷ ± B; 2^-48 · N · (X + D) is added for all
of them. x − x̂ is exact: t is a power of two, and where q_i ≠ 0, x_i and q_i · t span less than 53 bits. w − c · s is
rounded once, relative to itself.

**Selection.** Let L be the k-th largest lower bound ŷ − B. At least k rows have y ≥ L. A row whose upper bound lies
below L has y < L, so it is not among the best k, whatever the order among equal logits; every other row is computed
exactly as the full head computes it. Hence ids, order and bits are those of the full head. A row that has no bound
(its weights are not finite) is always computed, and so is everything where x is zero or not finite, or where so many
rows are left that the full pass is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from bitnet.linear import Backend, DenseMatrix, Float32, Matrix

#: Largest magnitude of a code.
LEVELS = 127
#: Rows computed one by one cost more than the whole head in order, beyond this share of them.
_FULL_PASS = 1 / 8
_SLACK = 1 + 2.0**-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A head's rows as small integers.

    Attributes:
        matrix: The head itself, with the tensor scale 1.
        codes: [n_row, n_col padded to 32] int8.
        scale: [n_row] f32.
        error, norm: [n_row] f64, E and N of the module's text.
        largest: The largest finite N + E.
    """

    matrix: DenseMatrix
    codes: NDArray[np.int8]
    scale: Float32
    error: NDArray[np.float64]
    norm: NDArray[np.float64]
    largest: float

    @property
    def n_bytes(self) -> int:
        """Bytes read to bound all logits."""
        return self.codes.nbytes + self.scale.nbytes + self.error.nbytes + self.norm.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input as integers, with the constants of the bound c0 + c1 · E + c2 · N."""

    q: NDArray[np.int16]
    step: float
    c0: float
    c1: float
    c2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """The best logits.

    Attributes:
        ids: [k] by falling logit, equal ones by rising id; NaN counts as −∞.
        logits: [k] f32, the bits of the full head.
        rescored: Rows that were computed from the head's own weights.
    """

    ids: NDArray[np.int64]
    logits: Float32
    rescored: int


def build(matrix: Matrix, backend: Backend) -> Screen | None:
    """The integer rows of a head, or None where it has none: only float rows without a tensor scale are screened."""
    if not isinstance(matrix, DenseMatrix) or matrix.scale != 1 or backend.device != "cpu":
        return None
    width = -(-matrix.n_col // 32) * 32
    codes = np.zeros((matrix.n_row, width), np.int8)
    scale = np.empty(matrix.n_row, np.float32)
    error, norm = np.empty(matrix.n_row), np.empty(matrix.n_row)
    kernel = _kernels().quantise_rows
    backend.split(
        matrix.n_row,
        matrix.n_row * matrix.n_col,
        lambda row, end: kernel(matrix.data, LEVELS, row, end, codes, scale, error, norm),
    )
    error *= _SLACK
    norm *= _SLACK
    finite = error < np.inf
    largest = float((error + norm)[finite].max()) if finite.any() else 0.0
    return Screen(matrix=matrix, codes=codes, scale=scale, error=error, norm=norm, largest=largest)


def prepare(screen: Screen, x: Float32) -> Input | None:
    """An input [n_col] f32 as integers; None where nothing is proven: it is zero or not finite, or could overflow."""
    n, width = len(x), screen.codes.shape[1]
    most = float(np.abs(x).max())
    if not 0 < most < np.inf:
        return None
    amplitude = min(32767, (2**31 - 1) // (LEVELS * width))
    step = 2.0 ** math.ceil(math.log2(most / amplitude))
    step = step if most <= step * amplitude else 2 * step
    exact = x.astype(np.float64)
    q = np.rint(exact / step)
    size = math.sqrt(float(exact @ exact)) * _SLACK
    missed = exact - q * step
    residue = math.sqrt(float(missed @ missed)) * _SLACK
    rounding = (n / 16 + 4) * 2.0**-24
    gamma = rounding / (1 - rounding)
    if amplitude < 127 or rounding > 0.01 or (1 + gamma) * screen.largest * size >= 2.0**127:
        return None
    codes = np.zeros(width, np.int16)
    codes[:n] = q
    return Input(
        q=codes,
        step=step,
        c0=n * 2.0**-148,
        c1=(1 + gamma) * size * _SLACK,
        c2=(residue + gamma * size + 2.0**-48 * (size + residue)) * _SLACK,
    )


def top(screen: Screen, x: Float32, counts: Sequence[int], backend: Backend) -> list[Top]:
    """The best logits of some inputs; the integer rows are read once for all of them.

    Args:
        screen: The head.
        x: [n, n_col] f32, rounded as the head's numerics ask for.
        counts: How many of each, at least 1.
        backend: Threads.
    """
    x = np.ascontiguousarray(x, np.float32)
    kept = _candidates(screen, x, counts, backend)
    return [_best(screen, row, k, rows, backend) for row, k, rows in zip(x, counts, kept, strict=True)]


def _best(screen: Screen, x: Float32, k: int, rows: NDArray[np.int64] | None, backend: Backend) -> Top:
    """The best k of some rows of the head, or of all."""
    matrix = screen.matrix
    n_row, n_col = matrix.n_row, matrix.n_col
    if rows is None:
        logits, dense = np.empty((1, n_row), np.float32), backend.kernels.dense
        backend.split(n_row, n_row * n_col, lambda i, j: dense(matrix.data, x[None], i, j, logits))
        rows, found = np.arange(n_row), logits[0]
    else:
        kept, found = rows, np.empty(len(rows), np.float32)
        kernel = _kernels().dense_at
        backend.split(len(kept), len(kept) * n_col, lambda i, j: kernel(matrix.data, x, kept, i, j, found))
    ranked = np.where(np.isnan(found), np.float32(-np.inf), found)
    order = np.lexsort((rows, -ranked))[:k] if k > 1 else np.array([ranked.argmax()])
    return Top(ids=rows[order], logits=found[order], rescored=len(rows))


def _candidates(screen: Screen, x: Float32, counts: Sequence[int], backend: Backend) -> list[NDArray[np.int64] | None]:
    """For each input the rows, rising, that may be among its best; None where all must be computed."""
    n_row = screen.matrix.n_row
    prepared = [prepare(screen, row) if k < n_row else None for row, k in zip(x, counts, strict=True)]
    usable = [p for p in prepared if p is not None]
    found: list[NDArray[np.int64] | None] = [None] * len(x)
    if not usable:
        return found
    lower, upper = np.empty((2, len(usable), n_row))
    q = np.stack([p.q for p in usable])
    constants = [np.array([getattr(p, name) for p in usable]) for name in ("step", "c0", "c1", "c2")]
    rows, kernel = (screen.codes, screen.scale, screen.error, screen.norm), _kernels().screen
    work = screen.codes.size * len(usable)
    backend.split(n_row, work, lambda i, j: kernel(*rows, q, *constants, i, j, lower, upper))
    places = iter(range(len(usable)))
    for t, k in enumerate(counts):
        if prepared[t] is None:
            continue
        place = next(places)
        low = lower[place]
        threshold = low.max() if k == 1 else np.partition(low, n_row - k)[n_row - k]
        kept = np.flatnonzero(upper[place] >= threshold)
        found[t] = kept if len(kept) <= max(k, n_row * _FULL_PASS) else None
    return found


def _kernels() -> ModuleType:
    from bitnet.kernels import head

    return head
