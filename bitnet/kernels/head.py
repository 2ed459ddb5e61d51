"""The output head: rows of floats at the speed of memory, and integer rows that bound them.

`dense_rows` defines the bits of a logit: sixteen lanes of fused multiply-adds, folded by the fixed tree. It takes four
rows at a time, which changes no sum and hides the time an addition takes.

Screening reads a quarter to a half of the bytes instead. Which rows it may leave out, and why, is proven in
`bitnet/screen.py`; here are its loops.
"""

from __future__ import annotations

import math

import numpy as np

from bitnet.kernels import dot, simd, simd64
from bitnet.kernels.compile import device, kernel

_f32 = np.float32

#: Elements of float rows that are fetched ahead (a few rows), and bytes of integer rows.
AHEAD = 8192
#: Rows that stay in the first-level cache while every input is multiplied with them.
_SHARED_ROWS = 8
_AHEAD_CODES = 1024


@device
def dense_row(weight, x, n, at, at_x):
    """One logit: flat weight[at : at + n] · flat x[at_x :]."""
    acc = simd.zero_f32()
    for i in range(0, n, 16):
        acc = simd.fma_f32(simd.load(weight, at + i), simd.load(x, at_x + i), acc)
    return simd.sum_f32(acc)


@device
def dense_rows(weight, x, n, row, end, at_x, ahead, out, at_out):
    """Rows [row, end) of a flat matrix [n_row, n] · x[at_x : at_x + n], to out[at_out:]; n a multiple of 16.

    What lies `ahead` elements further is fetched, unless that is 0.
    """
    whole = row + (end - row) // 4 * 4
    for r in range(row, whole, 4):
        a, b, c, d = simd.zero_f32(), simd.zero_f32(), simd.zero_f32(), simd.zero_f32()
        at = r * n
        for i in range(0, n, 16):
            v = simd.load(x, at_x + i)
            if ahead and i % 32 == 0:
                for k in range(4):
                    dot.prefetch(weight, at + k * n + i + ahead)
            a = simd.fma_f32(simd.load(weight, at + i), v, a)
            b = simd.fma_f32(simd.load(weight, at + n + i), v, b)
            c = simd.fma_f32(simd.load(weight, at + 2 * n + i), v, c)
            d = simd.fma_f32(simd.load(weight, at + 3 * n + i), v, d)
        to = at_out + r - row
        out[to], out[to + 1] = simd.sum_f32(a), simd.sum_f32(b)
        out[to + 2], out[to + 3] = simd.sum_f32(c), simd.sum_f32(d)
    for r in range(whole, end):
        out[at_out + r - row] = dense_row(weight, x, n, r * n, at_x)


@kernel
def dense(weight, x, row, end, out):
    """Float rows · float32 activations; n a multiple of 16. Element types as in `simd.load`."""
    n = x.shape[1]
    flat_weight, flat_x = weight.reshape(-1), x.reshape(-1)
    for first in range(row, end, 4):
        for t in range(x.shape[0]):
            dense_rows(flat_weight, flat_x, n, first, min(first + 4, end), t * n, AHEAD, out[t], first)


# --- screening: the constants and the proof are in `bitnet/screen.py` ------------------------------------------------


@kernel
def quantise_rows(weight, levels, row, end, codes, scale, error, norm):
    """Rows as small integers: codes [n_row, width] int8 with |code| ≤ levels, padded with zeros to the width.

    scale [n_row]: w ≈ code · scale; error, norm [n_row] float64: ‖w − code · scale‖ and ‖code · scale‖ within the
    rounding of float64. A row with a value that is not finite has codes 0, scale 0, and an infinite error.
    """
    n = weight.shape[1]
    flat = weight.reshape(-1)
    values = np.zeros(codes.shape[1], np.float32)
    for r in range(row, end):
        for i in range(0, n, 16):
            simd.store_f32(values, i, simd.load(flat, r * n + i))
        largest = _f32(0.0)
        finite = True
        for i in range(n):
            finite &= abs(values[i]) < _f32(np.inf)
            largest = max(largest, abs(values[i]))
        if not finite:
            codes[r], scale[r], error[r], norm[r] = 0, _f32(0.0), np.inf, 0.0
            continue
        s = largest / _f32(levels)
        inverse = _f32(levels) / largest if largest > _f32(1e-30) else _f32(0.0)  # else codes are 0, the error is all
        most = _f32(levels)
        for i in range(values.size):
            v = simd.round_even(values[i] * inverse)
            codes[r, i] = np.int8(min(max(v, -most), most))
        missed = simd64.zero_f64()
        squares = np.int64(0)
        step = simd64.splat_f64(-np.float64(s))
        for i in range(0, n, 16):
            difference = simd64.fma_f64(simd64.widen_int8(codes[r], i), step, simd64.widen(simd.load(values, i)))
            missed = simd64.fma_f64(difference, difference, missed)
        for i in range(n):
            c = np.int32(codes[r, i])
            squares += np.int64(c * c)
        scale[r] = s
        error[r] = math.sqrt(simd64.sum_f64(missed))
        norm[r] = np.float64(s) * math.sqrt(np.float64(squares))


@device
def screen_int8(codes, scale, error, norm, q, step, c0, c1, c2, row, end, lower, upper):
    """Bounds of the logits of rows [row, end); the largest lower one.

    codes [n_row, width] int8, width a multiple of 32; q [width] int16; the logit lies within
    c0 + c1 · error + c2 · norm of scale · step · (codes · q).
    """
    width = q.size
    flat = codes.reshape(-1)
    best = -np.inf
    for r in range(row, end):
        a, b = simd.zero_i32(), simd.zero_i32()
        at = r * width
        for i in range(0, width - 32, 64):
            dot.prefetch(flat, at + i + _AHEAD_CODES)
            a = simd.add_int8_int16(a, flat, at + i, q, i)
            b = simd.add_int8_int16(b, flat, at + i + 32, q, i + 32)
        if width % 64:
            a = simd.add_int8_int16(a, flat, at + width - 32, q, width - 32)
        found = np.float64(simd.sum_i32(simd.add_i32(a, b))) * (np.float64(scale[r]) * step)
        bound = c0 + c1 * error[r] + c2 * norm[r]
        if not bound < np.inf:
            lower[r], upper[r] = -np.inf, np.inf
            continue
        lower[r], upper[r] = found - bound, found + bound
        best = max(best, lower[r])
    return best


@device
def rescore(weight, x, threshold, upper, row, end, logits):
    """Logits of the rows of [row, end) whose upper bound reaches the threshold, −∞ for the others; how many they are.

    weight, x: flat.
    """
    n = x.size
    count = 0
    for r in range(row, end):
        if upper[r] >= threshold:
            logits[r] = dense_row(weight, x, n, r * n, 0)
            count += 1
        else:
            logits[r] = _f32(-np.inf)
    return count


@kernel
def screen(codes, scale, error, norm, q, step, c0, c1, c2, row, end, lower, upper):
    """`screen_int8` of several inputs: a few rows for all of them, then the next; all but the rows by input."""
    for first in range(row, end, _SHARED_ROWS):
        last = min(first + _SHARED_ROWS, end)
        for t in range(q.shape[0]):
            screen_int8(codes, scale, error, norm, q[t], step[t], c0[t], c1[t], c2[t], first, last, lower[t], upper[t])


@kernel
def dense_at(weight, x, rows, begin, end, out):
    """Logits of the rows named by rows[begin:end], to out[begin:end]."""
    flat, n = weight.reshape(-1), x.size
    for i in range(begin, end):
        out[i] = dense_row(flat, x, n, rows[i] * n, 0)
