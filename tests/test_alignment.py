"""Arrays that begin at a cache line, of any shape and type."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.kernels.alignment import ALIGNMENT, aligned


@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    dtype=st.sampled_from([np.int8, np.uint16, np.float32, np.float64]),
    zeros=st.booleans(),
)
def test_arrays_begin_at_a_cache_line(shape, dtype, zeros):
    found = aligned(shape, dtype, zeros=zeros)
    assert (found.shape, found.dtype) == (shape, np.dtype(dtype))
    assert found.flags.c_contiguous
    assert found.ctypes.data % ALIGNMENT == 0 or not found.size
    assert not zeros or not found.any()
    found[...] = 1
    assert (found == 1).all()


def test_more_than_there_is_memory_for_is_the_usual_error():
    with pytest.raises(MemoryError):
        aligned((1 << 60,), np.uint8)
