"""Strings are found where reading one by one finds them, whatever they hold."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from gguf_bytes import string
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import gguf_strings
from bitnet.gguf_strings import string_starts


def one_by_one(buffer: bytes, begin: int, n: int, limit: int) -> tuple[list[int], int]:
    """The rule as it is written down."""
    starts, position = [], begin
    while len(starts) < n and position + 8 <= limit:
        starts.append(position + 8)
        position += 8 + struct.unpack_from("<Q", buffer, position)[0]
    return starts, position


def found(buffer: bytes, begin: int, n: int, limit: int) -> tuple[list[int], int]:
    starts, done, position = string_starts(buffer, begin, n, limit, lambda: None)
    assert len(starts) == n + 1
    return starts[:done].tolist(), position


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"", b"a", b"\0", b"\0" * 7, b"\0" * 8, b"\1\0\0\0\0\0\0\0a", b"x" * 255, b"y" * 256, b"z" * 70_000]
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=60), st.integers(0, 3), st.integers(0, 40), st.integers(4, 12))
def test_as_one_by_one(pieces, repeat, cut, window):
    pieces = pieces + [b"common"] * 200 * repeat + pieces
    raw = b"#" * 5 + b"".join(map(string, pieces))
    kept = gguf_strings._WINDOW
    try:
        gguf_strings._WINDOW = 1 << window  # many windows, with strings across their ends
        for limit in {len(raw), max(5, len(raw) - cut)}:
            assert found(raw, 5, len(pieces), limit) == one_by_one(raw, 5, len(pieces), limit)
    finally:
        gguf_strings._WINDOW = kept


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.integers(0, 20))
def test_of_any_bytes(raw, n):
    assert found(raw, 0, n, len(raw)) == one_by_one(raw, 0, n, len(raw))


@pytest.mark.parametrize("piece", [b"", b"token", b"\0" * 20, b"x" * 300])
def test_of_many_alike(piece):
    n = 50_000
    raw = string(piece) * n
    starts, end = found(raw, 0, n, len(raw))
    assert end == len(raw)
    np.testing.assert_array_equal(starts, np.arange(n) * (8 + len(piece)) + 8)


def test_time_is_looked_at():
    raw = string("token") * 100_000

    def out_of_time():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        string_starts(raw, 0, 100_000, len(raw), out_of_time)
