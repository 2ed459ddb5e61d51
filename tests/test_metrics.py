"""Distances between arrays, against numbers worked out by hand; NaN, other shapes and no rows agree with nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from crossval.metrics import (
    ShapeMismatchError,
    difference,
    kl_divergence,
    log_softmax,
    max_abs,
    negative_log_likelihood,
    relative_l2,
    top1_margin,
)

NAN, INF = np.float32("nan"), np.float32("inf")
ROWS = arrays.arrays(np.float32, (3, 4), elements=st.floats(-100, 100, width=32))


def f32(*rows):
    return np.array(rows, np.float32)


def test_where_the_largest_difference_is():
    found = difference(f32([1, 2, 3], [4, 5, 9]), f32([1, 2, 4], [4, 5, 6]))
    assert (found.compared, found.max_abs_err, found.max_abs_ref) == (6, 3.0, 6.0)
    assert (found.worst_token, found.worst_index, found.ratio) == (1, 2, 0.5)
    assert found.by_token.tolist() == [1.0, 3.0]
    assert found.positions(0.1) == (0, 1)
    assert found.positions(0.2) == (1,)
    assert found.positions(0.5) == ()


def test_a_vector_is_one_row():
    assert difference(np.ones(3, np.float32), np.ones(3, np.float32)).compared == 3


@pytest.mark.parametrize(("ours", "theirs"), [(NAN, 1), (1, NAN), (NAN, NAN), (INF, INF), (INF, -INF), (1, INF)])
def test_what_is_not_finite_agrees_with_nothing(ours, theirs):
    a, b = f32([0, ours], [1, 1]), f32([0, theirs], [1, 1])
    found = difference(a, b)
    assert found.max_abs_err == found.ratio == np.inf
    assert (found.worst_token, found.worst_index) == (0, 1)
    assert found.max_abs_ref == 1.0
    assert relative_l2(a, b).tolist() == [np.inf, 0.0]
    assert max_abs(a, b).tolist() == [np.inf, 0.0]
    assert np.isinf(kl_divergence(a, b)[0])
    assert kl_divergence(a, b)[1] == 0.0


def test_all_nan_is_infinitely_wrong():
    nothing = np.full((2, 3), NAN)
    assert difference(nothing, nothing).ratio == np.inf
    assert relative_l2(nothing, nothing).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("metric", [difference, relative_l2, max_abs, kl_divergence])
@pytest.mark.parametrize(("a", "b"), [((2, 3), (3, 2)), ((2, 3), (1, 3)), ((0, 3), (2, 3)), ((2, 3), (2, 1))])
def test_other_shapes_are_no_comparison(metric, a, b):
    """Broadcasting would compare one row with all."""
    with pytest.raises(ShapeMismatchError, match=r"ours has shape \[\d, \d\], theirs \[\d, \d\]"):
        metric(np.ones(a, np.float32), np.ones(b, np.float32))


def test_no_rows_compare_nothing():
    none = np.ones((0, 4), np.float32)
    assert difference(none, none).compared == 0
    assert difference(none, none).ratio == 0.0
    assert relative_l2(none, none).size == max_abs(none, none).size == kl_divergence(none, none).size == 0


def test_a_zero_reference_that_is_missed_is_infinitely_wrong():
    zero = np.zeros((1, 2), np.float32)
    assert difference(zero + 1, zero).ratio == np.inf
    assert relative_l2(zero + 1, zero).tolist() == [np.inf]
    assert difference(zero, zero).ratio == 0.0
    assert relative_l2(zero, zero).tolist() == [0.0]


def test_relative_l2_by_hand():
    assert relative_l2(f32([3, 4], [6, 8]), f32([3, 4], [3, 4])).tolist() == [0.0, 1.0]


def test_the_scale_of_logits_is_seen_where_a_cosine_is_one():
    logits = f32([1, 2, 3])
    assert relative_l2(logits * np.float32(1.5), logits) == pytest.approx(0.5)
    assert kl_divergence(logits * np.float32(1.5), logits)[0] > 1e-2


def test_kl_by_hand():
    """½ and ½ against ¼ and ¾: ½ ln 2 + ½ ln ⅔."""
    ours, theirs = f32([np.log(1), np.log(3)]), f32([0, 0])
    assert kl_divergence(ours, theirs)[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-6)


def test_margin_by_hand():
    assert top1_margin(f32([1, 5, 3], [2, 2, 0])).tolist() == [2.0, 0.0]
    assert top1_margin(np.ones((2, 1), np.float32)).tolist() == [np.inf, np.inf]


def test_likelihood_by_hand():
    """Row i scores the token after it; the last row scores none."""
    logits = np.log(f32([1, 3], [1, 1], [9, 1]))
    assert negative_log_likelihood(logits, (0, 1, 0)) == pytest.approx([-np.log(3 / 4), -np.log(1 / 2)], rel=1e-6)
    assert negative_log_likelihood(logits[:1], (0,)).size == 0


@given(ROWS)
def test_equal_arrays_do_not_differ(a):
    assert difference(a, a.copy()).ratio == 0.0
    assert not relative_l2(a, a.copy()).any()
    assert not max_abs(a, a.copy()).any()
    assert not kl_divergence(a, a.copy()).any()
    assert np.exp(log_softmax(a)).sum(axis=1) == pytest.approx(1.0)


@given(ROWS, ROWS)
def test_different_arrays_differ_in_every_metric(a, b):
    if np.array_equal(a, b):
        return
    assert difference(a, b).max_abs_err > 0.0
    assert relative_l2(a, b).max() > 0.0
    assert max_abs(a, b).max() == difference(a, b).max_abs_err
    assert (kl_divergence(a, b) >= 0.0).all()
