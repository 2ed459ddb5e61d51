"""Integer rows that bound the logits of a head: how they are made, and the two passes over them.

Which rows they may leave out, and why, is proven in `bitnet/screen.py`; how codes lie in their two planes is in
`planes.py`. The first pass reads the high plane of all rows, the second the low plane of those that are left.

    high         [n_row, 3/4 width] uint8, the width in codes a multiple of 128
    low          [n_row, 1/4 width] uint8
    scale        [n_row] f32: w ≈ code · scale
    coarse       [n_row] f32, at least ‖w − scale · (4h − 126.5)‖; infinite for a row that is not finite
    error        [n_row] f32, at least ‖w − scale · code‖
    norm         [n_row] f32, at least the norms of what is subtracted in both
    q            [n, width] int8, padded with zeros: rows of activations, as `planes.py` multiplies them
    borders      [n_input + 1] int64: of input t are the rows [borders[t], borders[t + 1]) of q, one or two: 128a + b
    total        [n_input] int64, the sums of activations
    constants    [n_input, 4] f64: step, c0, c1, c2; a logit lies within c0 + c1 · (coarse or error) + c2 · norm of
                 scale · step · (code · q)
    sums         [n, n_row] int32, h · q
    highest      [n_input, n_row / 16, rounded up] f64: no logit of these 16 rows is above it

Threads take the next rows when they have done theirs, from a common counter: one that wakes late takes fewer.
"""

from __future__ import annotations

import math

import numpy as np

from bitnet.kernels import dot, planes, scalars, simd, simd64
from bitnet.kernels.barrier import new_counter, take
from bitnet.kernels.compile import device, device_with_arrays, kernel
from bitnet.kernels.head import dense_row

__all__ = [
    "BLOCK",
    "LEVELS",
    "bound",
    "new_counter",
    "quantise_input",
    "quantise_rows",
    "refine",
    "row_of_low",
    "rows_of_high",
    "threshold",
]

_f32, _f64 = np.float32, np.float64

#: Largest magnitude of a code.
LEVELS = 127
#: Bytes of the high plane that are fetched ahead, rows of the low plane, and blocks of rows whose bounds are wanted.
AHEAD = 1536
_ROWS_AHEAD = 4
_BLOCKS_AHEAD = 8
#: Rows of which only the highest bound is kept.
BLOCK = 16
#: Rows that are multiplied with all activations before the next ones are read: they stay in the second-level cache.
_SHARED_ROWS = 64
#: Rows, and blocks, that a thread takes at once.
_TAKEN_ROWS = 512
_TAKEN_BLOCKS = 32

_GROUP, _HIGH, _LOW = planes.GROUP, planes.HIGH_BYTES, planes.LOW_BYTES


@device
def _pack(codes, high, low):
    """One row of codes, int8, to its planes."""
    for g in range(codes.size // _GROUP):
        for b in range(_LOW):
            last = (np.int32(codes[_GROUP * g + 96 + b]) + 128) >> 2
            bits = (np.int32(codes[_GROUP * g + 96 + b]) & 3) << 6
            for i in range(3):
                c = np.int32(codes[_GROUP * g + 32 * i + b]) + 128
                high[_HIGH * g + 32 * i + b] = np.uint8((c >> 2) | ((last >> (2 * i)) & 3) << 6)
                bits |= (c & 3) << (2 * i)
            low[_LOW * g + b] = np.uint8(bits)


@device_with_arrays
def _distance(values, codes, mask, offset, scale, n):
    """‖values − scale · ((codes & mask) + offset)‖, every difference rounded once."""
    missed, step, shift, unit = (
        simd64.zero_f64(), simd64.splat_f64(-_f64(scale)), simd64.splat_f64(_f64(offset)), simd64.splat_f64(1.0)
    )  # fmt: skip
    kept = codes & np.int8(mask)
    for i in range(0, n, 16):
        code = simd64.fma_f64(simd64.widen_int8(kept, i), unit, shift)
        difference = simd64.fma_f64(code, step, simd64.widen(simd.load(values, i)))
        missed = simd64.fma_f64(difference, difference, missed)
    return math.sqrt(simd64.sum_f64(missed))


@kernel
def quantise_rows(weight, row, end, high, low, scale, coarse, error, norm):
    """Rows as small integers, |code| ≤ LEVELS; coarse, error and norm in float64, within its rounding.

    A row with a value that is not finite has codes 0, scale 0, and infinite errors.
    """
    n = weight.shape[1]
    flat = weight.reshape(-1)
    width = low.shape[1] * 4
    values, codes = np.zeros(width, np.float32), np.zeros(width, np.int8)
    zero = simd.zero_f32()
    for r in range(row, end):
        most_of, nothing = zero, zero
        for i in range(0, n, 16):
            v = simd.load(flat, r * n + i)
            simd.store_f32(values, i, v)
            most_of = simd.max_f32(simd.subtract_f32(zero, v), simd.max_f32(v, most_of))
            nothing = simd.fma_f32(v, zero, nothing)  # NaN from what is not finite
        largest = simd.largest_f32(most_of)
        finite = simd.sum_f32(nothing) == _f32(0.0)
        if not finite:
            codes[:] = 0
            _pack(codes, high[r], low[r])
            scale[r], coarse[r], error[r], norm[r] = _f32(0.0), np.inf, np.inf, 0.0
            continue
        most = _f32(LEVELS)
        s = largest / most
        inverse = most / largest if largest > _f32(1e-30) else _f32(0.0)  # else codes are 0, the error is all
        for i in range(n):
            codes[i] = np.int8(min(max(scalars.round_even(values[i] * inverse), -most), most))
        _pack(codes, high[r], low[r])
        squares, coarse_squares = np.int64(0), np.int64(0)
        for i in range(n):
            c = np.int32(codes[i])
            twice = np.int32(2 * (c & ~3) + 3)
            squares += np.int64(c * c)
            coarse_squares += np.int64(twice * twice)
        scale[r] = s
        coarse[r] = _distance(values, codes, ~3, 1.5, s, n)
        error[r] = _distance(values, codes, ~0, 0.0, s, n)
        norm[r] = _f64(s) * math.sqrt(max(_f64(squares), 0.25 * _f64(coarse_squares)))


@kernel
def quantise_input(x, step, q, found):
    """An input [n] f32 as integers round(x / step), to q [1 or 2, width].

    found [3] f64: the sum of the integers, ‖x‖² and ‖x − step · integers‖².
    """
    total, squares, missed = np.int64(0), 0.0, 0.0
    for i in range(x.size):
        exact = _f64(x[i])
        whole = np.int32(np.rint(exact / step))
        if q.shape[0] == 1:
            q[0, i] = np.int8(whole)
        else:
            q[0, i] = np.int8((whole + 64) >> 7)
            q[1, i] = np.int8(((whole + 64) & 127) - 64)
        total += whole
        difference = exact - step * _f64(whole)
        squares += exact * exact
        missed += difference * difference
    found[0], found[1], found[2] = _f64(total), squares, missed


@device
def row_of_high(start, high, at, q, at_q, width, out, at_out, stride):
    """The products h · q of a row and the activations of `start`, to out[at_out:], `stride` apart; all flat."""
    sums = start
    for g in range(width // _GROUP):
        dot.prefetch(high, at + _HIGH * g + AHEAD)
        dot.prefetch(high, at + _HIGH * g + AHEAD + 48)  # 96 bytes touch up to three lines, each of them some group's
        sums = planes.add_high(sums, high, at + _HIGH * g, q, at_q + _GROUP * g, width)
    planes.store(sums, out, at_out, stride)


@device
def row_of_low(start, low, at, q, at_q, width, out, at_out, stride):
    """The products l · q of a row, in the same way."""
    sums = start
    for g in range(width // _GROUP):
        sums = planes.add_low(sums, low, at + _LOW * g, q, at_q + _GROUP * g, width)
    planes.store(sums, out, at_out, stride)


@device
def rows_of_high(v, high, size, begin, end, q, n, width, sums, n_row):
    """The products of rows [begin, end) of `size` bytes and n rows of activations, to sums [n, n_row]; all flat."""
    t = 0
    while n - t >= 4:
        for r in range(begin, end):
            row_of_high(planes.four(v), high, r * size, q, t * width, width, sums, t * n_row + r, n_row)
        t += 4
    if n - t >= 2:
        for r in range(begin, end):
            row_of_high(planes.two(v), high, r * size, q, t * width, width, sums, t * n_row + r, n_row)
        t += 2
    if n - t:
        for r in range(begin, end):
            row_of_high(planes.one(v), high, r * size, q, t * width, width, sums, t * n_row + r, n_row)


@device
def _comes_before(value, row, other, other_row):
    """Whether a row is a worse seed than another: smaller, or equal and later."""
    return value < other or (value == other and row > other_row)


@device
def _offer(values, rows, value, row):
    """Put a row in place of the worst one of a heap, which comes first, if it is better."""
    if not _comes_before(values[0], rows[0], value, row):
        return
    at, k = 0, values.size
    while 2 * at + 1 < k:
        child = 2 * at + 1
        if child + 1 < k and _comes_before(values[child + 1], rows[child + 1], values[child], rows[child]):
            child += 1
        if not _comes_before(values[child], rows[child], value, row):
            break
        values[at], rows[at] = values[child], rows[child]
        at = child
    values[at], rows[at] = value, row


@device
def _sixteen(sums, a, b, scale, coarse, norm, total, constants, row):
    """What logits of 16 rows and one input may be, from their sums: centres, with or without a bound, and upper bounds.

    sums are flat; a and b are where those of the input's first and last row of activations begin.
    """
    zero = simd64.zero_f64()
    offset, step = simd64.splat_f64(-253.0 * _f64(total)), simd64.splat_f64(0.5 * constants[0])
    found = simd64.fma_f64(simd64.widen_int32(sums, b + row), simd64.splat_f64(8.0), offset)
    if a < b:
        found = simd64.fma_f64(simd64.widen_int32(sums, a + row), simd64.splat_f64(1024.0), found)
    found = simd64.fma_f64(found, simd64.fma_f64(simd64.widen(simd.load(scale, row)), step, zero), zero)
    margin = simd64.fma_f64(
        simd64.widen(simd.load(coarse, row)), simd64.splat_f64(constants[2]), simd64.splat_f64(constants[1])
    )
    margin = simd64.fma_f64(simd64.widen(simd.load(norm, row)), simd64.splat_f64(constants[3]), margin)
    return found, simd64.fma_f64(found, simd64.splat_f64(1.0), margin)


@device
def _bounds(sums, a, b, scale, coarse, norm, total, constants, row, end, centre, upper):
    """The same for rows [row, end), at most 16, to centre (−∞ without a bound) and upper."""
    if end - row == BLOCK:
        centres, bounds = _sixteen(sums, a, b, scale, coarse, norm, total, constants, row)
        simd64.store_f64(centre, 0, centres)
        simd64.store_f64(upper, 0, bounds)
    else:
        step, c0, c1, c2 = 0.5 * constants[0], constants[1], constants[2], constants[3]
        offset = 253.0 * _f64(total)
        for r in range(row, end):
            whole = np.int64(sums[b + r]) + (128 * np.int64(sums[a + r]) if a < b else 0)
            centre[r - row] = (8.0 * _f64(whole) - offset) * (step * _f64(scale[r]))
            upper[r - row] = centre[r - row] + (c0 + c1 * _f64(coarse[r]) + c2 * _f64(norm[r]))
    for i in range(end - row):
        centre[i] = centre[i] if upper[i] < np.inf else -np.inf


@device
def _look(sums, a, b, scale, coarse, norm, total, constants, row, end, centre, upper, highest, values, rows):
    """The highest bounds of rows [row, end), row a multiple of 16, and their seeds."""
    for first in range(row, end, BLOCK):
        last = min(first + BLOCK, end)
        if last - first == BLOCK:
            centres, bounds = _sixteen(sums, a, b, scale, coarse, norm, total, constants, first)
            highest[first // BLOCK] = simd64.largest_f64(bounds)
            if not simd64.largest_f64(centres) > values[0]:
                continue
        _bounds(sums, a, b, scale, coarse, norm, total, constants, first, last, centre, upper)
        most = -np.inf
        for i in range(last - first):
            most = upper[i] if upper[i] > most else most
            _offer(values, rows, centre[i], first + i)
        highest[first // BLOCK] = most


@kernel
def bound(v, high, scale, coarse, norm, q, borders, total, constants, counter, sums, highest, counts, values, rows):
    """The first pass, over rows that no thread has taken, and for each input the counts[input] rows that look best.

    Those go to values and rows [n_input, largest count], in no order: those that have a bound; where they are too few,
    values of −∞ remain. counter: `new_counter()`.
    """
    n_input, width, n_row, size = counts.size, q.shape[1], high.shape[0], high.shape[1]
    flat, flat_q, flat_sums = high.reshape(-1), q.reshape(-1), sums.reshape(-1)
    centre, upper = np.empty(BLOCK), np.empty(BLOCK)
    values[:], rows[:] = -np.inf, 0
    row = take(counter, 0, _TAKEN_ROWS)
    while row < n_row:
        for first in range(row, min(row + _TAKEN_ROWS, n_row), _SHARED_ROWS):
            last = min(first + _SHARED_ROWS, n_row)
            for r in range(last, last + _SHARED_ROWS, 16):
                dot.prefetch(scale, r)
                dot.prefetch(coarse, r)
                dot.prefetch(norm, r)
                for t in range(q.shape[0]):
                    dot.prefetch(flat_sums, t * n_row + r)
            rows_of_high(v, flat, size, first, last, flat_q, q.shape[0], width, flat_sums, n_row)
            for t in range(n_input):
                k = counts[t]
                _look(
                    flat_sums, borders[t] * n_row, (borders[t + 1] - 1) * n_row, scale, coarse, norm, total[t],
                    constants[t], first, last, centre, upper, highest[t], values[t, :k], rows[t, :k],
                )  # fmt: skip
        row = take(counter, 0, _TAKEN_ROWS)


@kernel
def threshold(weight, x, k, values, rows, found):
    """The smallest logit of the k best seeds of all threads to found[0], −∞ where there are fewer.

    values, rows: [n_thread, k or more].
    """
    best, places = np.full(k, -np.inf), np.zeros(k, np.int64)
    for thread in range(values.shape[0]):
        for i in range(k):
            if values[thread, i] > -np.inf:
                _offer(best, places, values[thread, i], rows[thread, i])
    least = _f32(np.inf)
    flat = weight.reshape(-1)
    for i in range(k):
        if best[i] == -np.inf:
            least = _f32(-np.inf)
            break
        least = min(least, dense_row(flat, x, x.size, places[i] * x.size, 0))
    found[0] = least


@kernel
def refine(
    v, low, scale, coarse, error, norm, q, total, constants, sums, blocks, counter, least, kept, found
):  # fmt: skip
    """The second pass for one input, over blocks that no thread has taken: to kept the rows that may reach `least`.

    q, sums [1 or 2, …], total, constants [4]; blocks: the numbers of blocks of 16 rows; kept [as many rows]. found[0]
    is how many rows were read, found[1] how many are kept.
    """
    n_q, width, n_row = q.shape[0], q.shape[1], sums.shape[1]
    flat, flat_q, flat_sums, size, b = low.reshape(-1), q.reshape(-1), sums.reshape(-1), low.shape[1], (n_q - 1) * n_row
    step, c0, c1, c2 = constants[0], constants[1], constants[2], constants[3]
    parts, centre, upper = np.empty(2, np.int32), np.empty(BLOCK), np.empty(BLOCK)
    read = np.empty(_TAKEN_BLOCKS * BLOCK, np.int64)
    n_read, n_kept = 0, 0
    taken = take(counter, 0, _TAKEN_BLOCKS)
    while taken < blocks.size:
        n = 0
        for block in range(taken, min(taken + _TAKEN_BLOCKS, blocks.size)):
            if block + _BLOCKS_AHEAD < blocks.size:
                row = blocks[block + _BLOCKS_AHEAD] * BLOCK
                dot.prefetch(flat_sums, row)
                dot.prefetch(flat_sums, b + row)
                dot.prefetch(scale, row)
                dot.prefetch(coarse, row)
                dot.prefetch(norm, row)
                dot.prefetch(error, row)
            row = blocks[block] * BLOCK
            end = min(row + BLOCK, n_row)
            _bounds(flat_sums, 0, b, scale, coarse, norm, total, constants, row, end, centre, upper)
            for i in range(end - row):
                read[n] = row + i
                n += upper[i] >= least
        for i in range(n):
            if i + _ROWS_AHEAD < n:
                for at in range(0, size, 64):
                    dot.prefetch(flat, read[i + _ROWS_AHEAD] * size + at)
            r = read[i]
            if n_q == 1:
                row_of_low(planes.one(v), flat, r * size, flat_q, 0, width, parts, 1, 1)
            else:
                row_of_low(planes.two(v), flat, r * size, flat_q, 0, width, parts, 0, 1)
            whole = 4 * np.int64(flat_sums[b + r]) + np.int64(parts[1])
            if n_q == 2:
                whole += 128 * (4 * np.int64(flat_sums[r]) + np.int64(parts[0]))
            margin = c0 + c1 * _f64(error[r]) + c2 * _f64(norm[r])
            kept[n_kept] = r
            n_kept += not _f64(whole - 128 * total) * (step * _f64(scale[r])) + margin < least
        n_read += n
        taken = take(counter, 0, _TAKEN_BLOCKS)
    found[0], found[1] = n_read, n_kept
