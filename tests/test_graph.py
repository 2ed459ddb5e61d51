"""The compiled pass is tried as a whole in test_compiled; here, that no small part of it hides behind the rest."""

import numpy as np
import pytest

from bitnet.kernels import graph
from bitnet.kernels.compile import kernel


@kernel
def stored(store, row):
    """One row of a cache."""
    graph._store(store, row.size, row, 0, row.size)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_keys_are_stored_in_the_type_of_the_cache(dtype):
    row = np.array([1.0, -0.1, 65504.0, 1e6, 1e-8, np.nan, 2049.0], np.float32)
    store = np.zeros((2, len(row)), dtype)
    stored(store.reshape(-1), row)
    with np.errstate(over="ignore"):
        expected = row if dtype == np.float32 else row.astype(np.float16).view(np.uint16)
    assert np.array_equal(store[1], expected, equal_nan=dtype == np.float32)
    assert not store[0].any()


@kernel
def shares(n, n_threads, out):
    """Everybody's part."""
    for thread in range(n_threads):
        out[thread, 0], out[thread, 1] = graph._share(n, thread, n_threads)


@pytest.mark.parametrize(("n", "n_threads"), [(0, 3), (1, 4), (7, 3), (432, 5), (6912, 64)])
def test_parts_are_whole_and_apart(n, n_threads):
    out = np.zeros((n_threads, 2), np.int64)
    shares(n, n_threads, out)
    assert [i for begin, end in out for i in range(begin, end)] == list(range(n))
