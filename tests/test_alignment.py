"""Arrays that begin at a cache line, of any shape and type; memory in huge pages."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.kernels.alignment import ALIGNMENT, aligned, pages


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


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells how memory is mapped")
def test_memory_is_private_and_huge_pages_are_asked_for():
    """Shared memory, Python's own choice, would have none."""
    found = pages(8 << 20)
    found[:] = 1
    address = found.ctypes.data
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]:
        begin, end = (int(x, 16) for x in mapping.split(maxsplit=1)[0].split("-"))
        if begin <= address < end:
            break
    assert mapping.split()[1] == "rw-p"
    assert " hg" in mapping.split("VmFlags:")[1] or not Path("/sys/kernel/mm/transparent_hugepage").exists()
