"""Parts of arrays are what slices are, without a copy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.kernels import arrays
from bitnet.kernels.compile import kernel


@kernel
def double_part(x, at, n):
    """Twice some elements, in place."""
    found = arrays.part(x, at, n)
    for i in range(found.size):
        found[i] = 2 * found[i]


@kernel
def copy_bytes(address, n, out):
    """Some bytes of memory."""
    found = arrays.bytes_at(address, n)
    for i in range(found.size):
        out[i] = found[i]


@given(st.sampled_from([np.int8, np.int32, np.float32, np.uint16]), st.integers(0, 40), st.integers(0, 40))
def test_a_part_is_a_slice(dtype, at, n):
    x = np.arange(80).astype(dtype)
    expected = x.copy()
    expected[at : at + n] *= 2
    double_part(x, at, n)
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("at", [0, 3])
def test_bytes_of_memory(at):
    x, out = np.arange(100, dtype=np.uint8), np.zeros(10, np.uint8)
    copy_bytes(x.ctypes.data + at, 10, out)
    assert np.array_equal(out, x[at : at + 10])
