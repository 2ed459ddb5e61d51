"""The CPU kernels: plain loops over typed, flat, contiguous arrays, output last.

Every kernel that splits its work takes a half-open range of output rows, row tiles or heads, and writes nothing else,
so a sum never depends on how many threads shared it, nor on how many tokens were in the batch. No fast-math anywhere.
Ternary matrices are in `ternary.py`, float rows in `head.py`, attention in `attend.py`; the rest is here.
"""

from __future__ import annotations

import math

import numpy as np

from bitnet.kernels import simd
from bitnet.kernels.attend import attention
from bitnet.kernels.compile import device, kernel
from bitnet.kernels.head import dense
from bitnet.kernels.ternary import ternary_blocks, ternary_float, ternary_int8_token, ternary_sums

__all__ = [
    "attention",
    "dense",
    "exp",
    "q8_0_blocks",
    "q8_0_float",
    "quantise_int8_token",
    "quantise_q8_0",
    "quantise_q8_k",
    "relu2_gate",
    "rms_norm",
    "rotate",
    "silu_gate",
    "ternary_blocks",
    "ternary_float",
    "ternary_int8_token",
    "ternary_sums",
]

_f32 = np.float32


# --- quantisers: x [n_token, n] -> integers and scales -------------------------------------------------------------
# A token (or block) with NaN or infinity gets scale NaN and codes 0: every product of it is NaN. A block so small that
# its inverse scale overflows (below 4e-37) is a block of zeros.


@device
def _largest(bits, t, begin, end):
    """The bits of the largest magnitude of elements [begin, end) of row t: as integers they are in the same order."""
    largest = np.int32(0)
    for i in range(begin, end):
        largest = max(largest, np.int32(bits[t, i] & np.int32(0x7FFFFFFF)))
    return largest


@device
def _finite(bits, t, begin, end):
    """Whether elements [begin, end) of row t are finite, by their bits: a loop without branches."""
    return _largest(bits, t, begin, end) < np.int32(0x7F800000)


@kernel
def quantise_int8_token(x, q, scale, total):
    """BitNet's own: scale = 127 / max(absmax, 1e-5), q = half-to-even(x · scale); total = Σ q."""
    bits = x.view(np.int32)
    for t in range(x.shape[0]):
        top = np.int64(_largest(bits, t, 0, x.shape[1]))
        if top >= 0x7F800000:
            q[t], scale[t], total[t] = 0, _f32(np.nan), 0
            continue
        wide = ((top >> 23) + 896) << 52 | (top & 0x7FFFFF) << 29  # the same number in float64, if it is not subnormal
        s = _f32(127.0 / max(1e-5, simd.float_of_bits(wide)))
        acc = np.int32(0)
        for i in range(x.shape[1]):
            v = simd.round_even(_f32(x[t, i] * s))
            code = np.int8(min(max(v, _f32(-128.0)), _f32(127.0)))
            q[t, i] = code
            acc += code
        scale[t] = s
        total[t] = acc


@kernel
def quantise_q8_k(x, q, scale, total):
    """Ggml's Q8_K: blocks of 256, inverse scale −127 / (the value of largest magnitude, with its sign)."""
    bits = x.view(np.int32)
    for t in range(x.shape[0]):
        for b in range(x.shape[1] // 256):
            finite = _finite(bits, t, 256 * b, 256 * b + 256)
            signed = _f32(0.0)
            for i in range(256 * b, 256 * b + 256):
                if abs(x[t, i]) > abs(signed):
                    signed = x[t, i]
            acc = np.int64(0)
            inverse = _f32(_f32(-127.0) / signed)
            if not finite or not np.isfinite(inverse):
                scale[t, b] = _f32(0.0) if finite else _f32(np.nan)
                q[t, 256 * b : 256 * b + 256] = 0
            else:
                for i in range(256 * b, 256 * b + 256):
                    code = np.int8(min(simd.round_even(_f32(inverse * x[t, i])), _f32(127.0)))
                    q[t, i] = code
                    acc += code
                scale[t, b] = _f32(_f32(1.0) / inverse)
            total[t, b] = acc


@kernel
def quantise_q8_0(x, q, scale):
    """Ggml's Q8_0: blocks of 32, q = half-to-even(x · 127 / absmax), scale absmax / 127 rounded to binary16."""
    bits = x.view(np.int32)
    for t in range(x.shape[0]):
        for b in range(x.shape[1] // 32):
            finite = _finite(bits, t, 32 * b, 32 * b + 32)
            largest = _f32(0.0)
            for i in range(32 * b, 32 * b + 32):
                largest = max(largest, abs(x[t, i]))
            inverse = _f32(_f32(127.0) / largest)
            if finite and np.isfinite(inverse):
                for i in range(32 * b, 32 * b + 32):
                    q[t, i] = np.int8(simd.round_even(_f32(x[t, i] * inverse)))
            else:
                q[t, 32 * b : 32 * b + 32] = 0
            scale[t, b] = simd.round_f16(_f32(largest / _f32(127.0))) if finite else _f32(np.nan)


# --- matrix × activations: rows [row, end) of out [n_token, n_row] --------------------------------------------------


@kernel
def q8_0_blocks(weight, weight_scale, q, scale, row, end, out):
    """Blocks of 32 int8 × int8, weighted by both block scales, added in float64."""
    n = q.shape[1]
    flat_weight, flat_q = weight.reshape(-1), q.reshape(-1)
    for r in range(row, end):
        for t in range(q.shape[0]):
            y = 0.0
            for b in range(n // 32):
                acc = simd.zero_i32()
                acc = simd.add_int8(acc, flat_weight, r * n + 32 * b, flat_q, t * n + 32 * b)
                acc = simd.add_int8(acc, flat_weight, r * n + 32 * b + 16, flat_q, t * n + 32 * b + 16)
                y += np.float64(weight_scale[r, b]) * np.float64(scale[t, b]) * np.float64(simd.sum_i32(acc))
            out[t, r] = _f32(y)


@kernel
def q8_0_float(weight, weight_scale, x, row, end, out):
    """Blocks of 32 int8 · float activations: a row is decoded once and used for every token."""
    n = x.shape[1]
    flat_x = x.reshape(-1)
    decoded = np.empty(n, np.float32)
    for r in range(row, end):
        for i in range(n):
            decoded[i] = _f32(weight[r, i]) * weight_scale[r, i // 32]
        for t in range(x.shape[0]):
            acc = simd.zero_f32()
            for i in range(0, n, 16):
                acc = simd.fma_f32(simd.load(decoded, i), simd.load(flat_x, t * n + i), acc)
            out[t, r] = simd.sum_f32(acc)


# --- the rest of a layer --------------------------------------------------------------------------------------------


@kernel
def rms_norm(x, weight, eps, out):
    """X / √(mean(x²) + eps) · weight; squares summed in float64, the rest in float32."""
    for t in range(x.shape[0]):
        total = 0.0
        for i in range(x.shape[1]):
            total += np.float64(_f32(x[t, i] * x[t, i]))
        scale = _f32(_f32(1.0) / _f32(math.sqrt(_f32(_f32(total / x.shape[1]) + eps))))
        for i in range(x.shape[1]):
            out[t, i] = _f32(x[t, i] * scale) * weight[i]


@kernel
def rotate(x, cos, sin, head_dim, half_split, out):
    """Rotary embedding of every head of x [n_token, n_head · head_dim]; cos, sin [n_token, head_dim / 2].

    The second product of each sum is rounded, the first is fused, as compilers contract ggml's expression.
    """
    pairs = head_dim // 2
    for t in range(x.shape[0]):
        for start in range(0, x.shape[1], head_dim):
            for i in range(pairs):
                a = start + (i if half_split else 2 * i)
                b = a + (pairs if half_split else 1)
                u, v = x[t, a], x[t, b]
                out[t, a] = simd.fma32(u, cos[t, i], -_f32(v * sin[t, i]))
                out[t, b] = simd.fma32(u, sin[t, i], _f32(v * cos[t, i]))


@device
def exp(x):
    """e^x in float64 for x ≤ 709, the same bits on every machine (error below 2 units in the last place).

    x = n·ln2 + r, |r| ≤ ln2/2; e^r by its Taylor series to r^13/13! (remainder below 2^-58).
    """
    if x < -708.0:
        return 0.0
    n = math.floor(x * 1.4426950408889634 + 0.5)
    r = simd.fma(-n, 1.9082149292705877e-10, simd.fma(-n, 0.6931471803691238, x))
    y = 1.0 / 6227020800.0
    y = simd.fma(y, r, 1.0 / 479001600.0)
    y = simd.fma(y, r, 1.0 / 39916800.0)
    y = simd.fma(y, r, 1.0 / 3628800.0)
    y = simd.fma(y, r, 1.0 / 362880.0)
    y = simd.fma(y, r, 1.0 / 40320.0)
    y = simd.fma(y, r, 1.0 / 5040.0)
    y = simd.fma(y, r, 1.0 / 720.0)
    y = simd.fma(y, r, 1.0 / 120.0)
    y = simd.fma(y, r, 1.0 / 24.0)
    y = simd.fma(y, r, 1.0 / 6.0)
    y = simd.fma(y, r, 0.5)
    y = simd.fma(y, r, 1.0)
    y = simd.fma(y, r, 1.0)
    return y * simd.float_of_bits((np.int64(n) + 1023) << 52)


@kernel
def relu2_gate(gate, up, out):
    """max(gate, 0)² · up."""
    for t in range(gate.shape[0]):
        for i in range(gate.shape[1]):
            g = max(gate[t, i], _f32(0.0))
            out[t, i] = _f32(g * g) * up[t, i]


@kernel
def silu_gate(gate, up, out):
    """Gate / (1 + e^−gate) · up."""
    for t in range(gate.shape[0]):
        for i in range(gate.shape[1]):
            g = np.float64(gate[t, i])
            e = exp(-abs(g))
            out[t, i] = _f32(g / (1.0 + e) if g >= 0.0 else g * e / (1.0 + e)) * up[t, i]
