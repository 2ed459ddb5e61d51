"""Screened heads: ids, order and bits of the full head, on heads made to deceive, and bounds that hold and bite."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import screen
from bitnet.kernels import head as kernels
from bitnet.linear import Backend, DenseMatrix, Int8Matrix

BACKEND = Backend("cpu", 2)
KINDS = ("f16", "bf16", "f32")
FEW = settings(max_examples=30, deadline=None)


def head(weights, kind="f16"):
    """A head that holds float32 `weights` rounded to a type."""
    w = np.ascontiguousarray(weights, np.float32)
    with np.errstate(over="ignore"):
        data = {
            "f32": lambda: w,
            "f16": lambda: w.astype(np.float16).view(np.uint16),
            "bf16": lambda: (w.view(np.uint32) >> 16).astype(np.uint16).view(np.int16),
        }[kind]()
    kept = {"name": "head", "type_name": kind, "n_bytes": data.nbytes, "scale": np.float32(1)}
    return DenseMatrix(n_row=len(w), n_col=w.shape[1], data=data, **kept)


def full(matrix, x):
    out = np.empty((1, matrix.n_row), np.float32)
    kernels.dense(matrix.data, x[None], 0, matrix.n_row, out)
    return out[0]


def expected(matrix, x, k):
    """Ids and logits of the best k by the full head."""
    logits = full(matrix, x)
    ranked = np.where(np.isnan(logits), -np.inf, logits)
    ids = np.lexsort((np.arange(len(logits)), -ranked))[:k]
    return ids, logits[ids]


def one(built, x, k, backend):
    """The best of one input, which is among others of another size: they do not matter to it."""
    (found, *_) = screen.top(built, np.stack([x, -x, x[::-1] * np.float32(0.5)]), (k, 1, 2), backend)
    (alone,) = screen.top(built, x[None], (k,), backend)
    assert same(found, (alone.ids, alone.logits))
    return found


def same(found, wanted):
    return np.array_equal(found.ids, wanted[0]) and np.array_equal(
        found.logits.view(np.int32), wanted[1].view(np.int32)
    )


def agrees(matrix, x, ks=(1, 3, 40)):
    built = screen.build(matrix, BACKEND)
    return all(same(one(built, x, k, BACKEND), expected(matrix, x, min(k, matrix.n_row))) for k in ks)


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 2**32),
    n_row=st.integers(1, 300),
    n_col=st.sampled_from([16, 32, 48, 80, 256]),
    log_size=st.sampled_from([-20, -7, -3, 0, 4, 15]),
    log_x=st.sampled_from([-40, -12, 0, 3, 18]),
)
@FEW
def test_random_heads(kind, seed, n_row, n_col, log_size, log_x):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n_row, n_col)) * 10.0 ** (log_size if kind != "f16" else min(log_size, 4))
    x = (rng.standard_normal(n_col) * 10.0**log_x).astype(np.float32)
    assert agrees(head(w, kind), x)


@pytest.mark.slow
def test_a_hundred_thousand_small_heads():
    """Rows that differ by one unit in the last place, repeated rows, zero rows, rows of every size."""
    rng = np.random.default_rng(7)
    wrong, single = 0, Backend("cpu", 1)
    for i in range(100_000):
        n_row, n_col = int(rng.integers(2, 24)), 16 * int(rng.integers(1, 5))
        w = rng.standard_normal((n_row, n_col)).astype(np.float16)
        if i % 2:
            w[:] = w[0]
            bits = w.view(np.uint16)
            bits[np.arange(n_row), rng.integers(0, n_col, n_row)] += rng.integers(0, 2, n_row).astype(np.uint16)
        if i % 3 == 0:
            w *= (2.0 ** rng.integers(-8, 8, (n_row, 1))).astype(np.float16)
        if i % 5 == 0:
            w[rng.integers(0, n_row)] = 0
        x = rng.standard_normal(n_col).astype(np.float32)
        matrix = head(w)
        found = one(screen.build(matrix, single), x, 1, single)
        wrong += not same(found, expected(matrix, x, 1))
    assert wrong == 0


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32))
@FEW
def test_near_ties_are_decided_as_by_the_full_head(kind, seed):
    """Hundreds of copies of the best row, equal or one unit in the last place apart, among others."""
    rng = np.random.default_rng(seed)
    n_col = 128
    w = rng.standard_normal((400, n_col)).astype(np.float16).astype(np.float32)
    x = rng.standard_normal(n_col).astype(np.float32)
    w[rng.permutation(400)[:200]] = np.float32(np.float16(0.75)) * np.sign(x)
    halves = w.astype(np.float16)
    moved = rng.integers(0, n_col, 400)
    halves.view(np.uint16)[np.arange(400), moved] += rng.integers(0, 2, 400).astype(np.uint16)
    assert agrees(head(halves, kind), x, ks=(1, 7, 150, 399, 400, 500))


def test_equal_logits_go_to_the_lowest_id():
    w = np.zeros((64, 32), np.float32)
    w[[9, 17, 40]] = 1
    found = one(screen.build(head(w), BACKEND), np.ones(32, np.float32), 5, BACKEND)
    assert found.ids.tolist() == [9, 17, 40, 0, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_inputs_without_a_bound_take_the_full_pass(value):
    rng = np.random.default_rng(1)
    matrix = head(rng.standard_normal((900, 64)))
    x = np.zeros(64, np.float32)
    x[7] = value
    assert screen.prepare(screen.build(matrix, BACKEND), x) is None
    assert agrees(matrix, x)


def test_products_that_could_overflow_take_the_full_pass():
    rng = np.random.default_rng(2)
    matrix = head(rng.standard_normal((900, 64)) * 1e30, "f32")
    x = (rng.standard_normal(64) * 1e8).astype(np.float32)
    assert screen.prepare(screen.build(matrix, BACKEND), x) is None
    assert agrees(matrix, x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_always_computed(bad):
    rng = np.random.default_rng(3)
    w = rng.standard_normal((2000, 64)).astype(np.float32)
    w[100:120, 5] = bad
    x = rng.standard_normal(64).astype(np.float32)
    assert agrees(head(w), x, ks=(1, 5, 30))
    assert np.isinf(screen.build(head(w), BACKEND).error[100:120]).all()


def test_padded_vocabulary_and_rows_of_very_different_size():
    rng = np.random.default_rng(4)
    w = rng.standard_normal((3000, 64)) * 10.0 ** rng.integers(-6, 4, (3000, 1))
    w[2800:] = 0
    assert agrees(head(w), rng.standard_normal(64).astype(np.float32))
    assert agrees(head(-np.abs(w)), np.ones(64, np.float32))  # the padding wins


def bounds(matrix, x):
    built = screen.build(matrix, BACKEND)
    p = screen.prepare(built, x)
    lower, upper = np.empty((2, 1, matrix.n_row))
    constants = (np.array([value]) for value in (p.step, p.c0, p.c1, p.c2))
    rows = (built.codes, built.scale, built.error, built.norm)
    kernels.screen(*rows, p.q[None], *constants, 0, matrix.n_row, lower, upper)
    return lower[0], upper[0]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), log_x=st.sampled_from([-44, -30, 0, 10]))
@FEW
def test_every_logit_lies_within_its_bounds_and_they_are_not_loose(kind, seed, log_x):
    rng = np.random.default_rng(seed)
    matrix = head(rng.standard_normal((200, 256)), kind)
    x = (rng.standard_normal(256) * 10.0**log_x).astype(np.float32)
    lower, upper = bounds(matrix, x)
    logits = full(matrix, x).astype(np.float64)
    assert (lower <= logits).all()
    assert (logits <= upper).all()
    if log_x > -40:
        assert ((upper - lower) < 0.5 * logits.std()).all()


def test_errors_and_norms_are_upper_bounds_in_exact_arithmetic():
    rng = np.random.default_rng(5)
    matrix = head(rng.standard_normal((6, 48)) * 10.0 ** rng.integers(-8, 4, (6, 1)))
    built = screen.build(matrix, BACKEND)
    w = matrix.data.view(np.float16)
    for r in range(6):
        s = Fraction(float(built.scale[r]))
        kept = [s * int(c) for c in built.codes[r, :48]]
        missed = sum((Fraction(float(a)) - b) ** 2 for a, b in zip(w[r], kept, strict=True))
        assert missed <= Fraction(float(built.error[r])) ** 2 <= missed * (1 + Fraction(1, 2**20))
        norm = sum(b**2 for b in kept)
        assert norm <= Fraction(float(built.norm[r])) ** 2 <= norm * (1 + Fraction(1, 2**20))


def test_a_bound_that_is_too_tight_is_caught_by_near_ties():
    """The liar forgets the error of the rows: it leaves out rows that the full head puts first."""
    rng = np.random.default_rng(6)
    caught = 0
    for _ in range(20):
        x = rng.standard_normal(128).astype(np.float32)
        w = np.float32(0.75) * np.sign(x) + rng.standard_normal((400, 128)).astype(np.float32) * 0.002
        matrix = head(w)
        built = screen.build(matrix, BACKEND)
        liar = replace(built, error=np.zeros_like(built.error))
        caught += not same(one(liar, x, 1, BACKEND), expected(matrix, x, 1))
        assert same(one(built, x, 1, BACKEND), expected(matrix, x, 1))
    assert caught


def test_few_rows_are_computed():
    rng = np.random.default_rng(8)
    matrix = head(rng.standard_normal((20_000, 512)))
    built = screen.build(matrix, BACKEND)
    found = one(built, rng.standard_normal(512).astype(np.float32), 1, BACKEND)
    assert found.rescored < 200
    assert built.n_bytes < 0.55 * matrix.n_bytes


def test_what_is_not_screened():
    matrix = head(np.ones((4, 32)))
    assert screen.build(matrix, Backend("plain", 1)) is None
    assert screen.build(replace(matrix, scale=np.float32(2)), BACKEND) is None
    data, scale = np.ones((4, 32), np.int8), np.ones((4, 1), np.float32)
    int8 = Int8Matrix(
        name="h", type_name="Q8_0", n_row=4, n_col=32, n_bytes=1, scale=np.float32(1), data=data, block_scale=scale
    )
    assert screen.build(int8, BACKEND) is None


def test_shares_of_rows_change_nothing():
    rng = np.random.default_rng(9)
    matrix = head(rng.standard_normal((3001, 256)))
    x = rng.standard_normal(256).astype(np.float32)
    tops = [one(screen.build(matrix, b), x, 20, b) for b in (Backend("cpu", 1), Backend("cpu", 5))]
    assert same(tops[0], (tops[1].ids, tops[1].logits))
    assert tops[0].rescored == tops[1].rescored
