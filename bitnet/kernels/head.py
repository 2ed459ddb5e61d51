"""The output head: rows of floats at the speed of memory.

`dense_rows` defines the bits of a logit: sixteen lanes of fused multiply-adds, folded by the fixed tree. It takes four
rows at a time, which changes no sum and hides the time an addition takes. Integer rows that bound the logits, so that
few of them need be computed, are in `screening.py`.
"""

from __future__ import annotations

from bitnet.kernels import dot, simd
from bitnet.kernels.compile import device, kernel

#: Elements of float rows that are fetched ahead: a few rows.
AHEAD = 8192


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


@kernel
def dense_at(weight, x, rows, begin, end, out):
    """Logits of the rows named by rows[begin:end], to out[begin:end]."""
    flat, n = weight.reshape(-1), x.size
    for i in range(begin, end):
        out[i] = dense_row(flat, x, n, rows[i] * n, 0)
