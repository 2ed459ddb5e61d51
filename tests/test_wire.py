"""The pipe's framing: what is sent arrives, in any pieces; what is no message is an error and costs no memory."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from reference.wire import DTYPES, MAX_ARRAY_BYTES, Wire, WireClosedError, WireError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARRAYS = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    max_size=4,
)


class OverdueError(Exception):
    pass


def received(data: bytes, *, close: bool = True):
    """What a reader makes of these bytes."""
    there, write_fd = os.pipe()
    read_fd, back = os.pipe()

    def late() -> None:
        raise OverdueError

    wire = Wire(there, back, late)
    try:
        feeder = threading.Thread(target=_feed, args=(write_fd, data, close))
        feeder.start()
        try:
            return wire.receive()
        finally:
            feeder.join()
            if not close:
                os.close(write_fd)
    finally:
        for fd in (there, back, read_fd):
            os.close(fd)


def _feed(fd: int, data: bytes, close: bool) -> None:
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        if close:
            os.close(fd)


def sent(header, arrays) -> bytes:
    """The bytes of a message."""
    read_fd, write_fd = os.pipe()
    chunks = []

    def drain() -> None:
        while data := os.read(read_fd, 1 << 16):
            chunks.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    unused, other = os.pipe()
    Wire(unused, write_fd).send(header, arrays)
    os.close(write_fd)
    reader.join()
    for fd in (read_fd, unused, other):
        os.close(fd)
    return b"".join(chunks)


def message(arrays, payload: bytes = b"") -> bytes:
    return json.dumps({"arrays": arrays}).encode() + b"\n" + payload


@given(st.dictionaries(st.text().filter(lambda key: key != "arrays"), PLAIN, max_size=4), ARRAYS)
@settings(max_examples=60, deadline=None)
def test_what_is_sent_arrives(header, arrays):
    got, back = received(sent(header, arrays))
    assert got == header
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()  # bytes, so that NaN counts as equal to itself


def test_a_message_larger_than_a_pipe_and_an_array_out_of_order():
    large = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024).T
    assert not large.flags.c_contiguous
    _, back = received(sent({}, {"x": large, "y": np.float32([1]).astype(">f4")}))
    assert np.array_equal(back["x"], large)
    assert back["y"].dtype.str == "<f4"
    assert back["y"][0] == 1


def test_two_messages_in_one_piece():
    data = sent({"i": 1}, {"x": np.zeros(3)}) + sent({"i": 2}, {})
    there, write_fd = os.pipe()
    wire = Wire(there, write_fd)
    os.write(write_fd, data)
    assert wire.receive()[0] == {"i": 1}
    assert wire.receive()[0] == {"i": 2}
    os.close(there)
    os.close(write_fd)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_message_cut_short_is_never_an_answer(data):
    whole = sent({"a": 1}, {"x": np.arange(5, dtype=np.float32)})
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(WireClosedError):
        received(whole[:cut])


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_an_error_and_nothing_else(data):
    with pytest.raises(WireError):
        received(data)


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        {},
        7,
        [["x", "<f4"]],
        [["x", "|O", [1]]],
        [["x", "<f4", [-1]]],
        [["x", "<f4", [1.5]]],
        [["x", "<f4", [True]]],
        [["x", "<f4", [1] * 5]],
        [["x", "<f4", [1 << 62]]],
        [["x", "<f4", [1 << 20, 1 << 20]]],
        [[1, "<f4", [1]]],
        [["x", "<f4", 3]],
    ],
)
def test_an_array_that_cannot_be_is_an_error(arrays):
    with pytest.raises(WireError):
        received(message(arrays, b"\0" * 64))


def test_a_length_that_its_shape_denies_is_an_error():
    with pytest.raises(WireError, match="comes with 12 bytes, not 8"):
        received(message([["x", "<f4", [2]]], (12).to_bytes(8, "little") + b"\0" * 12))


def test_the_largest_lie_waits_for_bytes_instead_of_memory():
    n = MAX_ARRAY_BYTES // 4
    with pytest.raises(OverdueError):
        received(message([["x", "<f4", [n]]], MAX_ARRAY_BYTES.to_bytes(8, "little")), close=False)


def test_what_may_not_travel_is_refused_by_the_sender():
    unused, write_fd = os.pipe()
    wire = Wire(unused, write_fd)
    for array in (np.zeros(1, np.float16), np.zeros(1, complex), np.array([None])):
        with pytest.raises(WireError, match="does not travel"):
            wire.send({}, {"x": array})
    os.close(write_fd)
    os.close(unused)


def test_sending_to_nobody_is_an_error():
    read_fd, write_fd = os.pipe()
    wire = Wire(read_fd, write_fd)
    os.close(read_fd)
    with pytest.raises(WireClosedError):
        wire.send({}, {})
    os.close(write_fd)
