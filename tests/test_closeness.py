"""Three limits, judged together: each sees what the others miss."""

from __future__ import annotations

import numpy as np
import pytest

from crossval.closeness import Closeness
from receipts.running import WINDOW

QUIET = Closeness.over("int8_token", "f32", median=0.0, running=0.0, largest=0.0)
HONEST = [np.full(200, 2e-7), np.full(5, 3e-7)]


def changed(where, value):
    rows = HONEST[0].copy()
    rows[where] = value
    return [rows, HONEST[1]]


def failing(parts):
    return [limit.metric.split()[0] for limit, value in QUIET.measured(parts) if not limit.holds(value)]


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (HONEST, []),
        (changed(slice(0, 120), 5e-4), ["median"]),
        (changed(slice(150, 200), 5e-3), ["running"]),
        (changed([7, 50, 120], 1e-2), []),
        (changed(7, 0.3), ["largest"]),
        (changed(7, np.inf), ["largest"]),
        (changed(slice(0, 200), np.nan), ["median", "running", "largest"]),
    ],
)
def test_each_limit_sees_what_it_is_for(parts, names):
    assert failing(parts) == names
    assert QUIET.hold(parts) == (not names)


def test_windows_do_not_reach_over_the_end_of_a_part():
    half = np.full(WINDOW - 1, 5e-3)
    low = np.full(WINDOW - 1, 1e-7)
    assert "running" not in failing([low, low, low, half, half])
    assert "running" in failing([low, low, low, np.concatenate((half, half))])


def test_noise_widens_each_limit_by_its_own_measure():
    noisy = Closeness.over("int8_token", "f32", median=1e-3, running=4e-3, largest=0.1)
    assert [limit.limit for limit in (noisy.median, noisy.running, noisy.largest)] == pytest.approx([4e-3, 16e-3, 0.4])
    told = Closeness.over("int8_token", "f32", median=0.0, running=0.0, largest=0.0, told=1e-2)
    assert told.running.limit == pytest.approx(1.1e-2)


def test_floats_are_held_to_their_rounding_in_every_window():
    floats = Closeness.over("none", "f32", median=0.0, running=0.0, largest=0.0)
    assert floats.running.limit == floats.median.limit
