"""Screened heads: ids, order and bits of the full head, on heads made to deceive, and bounds that hold and bite."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import screen
from bitnet.kernels import head as kernels
from bitnet.kernels.variants import VARIANTS, runs_here
from bitnet.linear import Backend, DenseMatrix, Int8Matrix

BACKEND = Backend("cpu", 2)
HERE = [v for v in VARIANTS.values() if runs_here(v) and v.layout == "2-bit"]
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


def test_rows_so_wide_that_sums_might_wrap_take_the_full_pass():
    rng = np.random.default_rng(12)
    matrix = head(rng.standard_normal((3, screen._TOO_WIDE)))
    x = rng.standard_normal(screen._TOO_WIDE).astype(np.float32)
    built = screen.build(matrix, BACKEND)
    assert screen.prepare(built, x) is None
    assert screen.prepare(built, x[:-16]) is not None
    assert same(one(built, x, 1, BACKEND), expected(matrix, x, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_always_computed(bad):
    rng = np.random.default_rng(3)
    w = rng.standard_normal((2000, 64)).astype(np.float32)
    w[100:120, 5] = bad
    x = rng.standard_normal(64).astype(np.float32)
    assert agrees(head(w), x, ks=(1, 5, 30))
    built = screen.build(head(w), BACKEND)
    assert np.isinf([built.coarse[100:120], built.error[100:120]]).all()


def test_padded_vocabulary_and_rows_of_very_different_size():
    rng = np.random.default_rng(4)
    w = rng.standard_normal((3000, 64)) * 10.0 ** rng.integers(-6, 4, (3000, 1))
    w[2800:] = 0
    assert agrees(head(w), rng.standard_normal(64).astype(np.float32))
    assert agrees(head(-np.abs(w)), np.ones(64, np.float32))  # the padding wins


def codes(built):
    """h in 0..63 and l in 0..3 of every row, [n_row, width], as `kernels.planes` describes their bytes."""
    x, y, z = np.moveaxis(built.high.reshape(len(built.high), -1, 3, 32), 2, 0)
    last = x >> 6 | (y >> 6) << 2 | (z >> 6) << 4
    high = np.stack([x & 63, y & 63, z & 63, last], 2)
    low = built.low.reshape(len(built.low), -1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    return high.reshape(len(high), -1).astype(np.int64), low.reshape(len(low), -1).astype(np.int64)


def integers(p):
    q = p.q.astype(np.int64)
    return q[0] if len(q) == 1 else 128 * q[0] + q[1]


def bounds(built, x):
    """Lower and upper bounds of all logits from 4h − 126.5, and from the whole codes, by numpy."""
    p = screen.prepare(built, x)
    high, low = codes(built)
    pairs = []
    for code, error in ((4 * high - 126.5, built.coarse), (4.0 * high + low - 128, built.error)):
        centre = (code @ integers(p)) * (p.step * built.scale.astype(np.float64))
        margin = p.c0 + p.c1 * error.astype(np.float64) + p.c2 * built.norm.astype(np.float64)
        pairs.append((centre - margin, centre + margin))
    return pairs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_plane", [1, 2])
@given(seed=st.integers(0, 2**32), log_x=st.sampled_from([-44, -30, 0, 10]))
@FEW
def test_every_logit_lies_within_its_bounds_and_they_are_not_loose(kind, n_plane, seed, log_x):
    """One row of activations may widen the bounds by half of those of six bits."""
    rng = np.random.default_rng(seed)
    matrix = head(rng.standard_normal((200, 256)), kind)
    x = (rng.standard_normal(256) * 10.0**log_x).astype(np.float32)
    logits = full(matrix, x).astype(np.float64)
    built = screen.build(matrix, BACKEND)
    built = built if n_plane == 1 else replace(built, usual=0)
    for (lower, upper), loose in zip(bounds(built, x), ((3.0, 1.5) if n_plane == 1 else (2.0, 0.5)), strict=True):
        assert (lower <= logits).all()
        assert (logits <= upper).all()
        if log_x > -40:
            assert ((upper - lower).max() / logits.std()) < loose


@pytest.mark.parametrize("variant", HERE, ids=lambda v: v.id)
@given(
    seed=st.integers(0, 2**32),
    n_row=st.integers(1, 150),
    n_col=st.sampled_from([16, 128, 144, 400]),
    n=st.integers(1, 5),
    n_threads=st.integers(1, 3),
)
@settings(max_examples=20, deadline=None)
def test_both_passes_bound_what_they_should(variant, seed, n_row, n_col, n, n_threads):
    """Every variant, alone and with other inputs: the bounds of numpy, and the rows that they leave."""
    rng = np.random.default_rng(seed)
    backend = Backend("cpu", n_threads, chosen=variant)
    built = screen.build(head(rng.standard_normal((n_row, n_col))), backend)
    x = rng.standard_normal((n, n_col)).astype(np.float32)
    counts = rng.integers(1, n_row + 1, n).tolist()
    x[0, 0] = 50  # takes two rows of activations where there are columns enough for others to take one
    found = screen._Bounds(built, [screen.prepare(built, row) for row in x], counts, backend)
    logits = [full(built.matrix, row) for row in x]
    for i, k in enumerate(counts):
        (_, coarse), (_, upper) = bounds(built, x[i])
        padded = np.pad(coarse, (0, -n_row % 16), constant_values=-np.inf).reshape(-1, 16)
        assert found._highest[i] == pytest.approx(padded.max(axis=1), rel=1e-13)  # order of two float64 additions
        least = found.threshold(i, x[i])
        assert np.count_nonzero(logits[i] >= least) >= k
        assert least >= np.sort(logits[i])[0]
        for limit in (least, float(rng.choice(coarse)) * (1 - 1e-9), -1e300, np.inf):
            limits = np.full(n, np.inf)
            limits[i] = limit
            rows, refined = found.reaching(limits)[i]
            assert rows.tolist() == np.flatnonzero((coarse >= limit) & (upper >= limit)).tolist()
            assert refined == np.count_nonzero(coarse >= limit)


@pytest.mark.parametrize("variant", HERE, ids=lambda v: v.id)
@pytest.mark.parametrize("n_col", [256, 2560, 6912])
def test_sums_of_extremes_are_exact(variant, n_col):
    """All codes and activations as large as they can be, of either sign."""
    matrix = head(np.repeat([[1.0], [-1.0]], [3, 3], axis=0) * np.ones((6, n_col)))
    backend = Backend("cpu", 1, chosen=variant)
    built = screen.build(matrix, backend)
    high, low = codes(built)
    assert set(np.unique(4 * high + low - 128)) == {-127, 127}
    everything = replace(built, coarse=np.full_like(built.coarse, np.inf))  # to be looked at twice
    fine = screen.prepare(replace(built, usual=0), np.ones(n_col, np.float32))

    def given(*values):
        q = np.empty((len(values), n_col), np.int8)
        q[:] = np.array(values)[:, None]
        p = replace(fine, q=q)
        return replace(p, total=int(integers(p).sum()))

    for a, (b, c) in product((127, -127), ((64, 63), (-64, -64))):
        inputs = [given(a), given(b, c), given(a), given(a), given(b, c)]  # seven rows
        found = screen._Bounds(everything, inputs, [1] * 5, backend)
        rows = np.concatenate([p.q for p in inputs])
        assert (found._sums[: len(rows)] == rows.astype(np.int64) @ high.T).all()
        for i, p in enumerate(inputs):
            products = (4 * high + low - 128) @ integers(p) * (p.step * built.scale.astype(np.float64))
            upper = products + (p.c0 + p.c1 * built.error.astype(np.float64) + p.c2 * built.norm.astype(np.float64))
            for limit in (upper.max(), upper.min()):
                kept, _ = found.reaching([limit] * 5)[i]
                assert kept.tolist() == np.flatnonzero(upper >= limit).tolist()


@given(seed=st.integers(0, 2**32), n_col=st.sampled_from([16, 112, 128, 272]))
@FEW
def test_planes_hold_the_nearest_codes(seed, n_col):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((9, n_col)).astype(np.float32)
    w[3], w[4, 1:], w[5] = 0, 0, 1e-38
    built = screen.build(head(w, "f32"), BACKEND)
    high, low = codes(built)
    code, scale = 4 * high + low - 128, built.scale.astype(np.float64)
    assert (np.abs(code) <= 127).all()
    assert (code[:, n_col:] == 0).all()
    missed = np.abs(w.astype(np.float64) - code[:, :n_col] * scale[:, None])
    assert (missed[[0, 1, 2, 4, 6, 7, 8]] <= 0.50001 * scale[[0, 1, 2, 4, 6, 7, 8], None]).all()
    assert not code[[3, 5]].any()


@given(seed=st.integers(0, 2**32), log_size=st.integers(-45, 37), n_col=st.sampled_from([16, 144]))
@FEW
def test_inputs_are_divided_exactly(seed, log_size, n_col):
    rng = np.random.default_rng(seed)
    built = screen.build(head(rng.standard_normal((3, n_col)) * 1e-4), BACKEND)
    x = (rng.standard_normal(n_col) * 10.0**log_size).astype(np.float32)
    if not 0 < np.abs(x).max() < np.inf:
        return
    for usual, n_plane in ((np.inf, 1), (0, 2)):
        p = screen.prepare(replace(built, usual=usual), x)
        q = integers(p)
        assert len(p.q) == n_plane
        assert np.abs(q).max() <= screen._AMPLITUDES[n_plane]
        assert n_plane == 1 or (np.abs(p.q[0].astype(int)).max() <= 64 and -64 <= p.q[1].min() <= p.q[1].max() <= 63)
        assert p.total == q.sum()
        assert (q * Fraction(p.step) == [Fraction(a) for a in (q * p.step).tolist()]).all()
        assert (2 * np.abs(x.astype(np.float64) - q[:n_col] * p.step) <= p.step).all()


def test_an_input_with_outliers_takes_two_rows_at_once():
    """One row of activations for it would widen the bounds by more than it saves."""
    rng = np.random.default_rng(11)
    built = screen.build(head(rng.standard_normal((300, 256))), BACKEND)
    x = rng.standard_normal(256).astype(np.float32)
    assert len(screen.prepare(built, x).q) == 1
    x[7] = 40
    assert len(screen.prepare(built, x).q) == 2
    assert agrees(built.matrix, x)


@given(seed=st.integers(0, 2**32), k=st.integers(1, 40))
@FEW
def test_the_best_rows_are_seeds_however_they_are_shared(seed, k):
    rng = np.random.default_rng(seed)
    w = rng.integers(-1, 2, (700, 16)).astype(np.float32)  # many equal
    x = rng.integers(-3, 4, 16).astype(np.float32)
    x[0] = 1
    found = []
    for n_threads in (1, 4):
        backend = Backend("cpu", n_threads)
        built = screen.build(head(w), backend)
        bound = screen._Bounds(built, [screen.prepare(built, x)], [k], backend)
        found.append((bound.threshold(0, x), one(built, x, k, backend).refined))
    assert found[0] == found[1]
    assert found[0][0] == np.sort(full(head(w), x))[-k]


def test_errors_and_norms_are_upper_bounds_in_exact_arithmetic():
    rng = np.random.default_rng(5)
    matrix = head(rng.standard_normal((6, 48)) * 10.0 ** rng.integers(-8, 4, (6, 1)))
    built = screen.build(matrix, BACKEND)
    w = matrix.data.view(np.float16)
    high, low = codes(built)
    for r in range(6):
        s, norms = Fraction(float(built.scale[r])), []
        for code, error in ((8 * high - 253, built.coarse), (8 * high + 2 * low - 256, built.error)):
            kept = [s * int(c) / 2 for c in code[r, :48]]
            missed = sum((Fraction(float(a)) - b) ** 2 for a, b in zip(w[r], kept, strict=True))
            assert missed <= Fraction(float(error[r])) ** 2 <= missed * (1 + Fraction(1, 2**20))
            norms.append(sum(b**2 for b in kept))
        assert max(norms) <= Fraction(float(built.norm[r])) ** 2 <= max(norms) * (1 + Fraction(1, 2**20))


def test_a_bound_that_is_too_tight_is_caught_by_near_ties():
    """The liars forget an error of the rows, of six bits or of eight: they leave out rows it puts first."""
    rng = np.random.default_rng(6)
    caught = [0, 0]
    for _ in range(20):
        x = rng.standard_normal(128).astype(np.float32)
        w = np.float32(0.75) * np.sign(x) + rng.standard_normal((400, 128)).astype(np.float32) * 0.02
        matrix = head(w)
        built = screen.build(matrix, BACKEND)
        for i, name in enumerate(("coarse", "error")):
            liar = replace(built, **{name: np.zeros_like(built.error)})
            ((kept, _),) = screen._candidates(liar, x[None], [1], BACKEND)
            caught[i] += kept is not None and expected(matrix, x, 1)[0][0] not in kept
        assert same(one(built, x, 1, BACKEND), expected(matrix, x, 1))
    assert all(caught)


def test_few_rows_are_computed():
    rng = np.random.default_rng(8)
    matrix = head(rng.standard_normal((20_000, 512)))
    built = screen.build(matrix, BACKEND)
    found = one(built, rng.standard_normal(512).astype(np.float32), 1, BACKEND)
    assert found.rescored < 100
    assert found.refined < 2000
    assert built.n_bytes < 0.4 * matrix.n_bytes
    assert found.n_bytes == found.refined * 128 + found.rescored * 1024
    assert built.high.nbytes + built.low.nbytes == 20_000 * 512


def test_many_inputs_at_once():
    rng = np.random.default_rng(10)
    matrix = head(rng.standard_normal((900, 64)))
    x = rng.standard_normal((33, 64)).astype(np.float32)
    x[5], x[6, 3] = 0, np.nan
    counts = rng.integers(1, 50, 33).tolist()
    found = screen.top(screen.build(matrix, BACKEND), x, counts, BACKEND)
    assert all(same(best, expected(matrix, row, k)) for best, row, k in zip(found, x, counts, strict=True))


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
    assert (tops[0].refined, tops[0].rescored) == (tops[1].refined, tops[1].rescored)
