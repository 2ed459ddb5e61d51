"""The CPU kernels: plain loops over typed, flat, contiguous arrays, output last.

Every kernel that splits its work takes a half-open range of output rows, row tiles or heads, and writes nothing else,
so a sum never depends on how many threads shared it, nor on how many tokens were in the batch. No fast-math anywhere.
Functions named …_row are one row of a kernel, in flat arrays from an element on: what `graph.py` is made of.
Ternary matrices are in `ternary.py`, float rows in `head.py`, attention in `attend.py`; the rest is here.
"""

from __future__ import annotations

import math

import numpy as np

from bitnet.kernels import scalars, simd
from bitnet.kernels.arrays import part
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
def _largest(x, at, n):
    """The bits of the largest magnitude of x[at : at + n], flat: as integers they are in the same order."""
    largest, row = np.int32(0), part(x, at, n)
    for i in range(n):
        magnitude = np.int32(scalars.bits_of_float(row[i]) & np.int32(0x7FFFFFFF))
        largest = magnitude if magnitude > largest else largest
    return largest


@device
def _finite(x, at, n):
    """Whether x[at : at + n] are finite, by their bits: a loop without branches."""
    return _largest(x, at, n) < np.int32(0x7F800000)


@device
def quantise_row(x, at, n, q, to, scale, total, t):
    """Row t of `quantise_int8_token`."""
    top = np.int64(_largest(x, at, n))
    row, codes = part(x, at, n), part(q, to, n)
    if top >= 0x7F800000:
        for i in range(n):
            codes[i] = 0
        scale[t] = _f32(np.nan)
        total[t] = 0
        return
    wide = ((top >> 23) + 896) << 52 | (top & 0x7FFFFF) << 29  # the same number in float64, if it is not subnormal
    largest = scalars.float_of_bits(wide)
    s = _f32(127.0 / (largest if largest > 1e-5 else 1e-5))
    acc = np.int32(0)
    for i in range(n):
        v = scalars.round_even(_f32(row[i] * s))
        v = v if v < _f32(127.0) else _f32(127.0)
        code = np.int8(v if v > _f32(-128.0) else _f32(-128.0))
        codes[i] = code
        acc += code
    scale[t] = s
    total[t] = acc


@kernel
def quantise_int8_token(x, q, scale, total):
    """BitNet's own: scale = 127 / max(absmax, 1e-5), q = half-to-even(x · scale); total = Σ q."""
    flat_x, flat_q, n = x.reshape(-1), q.reshape(-1), x.shape[1]
    for t in range(x.shape[0]):
        quantise_row(flat_x, t * n, n, flat_q, t * q.shape[1], scale, total, t)


@kernel
def quantise_q8_k(x, q, scale, total):
    """Ggml's Q8_K: blocks of 256, inverse scale −127 / (the value of largest magnitude, with its sign)."""
    flat = x.reshape(-1)
    for t in range(x.shape[0]):
        for b in range(x.shape[1] // 256):
            finite = _finite(flat, t * x.shape[1] + 256 * b, 256)
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
                    code = np.int8(min(scalars.round_even(_f32(inverse * x[t, i])), _f32(127.0)))
                    q[t, i] = code
                    acc += code
                scale[t, b] = _f32(_f32(1.0) / inverse)
            total[t, b] = acc


@kernel
def quantise_q8_0(x, q, scale):
    """Ggml's Q8_0: blocks of 32, q = half-to-even(x · 127 / absmax), scale absmax / 127 rounded to binary16."""
    flat = x.reshape(-1)
    for t in range(x.shape[0]):
        for b in range(x.shape[1] // 32):
            finite = _finite(flat, t * x.shape[1] + 32 * b, 32)
            largest = _f32(0.0)
            for i in range(32 * b, 32 * b + 32):
                largest = max(largest, abs(x[t, i]))
            inverse = _f32(_f32(127.0) / largest)
            if finite and np.isfinite(inverse):
                for i in range(32 * b, 32 * b + 32):
                    q[t, i] = np.int8(scalars.round_even(_f32(x[t, i] * inverse)))
            else:
                q[t, 32 * b : 32 * b + 32] = 0
            scale[t, b] = scalars.round_f16(_f32(largest / _f32(127.0))) if finite else _f32(np.nan)


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


@device
def norm_row(x, at, n, weight, at_weight, eps, out, to):
    """One row of `rms_norm`."""
    row, factors, found = part(x, at, n), part(weight, at_weight, n), part(out, to, n)
    total = 0.0
    for i in range(n):
        total += np.float64(_f32(row[i] * row[i]))
    scale = _f32(_f32(1.0) / _f32(math.sqrt(_f32(_f32(total / n) + eps))))
    for i in range(n):
        found[i] = _f32(row[i] * scale) * factors[i]


@kernel
def rms_norm(x, weight, eps, out):
    """X / √(mean(x²) + eps) · weight; squares summed in float64, the rest in float32."""
    flat_x, flat_out, n = x.reshape(-1), out.reshape(-1), x.shape[1]
    factors = part(weight, 0, n)
    for t in range(x.shape[0]):
        norm_row(flat_x, t * n, n, factors, 0, eps, flat_out, t * n)


@device
def rotate_row(x, at, n, cos, sin, at_angle, head_dim, half_split, out, to):
    """One row of `rotate`, of any number of heads; x may be out."""
    pairs = head_dim // 2
    step, other = (1, pairs) if half_split else (2, 1)
    c, s = part(cos, at_angle, pairs), part(sin, at_angle, pairs)
    for start in range(0, n, head_dim):
        a, b = part(x, at + start, head_dim), part(x, at + start + other, head_dim)
        first, second = part(out, to + start, head_dim), part(out, to + start + other, head_dim)
        for i in range(pairs):
            u, v = a[step * i], b[step * i]
            first[step * i] = scalars.fma32(u, c[i], -_f32(v * s[i]))
            second[step * i] = scalars.fma32(u, s[i], _f32(v * c[i]))


@kernel
def rotate(x, cos, sin, head_dim, half_split, out):
    """Rotary embedding of every head of x [n_token, n_head · head_dim]; cos, sin [n_token, head_dim / 2].

    The second product of each sum is rounded, the first is fused, as compilers contract ggml's expression.
    """
    flat_x, flat_cos, flat_sin, flat_out = x.reshape(-1), cos.reshape(-1), sin.reshape(-1), out.reshape(-1)
    for t in range(x.shape[0]):
        at = t * x.shape[1]
        rotate_row(flat_x, at, x.shape[1], flat_cos, flat_sin, t * (head_dim // 2), head_dim, half_split, flat_out, at)


@device
def exp(x):
    """e^x in float64 for x ≤ 709, the same bits on every machine (error below 2 units in the last place).

    x = n·ln2 + r, |r| ≤ ln2/2; e^r by its Taylor series to r^13/13! (remainder below 2^-58).
    """
    if x < -708.0:
        return 0.0
    n = math.floor(x * 1.4426950408889634 + 0.5)
    r = scalars.fma(-n, 1.9082149292705877e-10, scalars.fma(-n, 0.6931471803691238, x))
    y = 1.0 / 6227020800.0
    y = scalars.fma(y, r, 1.0 / 479001600.0)
    y = scalars.fma(y, r, 1.0 / 39916800.0)
    y = scalars.fma(y, r, 1.0 / 3628800.0)
    y = scalars.fma(y, r, 1.0 / 362880.0)
    y = scalars.fma(y, r, 1.0 / 40320.0)
    y = scalars.fma(y, r, 1.0 / 5040.0)
    y = scalars.fma(y, r, 1.0 / 720.0)
    y = scalars.fma(y, r, 1.0 / 120.0)
    y = scalars.fma(y, r, 1.0 / 24.0)
    y = scalars.fma(y, r, 1.0 / 6.0)
    y = scalars.fma(y, r, 0.5)
    y = scalars.fma(y, r, 1.0)
    y = scalars.fma(y, r, 1.0)
    return y * scalars.float_of_bits((np.int64(n) + 1023) << 52)


@device
def gate_row(relu2, gate, up, begin, end, out):
    """Elements [begin, end) of `relu2_gate` or `silu_gate`, all flat."""
    n = end - begin
    gates, ups, found = part(gate, begin, n), part(up, begin, n), part(out, begin, n)
    if relu2:
        for i in range(n):
            g = gates[i] if not gates[i] < _f32(0.0) else _f32(0.0)  # NaN stays
            found[i] = _f32(g * g) * ups[i]
        return
    for i in range(n):
        g = np.float64(gates[i])
        e = exp(-abs(g))
        found[i] = _f32(g / (1.0 + e) if g >= 0.0 else g * e / (1.0 + e)) * ups[i]


@kernel
def relu2_gate(gate, up, out):
    """max(gate, 0)² · up."""
    gate_row(1, gate.reshape(-1), up.reshape(-1), 0, gate.size, out.reshape(-1))


@kernel
def silu_gate(gate, up, out):
    """Gate / (1 + e^−gate) · up."""
    gate_row(0, gate.reshape(-1), up.reshape(-1), 0, gate.size, out.reshape(-1))
