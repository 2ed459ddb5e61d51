"""Intervals of a median by order alone."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.interval import CONFIDENCE, median_interval, rates


@pytest.mark.parametrize(("n", "cut"), [(1, 0), (3, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_known_cuts(n, cut):
    """As tables of the sign test have them for 95 %."""
    assert median_interval([float(i) for i in range(n)]) == (cut, n - 1 - cut)


def test_it_covers_as_often_as_it_says():
    rng = random.Random(1)
    hits = 0
    for _ in range(2000):
        low, high = median_interval([rng.expovariate(1) for _ in range(15)])
        hits += low <= 0.6931471805599453 <= high
    assert hits / 2000 >= CONFIDENCE - 0.015  # three standard errors of 2000 trials


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40))
def test_the_median_is_inside(values):
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
    assert rates(10, (1.0, 0.0)) == ()
    assert rates(10, (1.0, 2.0)) == (10.0, 5.0)
