"""Products by tables of tokens against int64, to the bit, and the same bits however tokens and rows are split."""

from __future__ import annotations

from itertools import pairwise

import kernel_inputs as inputs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.kernels import by_tokens, row_tiles, ternary
from bitnet.kernels.variants import VARIANTS, runs_here

HERE = [v.id for v in VARIANTS.values() if v.layout == "triples" and runs_here(v)]
ONE = np.float32(1)
FEW = settings(max_examples=20, deadline=None)

pytestmark = pytest.mark.skipif(not HERE, reason="no variant of this machine has tiles of triples")


def products(trits, q, scale, tensor_scale=ONE, *, name="avx2", borders=(), lose=None):
    """[n_token, n_row] f32, in one or several ranges of row tiles; without column `lose`, as a liar would."""
    tiles = row_tiles.pack(inputs.pack(trits), VARIANTS[name].layout)
    codes = np.zeros((len(q), tiles.width), np.int8)
    codes[:, : q.shape[1]] = q
    if lose is not None:
        codes[:, lose] = 0
    out = np.full((len(q), len(trits)), np.nan, np.float32)
    cuts = sorted([0, *(min(b, len(tiles.data)) for b in borders), len(tiles.data)])
    for begin, end in pairwise(cuts):
        total = q.sum(axis=1, dtype=np.int32)
        ternary.ternary_int8_token(VARIANTS[name], tiles.data, codes, total, scale, tensor_scale, begin, end, out)
    return out


def expected(trits, q, scale, tensor_scale=ONE):
    return (q.astype(np.int64) @ trits.astype(np.int64).T).astype(np.float32) / scale[:, None] * tensor_scale


def same_bits(a, b):
    return np.array_equal(a.view(np.int32), b.view(np.int32))


@given(
    seed=st.integers(0, 2**32),
    n_token=st.integers(by_tokens.ENOUGH - 1, 2 * by_tokens.BLOCK + by_tokens.ENOUGH + 2),
    n_row=st.integers(1, 70),
    groups=st.integers(1, 5),
    borders=st.lists(st.integers(0, 3), max_size=3),
)
@FEW
def test_products_are_those_of_int64(seed, n_token, n_row, groups, borders):
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (n_row, 128 * groups), np.int8)
    q = rng.integers(-128, 128, (n_token, 128 * groups)).astype(np.int8)
    scale = rng.uniform(0.1, 300, n_token).astype(np.float32)
    tensor_scale = np.float32(rng.uniform(0.01, 2))
    found = products(trits, q, scale, tensor_scale, borders=borders)
    assert same_bits(found, expected(trits, q, scale, tensor_scale))


def test_that_comparison_sees_a_lost_activation():
    trits, q, scale = np.ones((3, 256), np.int8), np.ones((64, 256), np.int8), np.ones(64, np.float32)
    assert same_bits(products(trits, q, scale), expected(trits, q, scale))
    assert not same_bits(products(trits, q, scale, lose=200), expected(trits, q, scale))


def test_more_rows_than_share_tables():
    rng = np.random.default_rng(1)
    trits = rng.integers(-1, 2, (32 * by_tokens.ROW_TILES + 40, 128), np.int8)
    q = rng.integers(-128, 128, (70, 128)).astype(np.int8)
    scale = np.ones(70, np.float32)
    assert same_bits(products(trits, q, scale), expected(trits, q, scale))


@pytest.mark.parametrize("n_col", [2560, 6912, 32768])
def test_no_sum_wraps_at_the_extremes(n_col):
    trits = np.stack([np.full(n_col, t, np.int8) for t in (-1, 0, 1)] + [np.resize([1, -1], n_col).astype(np.int8)])
    q = np.stack([np.full(n_col, c, np.int8) for c in (-128, 127)] + [np.resize([-128, 127], n_col).astype(np.int8)])
    q, scale = np.resize(q, (by_tokens.BLOCK, n_col)), np.ones(by_tokens.BLOCK, np.float32)
    whole = expected(trits, q, scale)  # below 2^24: float32 holds them
    assert np.abs(whole).max() == 128 * n_col
    assert same_bits(products(trits, q, scale), whole)


def test_a_token_has_the_same_bits_in_any_company():
    rng = np.random.default_rng(2)
    trits = rng.integers(-1, 2, (40, 384), np.int8)
    q = rng.integers(-128, 128, (2 * by_tokens.BLOCK + 50, 384)).astype(np.int8)
    scale = rng.uniform(0.1, 300, len(q)).astype(np.float32)
    together = products(trits, q, scale)
    for n in (1, by_tokens.ENOUGH, by_tokens.ENOUGH + 1, by_tokens.BLOCK, by_tokens.BLOCK + 1):
        assert same_bits(products(trits, q[-n:], scale[-n:]), together[-n:])


def test_a_token_that_is_not_finite_stays_so_and_stays_alone():
    q, scale = np.ones((by_tokens.BLOCK, 128), np.int8), np.ones(by_tokens.BLOCK, np.float32)
    q[5], scale[5] = 0, np.nan  # what the quantiser makes of such a token
    out = products(np.ones((5, 128), np.int8), q, scale)
    assert np.isnan(out[5]).all()
    assert (np.delete(out, 5, axis=0) == 128).all()
