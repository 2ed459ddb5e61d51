"""A barrier that threads spin on: what lets one compiled call run a whole forward pass in every thread.

A barrier costs a fifth of a microsecond while every thread has a core of its own. Where there are more threads than
cores, spinning takes the core from the very thread that is waited for; so after some turns a thread yields, and where
it is known that cores are too few, at once. The state is one int64 array: arrivals and the generation, cache lines
apart, and the turns.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import extending, types
from numpy.typing import NDArray

from bitnet.kernels.compile import device

intrinsic: Any = extending.intrinsic  # its stub asks callers for the typing context that numba supplies

#: Turns of about ten nanoseconds before a waiting thread offers its core to others.
SPINS = 2000

_ARRIVED, _GENERATION, _TURNS, _GIVEN_UP = (
    0,
    16,
    17,
    18,
)  # int64 elements: arrivals 128 bytes from what waiting threads read
_I64, _I32 = ir.IntType(64), ir.IntType(32)


def new_barrier(n_threads: int) -> NDArray[np.int64]:
    """The state of a barrier for some threads, at which nobody waits."""
    state = np.zeros(32, np.int64)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    state[_TURNS] = SPINS if n_threads <= usable else 0
    return state


def give_up(state: NDArray[np.int64]) -> None:
    """Let those who wait in `enter` go: not all will come."""
    state[_GIVEN_UP] = 1


#: The instruction that tells a core it is spinning, and its operands, by architecture; elsewhere there is none.
_HINTS = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.hint", (1,)),
    "arm64": ("llvm.aarch64.hint", (1,)),
}


@intrinsic
def _fetch_add(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to an element at once, for all threads; the value before."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), build


@intrinsic
def _load(typingctx: Any, array: Any, index: Any) -> Any:
    """An element, and with it whatever the thread that stored it had written before."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(array, types.intp), build


@intrinsic
def _store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Set an element, and with it publish whatever this thread has written."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store_atomic(args[2], builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), build


@intrinsic
def _relax(typingctx: Any) -> Any:
    """One idle turn."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        hint = _HINTS.get(binding.get_process_triple().split("-", maxsplit=1)[0])
        if hint is not None:
            name, operands = hint
            function = ir.FunctionType(ir.VoidType(), [_I32] * len(operands))
            builder.call(builder.module.declare_intrinsic(name, fnty=function), [_I32(x) for x in operands])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def _yield(typingctx: Any) -> Any:
    """Let another thread have this core (POSIX sched_yield)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(_I32, [])
        module = builder.module
        symbol = module.globals.get("sched_yield") or ir.Function(module, function, "sched_yield")
        builder.call(symbol, [])
        return context.get_dummy_value()

    return types.void(), build


#: Elements between two counters: as far apart as two cache lines.
COUNTER = 16


def new_counters(n: int) -> NDArray[np.int64]:
    """What `take` counts with, n · `COUNTER` elements, at 0."""
    return np.zeros(n * COUNTER, np.int64)


def new_counter() -> NDArray[np.int64]:
    """One of them."""
    return new_counters(1)


@device
def peek(counters, at):
    """The next number of the counter at an element, as it was a moment ago."""
    return _load(counters, at)


@device
def take(counters, at, n):
    """The first of the next n numbers of the counter that no thread has taken."""
    return _fetch_add(counters, at, n)


@device
def wait(state, n_threads):
    """Return when `n_threads` threads have called this; what each wrote before, all see after."""
    if n_threads == 1:
        return
    generation = _load(state, _GENERATION)
    if _fetch_add(state, _ARRIVED, 1) == n_threads - 1:
        _store(state, _ARRIVED, 0)
        _store(state, _GENERATION, generation + 1)
        return
    turns = 0
    while _load(state, _GENERATION) == generation:
        turns += 1
        if turns <= state[_TURNS]:
            _relax()
        else:
            _yield()


@device
def enter(state, n_threads):
    """Wait for all threads to begin; whether they did, or the call was given up. Once a state, before any `wait`.

    A thread that waits for one that never comes would spin for ever, and nobody could interrupt it.
    """
    if n_threads == 1 or _fetch_add(state, _ARRIVED, 1) == n_threads - 1:
        _store(state, _ARRIVED, 0)
        _store(state, _GENERATION, 1)
        return True
    turns = 0
    while _load(state, _GENERATION) == 0:
        if _load(state, _GIVEN_UP) != 0:
            return False
        turns += 1
        if turns <= state[_TURNS]:
            _relax()
        else:
            _yield()
    return True
