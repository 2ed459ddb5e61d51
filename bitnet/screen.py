"""The exact best k logits without reading the whole head: integer rows bound every logit, few rows are computed.

Let w be a row of the head (float16, bfloat16 or float32, exact as real numbers), x the input, and y the logit as
`kernels.head.dense_row` computes it. Kept for every row are integers c of 8 bits with a scale s. Those are held in two
parts, c = 4h + l − 128, so that the upper six bits can be read without the lower two, as ĉ = 4h − 126.5. Let d be c or
ĉ, ŵ = d · s, and

    E ≥ ‖w − ŵ‖ (one number for each of the two),    N ≥ ‖ŵ‖ (one for both).

For an input, integers q with a step t (a number of 8 bits), x̂ = q · t, and X ≥ ‖x‖, D ≥ ‖x − x̂‖. The product of
integers 2d · q is exact: q is a or 128a + b, |a| ≤ 127 and |b| ≤ 64, and products of h or l and a or b stay below 2^31
where rows have less than 2^17 columns; they are put together in 64 bits. Let ŷ = s · t · (d · q).

**Claim.** |y − ŷ| ≤ B = E · (1 + γ) · X + N · (D + γ · X) + η, with u = 2^-24, m = n / 16 + 4, γ = m·u / (1 − m·u), η
= n · 2^-149.

*Proof.* (a) Each product w_i · x_i passes through at most n / 16 fused multiply-adds of its lane and 4 additions of
the tree; each is rounded once, by a factor 1 + δ with |δ| ≤ u, or, where a multiply-add gives a subnormal number, by
at most 2^-150 more. Additions that give subnormal numbers are exact. So |y − w·x| ≤ γ · Σ |w_i · x_i| + n · 2^-149 ≤ γ
· ‖w‖ · X + η by Cauchy and Schwarz, and ‖w‖ ≤ N + E. Nothing overflows, because every partial sum is at most (1 + γ) ·
(N + E) · X, and inputs where that could reach 2^127 are not screened. (b) w·x − ŷ = (w − ŵ)·x + ŵ·(x − x̂), at most E
· X + N · D. The two together are B. ∎

Bounding w − ŵ as a whole is tighter than bounding w − c · s and what l adds each for itself: the two are nearly at
right angles, and ‖w − ĉ · s‖ is hardly more than the larger of them.

**Rounding of the bound itself.** All of it is computed in float64, whose unit is 2^-53; E and N are kept in float32,
rounded up. Errors and norms are sums of fewer than 2^20 squares, so a relative 2^-30 covers them, and another 2^-30 the
few operations on bounds; ŷ takes two roundings, at most 2^-51 · |ŷ| ≤ 2^-51 · N · (X + D), and so does each sum ŷ ± B;
2^-48 · N · (X + D) is added for all of them. x − x̂ is exact: x_i has 24 bits, q_i · t at most 22, and where q_i ≠ 0 the
two span less than 53. w − d · s is rounded once, relative to itself (2d has 8 bits, s has 24).

**Selection.** In three steps:

1. The upper bounds ŷ + B of all rows from ĉ: six bits a weight are read. The k rows whose ŷ is largest, of those that
   have a bound, are computed as the full head computes them; L is the smallest of their logits.
2. Rows whose upper bound reaches L get another one from c: two bits more of those rows are read.
3. Rows whose second bound reaches L are computed, and the best k of them are the result.

In both, q is a alone, half the arithmetic, where that widens the bounds by little: where D/X is small beside the usual
E/N of ĉ.

At least k rows have y ≥ L, whichever rows those of step 1 are: a poor choice costs time alone. A row one of whose upper
bounds lies below L has y < L, so it is not among the best k, whatever the order among equal logits; every other row is
computed exactly as the full head computes it. Hence ids, order and bits are those of the full head. A row that has no
bound (its weights are not finite) is always computed, and so is everything where x is zero or not finite, where fewer
than k rows have bounds, or where so many rows are left that the full pass is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from bitnet.kernels.alignment import aligned
from bitnet.kernels.row_tiles import Arena
from bitnet.linear import Backend, DenseMatrix, Float32, Matrix

#: Codes whose planes are stored together.
_GROUP = 128
#: Largest magnitude of an activation by the rows it takes: a ≤ 127, or 128a + b with a ≤ 64 and b ≤ 63.
_AMPLITUDES = {1: 127, 2: 128 * 64 + 63}
#: Columns from which on the products of integers might not be exact.
_TOO_WIDE = 1 << 17
#: The largest error of activations in one row, relative to the usual error of the codes of the first pass.
_NEAR_ENOUGH = 0.5
#: Rows computed one by one cost more than the whole head in order, beyond this share of them.
_FULL_PASS = 1 / 8
_SLACK = 1 + 2.0**-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A head's rows as small integers, c = 4h + l − 128.

    Attributes:
        matrix: The head itself, with the tensor scale 1.
        high, low: h and l of [n_row, n_col padded to 128] codes, packed into 6 and 2 bits (`kernels.planes`).
        scale: [n_row] f32.
        coarse, error, norm: [n_row] f32: E of the module's text for 4h − 126.5, and for c; N.
        largest: The largest finite N + E.
        usual: The usual E / N of 4h − 126.5.
    """

    matrix: DenseMatrix
    high: NDArray[np.uint8]
    low: NDArray[np.uint8]
    scale: Float32
    coarse: Float32
    error: Float32
    norm: Float32
    largest: float
    usual: float

    @property
    def width(self) -> int:
        """Codes of a row, with the padding."""
        return 4 * int(self.low.shape[1])

    @property
    def n_bytes(self) -> int:
        """Bytes read to bound all logits."""
        return self.high.nbytes + 4 * self.scale.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input as integers, with the constants of the bound c0 + c1 · E + c2 · N.

    Attributes:
        q: [1 or 2, width] int8: q[0], or 128 q[0] + q[1].
        total: Their sum.
        step, c0, c1, c2: Of the bound.
    """

    q: NDArray[np.int8]
    total: int
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
        n_bytes: Bytes that were read for them beyond `Screen.n_bytes`: of refined and of computed rows.
        refined: Rows that were bounded a second time.
        rescored: Rows that were computed from the head's own weights.
    """

    ids: NDArray[np.int64]
    logits: Float32
    n_bytes: int
    refined: int
    rescored: int


def build(matrix: Matrix, backend: Backend) -> Screen | None:
    """The integer rows of a head, or None where it has none: only float rows without a tensor scale are screened."""
    if not isinstance(matrix, DenseMatrix) or matrix.scale != 1 or backend.device != "cpu":
        return None
    n_row, groups = matrix.n_row, -(-matrix.n_col // _GROUP)
    arena = Arena()
    high, low = arena.take((n_row, groups * _GROUP * 3 // 4)), arena.take((n_row, groups * _GROUP // 4))
    scale = np.empty(n_row, np.float32)
    bounds = np.empty((3, n_row))
    kernel = _kernels().quantise_rows
    backend.split(
        n_row,
        n_row * matrix.n_col,
        lambda row, end: kernel(matrix.data, row, end, high, low, scale, *bounds),
    )
    coarse, error, norm = (_rounded_up(bound * _SLACK) for bound in bounds)
    both = error.astype(np.float64) + norm
    largest = float(both[both < np.inf].max(initial=0.0))
    some = (norm > 0) & np.isfinite(coarse)
    return Screen(
        matrix=matrix, high=high, low=low, scale=scale, coarse=coarse, error=error, norm=norm, largest=largest,
        usual=float(np.median(coarse[some] / norm[some])) if some.any() else 0.0,
    )  # fmt: skip


def prepare(screen: Screen, x: Float32) -> Input | None:
    """An input [n_col] f32 as integers; None where nothing is proven: it is zero or not finite, or could overflow."""
    most = float(np.abs(x).max())
    if not 0 < most < np.inf or len(x) >= _TOO_WIDE:
        return None
    rounding = (len(x) / 16 + 4) * 2.0**-24
    gamma = rounding / (1 - rounding)
    for n_plane, amplitude in _AMPLITUDES.items():
        mantissa, exponent = math.frexp(most / amplitude)
        step = math.ldexp(math.ceil(mantissa * 256), exponent - 8)
        q, found = np.zeros((n_plane, screen.width), np.int8), np.empty(3)
        _kernels().quantise_input(x, step, q, found)
        size, missed = (math.sqrt(square) * _SLACK for square in found[1:].tolist())
        if missed <= _NEAR_ENOUGH * screen.usual * size:
            break
    if (1 + gamma) * screen.largest * size >= 2.0**127:
        return None
    return Input(
        q=q,
        total=int(found[0]),
        step=step,
        c0=len(x) * 2.0**-148,
        c1=(1 + gamma) * size * _SLACK,
        c2=(missed + gamma * size + 2.0**-48 * (size + missed)) * _SLACK,
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
    return [_best(screen, row, k, *rows, backend) for row, k, rows in zip(x, counts, kept, strict=True)]


def _best(screen: Screen, x: Float32, k: int, rows: NDArray[np.int64] | None, refined: int, backend: Backend) -> Top:
    """The best k of some rows of the head, or of all."""
    matrix = screen.matrix
    n_row, n_col = matrix.n_row, matrix.n_col
    if rows is None:
        logits, dense = np.empty((1, n_row), np.float32), backend.kernels.dense
        backend.split(n_row, n_row * n_col, lambda i, j: dense(matrix.data, x[None], i, j, logits))
        rows, found = np.arange(n_row), logits[0]
    else:
        found = _logits(screen, x, rows, backend)
    ranked = np.where(np.isnan(found), np.float32(-np.inf), found)
    order = np.lexsort((rows, -ranked))[:k] if k > 1 else np.array([ranked.argmax()])
    n_bytes = refined * screen.low.shape[1] + len(rows) * matrix.n_bytes // n_row
    return Top(ids=rows[order], logits=found[order], n_bytes=n_bytes, refined=refined, rescored=len(rows))


def _logits(screen: Screen, x: Float32, rows: NDArray[np.int64], backend: Backend) -> Float32:
    """The logits of some rows, as the full head computes them."""
    from bitnet.kernels import head

    matrix, found = screen.matrix, np.empty(len(rows), np.float32)
    backend.split(len(rows), len(rows) * matrix.n_col, lambda i, j: head.dense_at(matrix.data, x, rows, i, j, found))
    return found


def _candidates(
    screen: Screen, x: Float32, counts: Sequence[int], backend: Backend
) -> list[tuple[NDArray[np.int64] | None, int]]:
    """For each input the rows, rising, that may be among its best, None for all; and how many were bounded twice."""
    n_row = screen.matrix.n_row
    prepared = [prepare(screen, row) if k < n_row else None for row, k in zip(x, counts, strict=True)]
    places = [t for t, p in enumerate(prepared) if p is not None]
    found: list[tuple[NDArray[np.int64] | None, int]] = [(None, 0)] * len(x)
    if not places:
        return found
    bounds = _Bounds(screen, [p for p in prepared if p is not None], [counts[t] for t in places], backend)
    least = [bounds.threshold(i, x[t]) for i, t in enumerate(places)]
    for t, limit, (rows, refined) in zip(places, least, bounds.reaching(least), strict=True):
        if limit > -np.inf:
            found[t] = (rows if len(rows) <= max(counts[t], n_row * _FULL_PASS) else None), refined
    return found


class _Bounds:
    """The first pass over all rows for some inputs, and the second over those that are left."""

    def __init__(self, screen: Screen, inputs: Sequence[Input], counts: Sequence[int], backend: Backend) -> None:
        s, n_row, n, most = screen, screen.matrix.n_row, len(inputs), max(counts)
        self._screen, self._backend, self._counts = screen, backend, np.array(counts)
        self._borders = np.cumsum([0, *(len(p.q) for p in inputs)])
        n_q = int(self._borders[-1])
        self._q = aligned((n_q + (n_q % 4 == 3), s.width), np.int8, zeros=True)  # four take less time than two and one
        np.concatenate([p.q for p in inputs], out=self._q[:n_q])
        self._total = np.array([p.total for p in inputs])
        self._constants = np.array([(p.step, p.c0, p.c1, p.c2) for p in inputs])
        self._sums = np.empty((len(self._q), n_row), np.int32)
        self._highest = np.empty((n, -(-n_row // _kernels().BLOCK)))
        self._values = np.full((backend.n_threads, n, most), -np.inf)
        self._rows = np.empty((backend.n_threads, n, most), np.int64)
        counter = _kernels().new_counter()

        def run(thread: int) -> None:
            _kernels().bound(
                backend.variant, s.high, s.scale, s.coarse, s.norm, self._q, self._borders, self._total,
                self._constants, counter, self._sums, self._highest, self._counts, self._values[thread],
                self._rows[thread],
            )  # fmt: skip

        backend.share(self._q.size * n_row, run)

    def threshold(self, i: int, x: Float32) -> float:
        """A number that enough logits of input i reach; −∞ if too few rows have a bound."""
        found = np.empty(1, np.float32)
        heaps = self._values[:, i], self._rows[:, i]
        _kernels().threshold(self._screen.matrix.data, x, self._counts[i], *heaps, found)
        return float(found[0])

    def reaching(self, least: Sequence[float]) -> list[tuple[NDArray[np.int64], int]]:
        """For each input the rows, rising, whose logits may be so large; how many were bounded twice for that.

        None of an input whose number is −∞.
        """
        s, kernels = self._screen, _kernels()
        blocks = [
            np.flatnonzero(highest >= limit) if limit > -np.inf else np.empty(0, np.int64)
            for highest, limit in zip(self._highest, least, strict=True)
        ]
        counters = [kernels.new_counter() for _ in blocks]
        shares: list[list[tuple[NDArray[np.int64], int]]] = [[] for _ in blocks]

        def run(_thread: int) -> None:
            for i, mine in enumerate(blocks):
                kept, found = np.empty(len(mine) * kernels.BLOCK, np.int64), np.zeros(2, np.int64)
                rows = slice(*self._borders[i : i + 2])
                kernels.refine(
                    self._backend.variant, s.low, s.scale, s.coarse, s.error, s.norm, self._q[rows], self._total[i],
                    self._constants[i], self._sums[rows], mine, counters[i], least[i], kept, found,
                )  # fmt: skip
                shares[i].append((kept[: found[1]], int(found[0])))

        self._backend.share(sum(map(len, blocks)) * kernels.BLOCK * s.width, run)
        return [(np.sort(np.concatenate([r for r, _ in found])), sum(n for _, n in found)) for found in shares]


def _rounded_up(values: NDArray[np.float64]) -> Float32:
    """The least float32 that are not below."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    return np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)


def _kernels() -> ModuleType:
    from bitnet.kernels import screening

    return screening
