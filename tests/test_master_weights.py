"""Float matrices as ternary ones: absmean as BitNet defines it, or the one magnitude they have."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bitnet.master_weights import as_float32, ternarise


@given(arrays(np.float32, (5, 7), elements=st.floats(-4, 4, width=16)))
def test_absmean_as_plain_loops_do_it(values):
    found = ternarise(values)
    magnitudes = {abs(float(v)) for v in values.flat if v}
    if len(magnitudes) == 1:
        assert found.exact
        assert found.scale == np.float32(magnitudes.pop())
        assert (found.trits(slice(None)) == np.sign(values)).all()
        return
    assert not found.exact
    mean = max(np.float32(np.abs(values).sum(dtype=np.float64) / values.size), np.float32(1e-5))
    inverse = np.float32(1) / mean
    assert found.scale == np.float32(1) / inverse
    for i in range(5):
        for j in range(7):
            assert found.trits(np.array([i]))[0, j] == min(max(round(float(values[i, j] * inverse)), -1), 1)


def test_ternary_floats_keep_their_scale_where_absmean_would_shrink_it():
    values = np.array([[0.5, 0, 0, -0.5]], np.float32)
    assert ternarise(values).scale == 0.5


def test_nan_and_infinity_are_no_weights():
    for bad in (np.nan, np.inf, -np.inf):
        values = np.ones((2, 3), np.float32)
        values[1, 2] = bad
        assert ternarise(values) is None


def test_bfloat16_is_exact():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = as_float32(bits)
    assert (wide.view(np.uint32) >> 16 == bits).all()


def test_a_matrix_of_many_parts_is_judged_whole():
    values = np.full((3000, 1000), 0.25, np.float32)
    assert ternarise(values).exact
    values[-1, -1] = 0.5
    assert not ternarise(values).exact
