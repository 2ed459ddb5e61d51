"""Arithmetic on single numbers against exact fractions and numpy."""

from __future__ import annotations

import numba
import numpy as np

from bitnet.kernels import scalars


@numba.njit
def rounded(x, halves, whole):
    for i in range(x.size):
        halves[i] = scalars.round_f16(x[i])
        whole[i] = scalars.round_even(x[i])


@numba.njit
def single(a, b, c, bits):
    return scalars.fma(a, b, c), scalars.float_of_bits(bits)


def test_scalar_multiply_add_and_bits():
    x = 1 + 2.0**-52
    fma, two = single(x, x, -(x * x), 0x4000000000000000)
    assert fma == 2.0**-104
    assert two == 2.0


def test_rounding_is_half_to_even_everywhere():
    ties = np.concatenate([np.arange(-130, 130) + 0.5, [0.49999997, 2.0**23 + 1, -0.0, np.inf, -np.inf, np.nan]])
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    between = (halves[:-1] + halves[1:]) / 2  # exactly between two neighbours of binary16, subnormals included
    near = [np.nextafter(between.astype(np.float32), np.float32(s)) for s in (-np.inf, np.inf)]
    x = np.concatenate([ties, between, *near, [65519.0, 65520.0, 1e-8]]).astype(np.float32)
    out, whole = np.empty_like(x), np.empty_like(x)
    rounded(x, out, whole)
    with np.errstate(over="ignore"):
        assert np.array_equal(out, x.astype(np.float16).astype(np.float32), equal_nan=True)
    assert np.array_equal(whole, np.rint(x), equal_nan=True)


@numba.njit
def there_and_back(x, bits, out):
    for i in range(x.size):
        bits[i] = scalars.bits_of_float(x[i])
        out[i] = scalars.float32_of_bits(bits[i])


def test_bits_are_those_of_memory():
    x = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, 1e-45, 3.4e38, -1.5], np.float32)
    bits, out = np.empty(x.size, np.int32), np.empty_like(x)
    there_and_back(x, bits, out)
    assert np.array_equal(bits, x.view(np.int32))
    assert np.array_equal(out.view(np.int32), bits)
