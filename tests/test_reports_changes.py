"""Changes are marked where they are, and hardly ever where none is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.changes import ALPHA, LEAST, changes, pettitt


def noise(n, seed, level=1.0):
    return level * np.random.default_rng(seed).normal(1, 0.05, n)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3])
def test_a_step_is_found_where_it_is(factor):
    [mark] = changes(np.concatenate([noise(60, 1), noise(40, 2, factor)]))
    assert abs(mark.at - 60) <= 2
    assert mark.after / mark.before == pytest.approx(factor, rel=0.03)
    assert mark.p < ALPHA


def test_two_steps_are_found_and_the_way_back():
    marks = changes(np.concatenate([noise(50, 1), noise(50, 2, 1.5), noise(50, 3)]))
    assert [round(mark.at, -1) for mark in marks] == [50, 100]


def test_false_marks_are_as_rare_as_promised():
    marked = sum(bool(changes(noise(80, seed))) for seed in range(1000))
    assert marked <= 5  # 1 expected; 6 or more would happen once in 1,700 such tests


def test_outliers_alone_are_no_change():
    values = noise(60, 4)
    values[[7, 20, 41]] = 50
    assert changes(values) == ()


def test_a_difference_nobody_acts_on_is_none():
    assert changes(np.concatenate([np.full(50, 1.0), np.full(50, 1.001)])) == ()
    assert len(changes(np.concatenate([np.full(50, 1.0), np.full(50, 1.1)]))) == 1


@given(st.lists(st.floats(0, 1e300), max_size=60))
def test_any_values_have_an_answer(values):
    found = changes(np.array(values))
    assert all(LEAST <= mark.at <= len(values) - LEAST for mark in found)
    assert changes(np.full(len(values), 3.0)) == ()


def test_too_few_values_have_no_test():
    assert pettitt(np.arange(2 * LEAST - 1.0)) is None
