"""Ternary kernels over tiles: every variant that runs here against int64, and the same bits from all of them."""

from __future__ import annotations

from itertools import pairwise

import kernel_inputs as inputs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.kernels import row_tiles, ternary
from bitnet.kernels.variants import VARIANTS, runs_here

HERE = [v.id for v in VARIANTS.values() if runs_here(v)]
FEW = settings(max_examples=15, deadline=None)


def padded(q, tiles):
    """Codes followed by zeros up to whole tiles."""
    out = np.zeros((len(q), tiles.width), np.int8)
    out[:, : q.shape[1]] = q
    return out


def sums(name, trits, q, *, kernel=ternary.ternary_sums, borders=()):
    """Integer sums [n_token, n_row] by a variant, in one or several ranges of row tiles."""
    v = VARIANTS[name]
    tiles = row_tiles.pack(inputs.pack(trits), v.layout)
    out = np.full((len(q), len(trits)), 99, np.int32)
    cuts = sorted([0, *(min(b, len(tiles.data)) for b in borders), len(tiles.data)])
    for begin, end in pairwise(cuts):
        kernel(v, tiles.data, padded(q, tiles), q.sum(axis=1, dtype=np.int32), begin, end, out)
    return out


def exact(trits, q):
    return q.astype(np.int64) @ trits.astype(np.int64).T


def test_this_machine_runs_the_generic_variants():
    assert {"generic", "generic-base3"} <= set(HERE)


@pytest.mark.parametrize("name", HERE)
@given(
    seed=st.integers(0, 2**32),
    n_token=st.integers(1, 19),
    n_row=st.integers(1, 40),
    groups=st.integers(1, 5),
    borders=st.lists(st.integers(0, 3), max_size=3),
)
@FEW
def test_sums_are_those_of_int64(name, seed, n_token, n_row, groups, borders):
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (n_row, 128 * groups), np.int8)
    q = rng.integers(-128, 128, (n_token, 128 * groups)).astype(np.int8)
    assert np.array_equal(sums(name, trits, q, borders=borders), exact(trits, q))


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("n_col", [2560, 6912, 32768])
def test_no_accumulator_wraps_at_the_extremes(name, n_col):
    """Digits and activations of the largest magnitude, one sign and both, for one token and for a block of them."""
    trits = np.stack([np.full(n_col, t, np.int8) for t in (-1, 0, 1)] + [np.resize([1, -1], n_col).astype(np.int8)])
    q = np.stack([np.full(n_col, c, np.int8) for c in (-128, 127)] + [np.resize([-128, 127], n_col).astype(np.int8)])
    expected = exact(trits, q)
    assert np.abs(expected).max() == 128 * n_col
    assert np.array_equal(sums(name, trits, np.resize(q, (11, n_col))), np.resize(expected, (11, 4)))
    for t in range(3):
        assert np.array_equal(sums(name, trits, q[t : t + 1]), expected[t : t + 1])


def test_that_comparison_sees_an_int16_and_a_lost_activation():
    def int16(*args):
        ternary.ternary_sums(*args)
        args[-1][:] = args[-1].astype(np.int16)

    def lost(v, tiles, q, *rest):
        q[0, 1000] = 0
        ternary.ternary_sums(v, tiles, q, *rest)

    trits, q = np.ones((3, 2560), np.int8), np.full((2, 2560), 127, np.int8)
    for liar in (int16, lost):
        assert not np.array_equal(sums("generic", trits, q, kernel=liar), exact(trits, q))


@pytest.mark.parametrize("name", HERE)
@given(seed=st.integers(0, 2**32), n_token=st.integers(1, 9), n_row=st.integers(1, 33))
@FEW
def test_products_are_the_sums_scaled_and_rounded_three_times(name, seed, n_token, n_row):
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (n_row, 256), np.int8)
    q = rng.integers(-128, 128, (n_token, 256)).astype(np.int8)
    scale = rng.uniform(0.1, 300, n_token).astype(np.float32)
    tensor_scale = np.float32(rng.uniform(0.01, 2))
    v = VARIANTS[name]
    tiles = row_tiles.pack(inputs.pack(trits), v.layout)
    out = np.full((n_token, n_row), np.nan, np.float32)
    total = q.sum(axis=1, dtype=np.int32)
    ternary.ternary_int8_token(v, tiles.data, padded(q, tiles), total, scale, tensor_scale, 0, len(tiles.data), out)
    expected = exact(trits, q).astype(np.float32) / scale[:, None] * tensor_scale
    assert np.array_equal(out.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("name", HERE)
def test_a_token_that_is_not_finite_stays_so_and_stays_alone(name):
    v = VARIANTS[name]
    tiles = row_tiles.pack(inputs.pack(np.ones((5, 128), np.int8)), v.layout)
    q = padded(np.ones((3, 128), np.int8), tiles)
    q[1] = 0  # what the quantiser makes of such a token, with the scale NaN
    out = np.empty((3, 5), np.float32)
    scale = np.array([1, np.nan, 2], np.float32)
    total = q.sum(axis=1, dtype=np.int32)
    ternary.ternary_int8_token(v, tiles.data, q, total, scale, np.float32(1), 0, 1, out)
    assert np.isnan(out[1]).all()
    assert (out[0] == 128).all()
    assert (out[2] == 64).all()


@pytest.mark.parametrize("name", HERE)
def test_a_float_kernel_reads_every_layout(name):
    rng = np.random.default_rng(4)
    v, trits = VARIANTS[name], rng.integers(-1, 2, (21, 256), np.int8)
    tiles = row_tiles.pack(inputs.pack(trits), v.layout)
    x = rng.integers(-9, 9, (3, 256)).astype(np.float32)  # small whole numbers: no sum rounds
    out, ones = np.empty((3, 21), np.float32), np.ones((21, 1), np.float32)
    ternary.ternary_float(v, tiles.data, ones, x, np.float32(2), 0, 2, out)
    assert np.array_equal(out, 2 * (x @ trits.T))
