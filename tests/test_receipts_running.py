"""The running median against numpy's, window by window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.running import WINDOW, running_median

VALUES = st.floats(0.0, 1e3, allow_nan=False)


@given(st.lists(VALUES, min_size=WINDOW, max_size=3 * WINDOW))
def test_it_is_the_largest_median_of_any_window(values):
    windows = np.lib.stride_tricks.sliding_window_view(np.array(values), WINDOW)
    assert running_median(values) == pytest.approx(np.median(windows, axis=1).max())


@given(st.lists(VALUES, max_size=WINDOW - 1))
def test_fewer_values_than_a_window_have_none(values):
    assert running_median(values) == 0.0


def test_what_half_of_a_window_is_counts():
    assert running_median([0.0] * WINDOW + [1.0] * (WINDOW // 2 - 1)) == 0.0
    assert running_median([0.0] * WINDOW + [1.0] * (WINDOW // 2 + 1)) == 1.0
    assert running_median([float("inf")] * WINDOW) == float("inf")
