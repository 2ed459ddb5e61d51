"""The other side of `process.py`: builds a runner and answers requests until the pipe closes.

It is started as ``python -m reference.child READ_FD WRITE_FD PARENT_PID``. Its standard output and error belong
to whatever native code wants to say; the conversation has its own pair of descriptors. Every exception is
answered, none ends the process. The death of the parent does, even in the middle of a native call.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from reference.runner import Observation, ReferenceFailedError, ReferenceUnavailableError, Request, Runner, describe
from reference.wire import Arrays, Header, Wire, WireClosedError

Answer = tuple[Header, Arrays]


def serve(wire: Wire) -> None:
    """Answer until told to close or until nobody is there."""
    runner: Runner | None = None
    while True:
        try:
            header, arrays = wire.receive()
        except WireClosedError:
            return
        op = header.get("op")
        try:
            if op == "start":
                runner = _start(header)
                answer: Answer = {"info": describe(runner.info)}, {}
            elif op == "close":
                if runner is not None:
                    runner.close()
                answer = {}, {}
            else:
                assert runner is not None
                answer = _ANSWERS[op](runner, header, arrays)
        except Exception as error:  # whatever a runner raises is an outcome
            answer = {"error": describe_error(error)}, {}
        try:
            wire.send(*answer)
        except WireClosedError:
            return
        except Exception as error:  # an answer that cannot travel; nothing of it was sent
            wire.send({"error": describe_error(error)})
        header, arrays, answer = {}, {}, ({}, {})  # held no longer than it takes: a tensor is large
        if op == "close":
            return


def _start(header: Header) -> Runner:
    limit = header["memory_limit"]
    if limit is not None:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        except (ValueError, OSError) as error:
            raise ReferenceUnavailableError(
                f"this system cannot hold a reference to {limit} bytes of memory: {error}", remedy="set no memory limit"
            ) from error
    module, _, name = header["factory"].partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
        runner: Runner = factory(**header["kwargs"])
    except ModuleNotFoundError as error:
        raise ReferenceUnavailableError(
            f"{module} needs the package {error.name!r}, which is not installed", remedy=f"pip install {error.name}"
        ) from error
    except (ImportError, OSError) as error:  # a library that is missing, or too old, or for another machine
        raise ReferenceUnavailableError(f"{module} cannot start: {error}") from error
    return runner


def _run(runner: Runner, header: Header, arrays: Arrays) -> Answer:
    lock = {(name, layer): arrays[key] for key, name, layer in header["lock"]} if header["lock"] is not None else None
    request = Request(
        ids=tuple(header["ids"]),
        n_batch=header["n_batch"],
        n_greedy=header["n_greedy"],
        taps=header["taps"],
        lock=lock,
        last_only=header["last_only"],
    )
    return pack_observation(runner.run(request))


def pack_observation(seen: Observation) -> Answer:
    """An observation as a header and arrays; taps are named by their place in the list `taps`."""
    arrays: Arrays = {"logits": seen.logits}
    arrays |= {f"tap {i}": array for i, array in enumerate(seen.taps.values())}
    header = {
        "ids": [int(i) for i in seen.ids],
        "generated": [int(i) for i in seen.generated],
        "taps": [list(key) for key in seen.taps],
        "seconds": dict(seen.seconds),
    }
    return header, arrays


def _tokenize(runner: Runner, header: Header, _: Arrays) -> Answer:
    options = {"add_special": header["add_special"], "parse_special": header["parse_special"]}
    return {"ids": [list(runner.tokenize(text, **options)) for text in header["texts"]]}, {}


def _weights(runner: Runner, header: Header, _: Arrays) -> Answer:
    rows = header.get("rows")
    asked = {} if rows is None else {"rows": tuple(rows)}
    return {}, {"weights": runner.weights(header["name"], **asked)}


_ANSWERS: dict[object, Callable[[Runner, Header, Arrays], Answer]] = {
    "run": _run,
    "tokenize": _tokenize,
    "weights": _weights,
}


def describe_error(error: Exception) -> dict[str, Any]:
    """An exception as plain JSON types. Typed errors keep their class and fields; others their traceback."""
    if isinstance(error, ReferenceUnavailableError):
        return {"kind": "unavailable", "what": error.what, "remedy": error.remedy}
    if isinstance(error, ReferenceFailedError):
        return {"kind": "failed", "what": error.what, "last_words": error.last_words}
    if isinstance(error, MemoryError):
        return {"kind": "memory", "what": str(error) or "MemoryError"}
    if hasattr(error, "exit_code") and error.args:
        known = {"kind": "typed", "class": [type(error).__module__, type(error).__qualname__]}
        try:
            return {**known, "args": json.loads(json.dumps(error.args)), "state": json.loads(json.dumps(vars(error)))}
        except (TypeError, ValueError):  # fields that are not plain types: its words must do
            pass
    words = "".join(traceback.format_exception(error))
    return {"kind": "failed", "what": f"{type(error).__name__}: {error}", "last_words": words[-4000:]}


def _die_with(parent: int, read_fd: int) -> None:
    """End this process when its parent has closed the pipe or is gone, whatever the main thread is doing."""
    poll = select.poll()
    poll.register(read_fd, 0)  # hang-up is reported without being asked for
    while not poll.poll(1000):
        if os.getppid() != parent:
            break
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Serve on the two descriptors named on the command line."""
    read_fd, write_fd, parent = (int(argument) for argument in arguments)
    for fd in (read_fd, write_fd):
        os.set_inheritable(fd, False)  # noqa: FBT003  # the standard library takes it by position
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_die_with, args=(parent, read_fd), daemon=True).start()
    serve(Wire(read_fd, write_fd))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
