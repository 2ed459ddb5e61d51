"""The child's side, in this process: every request has an answer. Its deaths are in `test_process.py`."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest
from process_fakes import Good

from bitnet.errors import GGUFError
from reference.child import describe_error, pack_observation, serve
from reference.process import rebuild
from reference.runner import ReferenceFailedError, ReferenceUnavailableError, Request, describe
from reference.wire import Wire

START = {"op": "start", "factory": "process_fakes:Good", "kwargs": {}, "memory_limit": None}


@pytest.fixture
def wire():
    """Our end of a conversation with `serve`, in a thread."""
    ends = [*os.pipe(), *os.pipe()]
    server = threading.Thread(target=serve, args=(Wire(ends[0], ends[3]),))
    server.start()
    ticks = iter(range(200))  # of 50 ms
    yield Wire(ends[2], ends[1], lambda: next(ticks))
    os.close(ends[1])  # serve ends with its pipe, if it has not been told to close
    server.join(10)
    assert not server.is_alive()
    for fd in (ends[0], ends[2], ends[3]):
        os.close(fd)


def test_a_conversation(wire):
    wire.send(START)
    assert wire.receive()[0]["info"] == describe(Good().info)
    wire.send({"op": "tokenize", "texts": ["a"], "add_special": True, "parse_special": False})
    assert wire.receive()[0] == {"ids": [[1, 97]]}
    wire.send({"op": "weights", "name": "ab"})
    assert wire.receive()[1]["weights"].tolist() == [[2, 2, 2], [2, 2, 2]]
    wire.send({"op": "close"})
    assert wire.receive() == ({}, {})


def test_every_request_has_an_answer(wire):
    for request in (
        {},
        {"op": "no such thing"},
        {"op": "weights", "name": "early"},
        {**START, "factory": "process_fakes:none"},
    ):
        wire.send(request)
        assert wire.receive()[0]["error"]["kind"] == "failed"
    wire.send(START)
    assert "info" in wire.receive()[0]


def test_an_observation_packs_into_plain_types_and_arrays():
    seen = Good().run(Request(ids=(4, 5), n_greedy=1, taps=True))
    header, arrays = pack_observation(seen)
    assert json.loads(json.dumps(header)) == header
    assert header["taps"] == [["embd", -1], ["q", 2]]
    assert np.array_equal(arrays["tap 0"], seen.taps["embd", -1])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ReferenceUnavailableError("no", remedy="yes"), "unavailable"),
        (ReferenceFailedError("no", last_words="words"), "failed"),
        (MemoryError("out of memory"), "memory"),
        (GGUFError("bad", path="x.gguf", offset=3), "typed"),
        (KeyError("x"), "failed"),
    ],
)
def test_an_error_as_plain_types(error, kind):
    described = json.loads(json.dumps(describe_error(error)))
    assert described["kind"] == kind
    if kind == "typed":
        again = rebuild(described)
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))
