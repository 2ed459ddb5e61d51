"""Each vector intrinsic against numpy, over every bit pattern where there are few enough."""

from __future__ import annotations

from fractions import Fraction

import numba
import numpy as np
import pytest

from bitnet.kernels import scalars, simd


@numba.njit
def converted(source, out):
    for i in range(0, source.size, 16):
        simd.store_f32(out, i, simd.load(source, i))


@numba.njit
def folded(x, n, out):
    acc = simd.zero_f32()
    for i in range(0, n, 16):
        acc = simd.add_f32(acc, simd.load(x, i))
    out[0] = simd.sum_f32(acc)


@numba.njit
def fused(a, b, c, out):
    simd.store_f32(out, 0, simd.fma_f32(simd.load(a, 0), simd.load(b, 0), simd.load(c, 0)))
    simd.store_f32(out, 16, simd.splat_f32(a[3]))
    for i in range(16):
        out[32 + i] = scalars.fma32(a[i], b[i], c[i])


@numba.njit
def dots(codes, at, q, at_q, a, b):
    ternary = simd.sum_i32(simd.add_ternary128(simd.zero_i32(), codes, at, q, at_q))
    return ternary, simd.sum_i32(simd.add_int8(simd.zero_i32(), a, 1, b, 2))


def test_every_half_and_every_bfloat_loads_exactly():
    patterns = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    out = np.empty(1 << 16, np.float32)
    converted(patterns, out)
    assert np.array_equal(out, patterns.view(np.float16).astype(np.float32), equal_nan=True)
    converted(patterns.view(np.int16), out)
    assert np.array_equal(out.view(np.uint32), patterns.astype(np.uint32) << 16)
    converted(out.copy(), out)
    assert np.array_equal(out.view(np.uint32), patterns.astype(np.uint32) << 16)


def test_other_element_types_do_not_compile():
    with pytest.raises(numba.TypingError):
        converted(np.zeros(16), np.zeros(16, np.float32))


def test_the_order_of_a_sum_is_sixteen_lanes_and_one_tree():
    x = (np.random.default_rng(0).standard_normal(20 * 16) * 1e3).astype(np.float32)
    out = np.empty(1, np.float32)
    folded(x, x.size, out)
    lanes = np.zeros(16, np.float32)
    for row in x.reshape(-1, 16):
        lanes = lanes + row
    for width in (8, 4, 2, 1):
        lanes = lanes[:width] + lanes[width:]
    assert out[0] == lanes[0]
    assert out[0] != np.cumsum(x)[-1]  # another order has other bits, so this test can tell


def test_multiply_add_is_rounded_once():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 16)).astype(np.float32)
    c = (-a * b).astype(np.float32)  # what is left is the rounding error of the product alone
    out = np.empty(48, np.float32)
    fused(a, b, c, out)
    exact = [
        float(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) for x, y, z in zip(a, b, c, strict=True)
    ]
    assert out[:16].tolist() == exact
    assert out[32:].tolist() == exact
    assert (out[16:32] == a[3]).all()
    assert any(exact)
    assert not (a * b + c).any()  # rounded twice: the liar that this test catches


@pytest.mark.parametrize("extreme", [None, (2, -128), (2, 127), (0, -128)])
def test_integer_products(extreme):
    """At offsets that are no multiple of a vector; the largest case of the int16 sums among them."""
    rng = np.random.default_rng(2)
    digits, q = rng.integers(0, 3, 128), rng.integers(-128, 128, 128).astype(np.int8)
    if extreme is not None:
        digits[:], q[:] = extreme
    codes = np.zeros(39, np.uint8)
    for i, digit in enumerate(digits):
        codes[5 + i % 32] |= digit << (6 - 2 * (i // 32))
    a, b = np.full(17, -128, np.int8), np.full(18, -128 if extreme else 127, np.int8)
    ternary, int8 = dots(codes, 5, np.concatenate([np.zeros(3, np.int8), q]), 3, a, b)
    assert ternary == int(digits @ q.astype(np.int64))
    assert int8 == 16 * -128 * int(b[0])
    codes[5] ^= 0b11000000
    assert dots(codes, 5, np.concatenate([np.zeros(3, np.int8), q]), 3, a, b)[0] != ternary
