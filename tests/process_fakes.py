"""Runners that misbehave in one way each; the tests of `reference.process` run them in a child."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

import numpy as np

from bitnet.errors import GGUFError
from reference.runner import Observation, ReferenceFailedError, ReferenceUnavailableError, Request, RunnerInfo

N_VOCAB = 7


class Good:
    """Answers correctly; every other runner here differs from it in one thing."""

    def __init__(self, model_sha256: str = "m"):
        self.model_sha256 = model_sha256

    @property
    def info(self):
        return RunnerInfo(
            name="fake",
            family="fakes",
            version="1",
            library_sha256="",
            obtained="live",
            numerics={"activation": "none"},
            model_sha256=self.model_sha256,
            detail={"pid": str(os.getpid())},
        )

    def run(self, request: Request) -> Observation:
        n = len(request.ids)
        generated = tuple(range(request.n_greedy))
        rows = n + max(request.n_greedy - 1, 0)
        logits = np.arange(rows * N_VOCAB, dtype=np.float32).reshape(rows, N_VOCAB)
        taps = (
            {("embd", -1): np.ones((n, 3), np.float32), ("q", 2): np.zeros((n, 0), np.float32)} if request.taps else {}
        )
        taps |= request.lock or {}
        return Observation(
            ids=request.ids + generated, logits=logits, generated=generated, taps=taps, seconds={"prefill": 0.5}
        )

    def tokenize(self, text, *, add_special=True, parse_special=True):
        return (1,) * add_special + tuple(ord(c) for c in text) + (2,) * parse_special

    def weights(self, name, rows=None):
        return np.full((2, 3), len(name), np.float32)[slice(*(rows or (None,)))]

    def close(self):
        pass


class Segfaults(Good):
    def run(self, request):
        sys.stderr.write("about to read address 0\n")
        ctypes.string_at(0)


class Aborts(Good):
    def run(self, request):
        libc = ctypes.CDLL(None)
        os.write(2, b"fake.c:12: ASSERT(n > 0) failed\n")
        libc.abort()


class Exits(Good):
    def run(self, request):
        os._exit(3)


class Hangs(Good):
    def run(self, request):
        sys.stderr.write("thinking\n")
        while True:
            time.sleep(1)


class HangsNatively(Good):
    """In a native call that does not come back, as a dead-locked thread pool does not."""

    def run(self, request):
        ctypes.CDLL(None).sleep(600)


class HangsAtClose(Good):
    def close(self):
        while True:
            time.sleep(1)


class Prints(Good):
    """Python and native prints, on both streams, before and while answering."""

    def __init__(self):
        super().__init__()
        print("starting")
        os.write(1, b'{"op": "nonsense", "arrays": []}\n')

    def run(self, request):
        os.write(1, b"\x00\xff not a header\n" * 100)
        print("done", file=sys.stderr)
        return super().run(request)


class PrintsForEver(Good):
    def run(self, request):
        while True:
            os.write(2, b"x" * 65536)


class Hungry(Good):
    def run(self, request):
        np.ones(1 << 33, np.uint8)


class HungryNatively(Good):
    def run(self, request):
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        ctypes.CDLL(None).abort()


class Killed(Good):
    """As the kernel ends a process when memory runs out."""

    def run(self, request):
        os.kill(os.getpid(), 9)


class NaN(Good):
    def run(self, request):
        seen = super().run(request)
        seen.logits[0, 0] = np.nan
        return seen


class ShortLogits(Good):
    def run(self, request):
        seen = super().run(request)
        return Observation(ids=seen.ids, logits=seen.logits[:-1], generated=seen.generated)


class ShortTap(Good):
    def run(self, request):
        seen = super().run(request)
        return Observation(ids=seen.ids, logits=seen.logits, taps={("q", 0): np.ones((1, 4), np.float32)})


class OtherIds(Good):
    def run(self, request):
        seen = super().run(request)
        return Observation(ids=(9, *seen.ids[1:]), logits=seen.logits)


class DoubleLogits(Good):
    def run(self, request):
        seen = super().run(request)
        return Observation(ids=seen.ids, logits=seen.logits.astype(np.float64), generated=seen.generated)


class DoubleTap(Good):
    def run(self, request):
        seen = super().run(request)
        return Observation(ids=seen.ids, logits=seen.logits, taps={("q", 0): np.ones((len(seen.ids), 4))})


class HalfPrecision(Good):
    """Answers in a type that does not travel."""

    def run(self, request):
        seen = super().run(request)
        return Observation(ids=seen.ids, logits=seen.logits.astype(np.float16))


class Raises(Good):
    def run(self, request):
        raise ZeroDivisionError("of a runner")


class Refuses(Good):
    def run(self, request):
        raise ReferenceUnavailableError("cannot do this", remedy="ask another")


class Fails(Good):
    def run(self, request):
        raise ReferenceFailedError("decode returned -1", last_words="no memory slot")


class RaisesTyped(Good):
    def run(self, request):
        raise GGUFError("bad magic", path="some.gguf", offset=0, remedy="download it again")


def refuses_to_start():
    raise ReferenceUnavailableError("no library", remedy="build it")


def lacks_a_package():
    import a_package_that_nobody_has  # noqa: F401


def lacks_a_library():
    ctypes.CDLL("libnosuch.so")


def dies_at_start():
    os.write(2, b"last words of the start\n")
    os._exit(4)


def raw(*messages: bytes, close: bool = False):
    """A runner that writes bytes of its own on the pipe instead of an answer."""
    write_fd = int(sys.argv[2])

    class Raw(Good):
        def run(self, request):
            os.set_blocking(write_fd, True)
            for message in messages:
                os.write(write_fd, message)
            if close:
                os.close(write_fd)
            time.sleep(600)

    return Raw()


def garbage():
    return raw(b"\x7fELF garbage\n")


def not_an_object():
    return raw(b"[1, 2]\n")


def deep():
    return raw(b"[" * 200_000 + b"\n")


def closes():
    return raw(close=True)


def absurd_length():
    header = {"arrays": [["logits", "<f4", [1 << 40, 1 << 40]]]}
    return raw(json.dumps(header).encode() + b"\n")


def large_but_absent():
    """Claims 8 GiB, sends 16 bytes, then closes."""
    header = {"arrays": [["logits", "<f4", [1 << 15, 1 << 16]]]}
    return raw(json.dumps(header).encode() + b"\n" + (1 << 33).to_bytes(8, "little") + b"\0" * 16, close=True)


def wrong_length():
    header = {"arrays": [["logits", "<f4", [2, 7]]]}
    return raw(json.dumps(header).encode() + b"\n" + (55).to_bytes(8, "little") + b"\0" * 56)


def object_dtype():
    return raw(b'{"arrays": [["logits", "|O", [2]]]}\n')


def no_arrays():
    return raw(b'{"ids": []}\n')


def broken_error():
    return raw(b'{"error": {"kind": "unavailable"}, "arrays": []}\n')


def changes_model():
    """Another model after each start."""
    return Good(model_sha256=str(os.getpid()))
