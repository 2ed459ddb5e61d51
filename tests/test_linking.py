"""Parts of kernels are lowered and linked: the same results as functions that are compiled in full."""

import numba
import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

from bitnet.kernels import compile as compiling
from bitnet.kernels import linking


def polynomial(x):
    """Some arithmetic with a loop, a branch and a call of numpy."""
    total = np.float32(0.0)
    for i in range(x.size):
        value = np.float32(x[i] * np.float32(1.25))
        total += np.sqrt(value) if value > 0 else -value * value
    return total


def of(device):
    inner = device(polynomial)

    @device
    def outer(x):
        return inner(x) + np.float32(1.0)

    @compiling.kernel
    def whole(x, out):
        out[0] = outer(x)
        out[1] = inner(x[1:])

    def run(x):
        out = np.empty(2, np.float32)
        whole(x, out)
        return out

    return inner, outer, run


def test_this_numba_has_what_linking_overrides():
    assert linking.PIPELINE is linking.LinkedCompiler


def test_a_linked_function_gives_the_bits_of_a_compiled_one():
    x = np.random.default_rng(0).normal(size=1001).astype(np.float32)
    linked, compiled = of(compiling.device)[2](x), of(numba.njit(error_model="numpy"))[2](x)
    assert np.array_equal(linked.view(np.int32), compiled.view(np.int32))
    assert linked[0] != linked[1]


def test_it_is_never_translated_by_itself():
    inner, outer, run = of(compiling.device)
    run(np.ones(4, np.float32))
    for function in (inner, outer):
        for result in function.overloads.values():
            assert isinstance(result.library, linking.LinkedLibrary)
            assert result.library.codegen._engine.get_function_address(result.fndesc.llvm_func_name) == 0


def test_python_cannot_call_it():
    inner, _, _ = of(compiling.device)
    with pytest.raises(TypeError):
        inner(np.ones(4, np.float32))


def test_arrays_of_linked_functions_are_freed():
    @compiling.device_with_arrays
    def reversed_sum(x):
        turned = np.empty(x.size, np.float32)
        for i in range(x.size):
            turned[x.size - 1 - i] = x[i]
        return turned[0] - turned[x.size - 1]

    @compiling.kernel
    def whole(x, out):
        for i in range(out.size):
            out[i] = reversed_sum(x)

    x, out = np.arange(5, dtype=np.float32), np.zeros(100, np.float32)
    whole(x, out)
    _nrt_python.memsys_enable_stats()
    before = rtsys.get_allocation_stats()
    whole(x, out)
    after = rtsys.get_allocation_stats()
    assert np.all(out == 4)
    assert after.alloc - before.alloc >= out.size
    assert after.alloc - before.alloc == after.free - before.free
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free


def test_a_function_that_counts_no_references_can_make_no_array():
    @compiling.device
    def careless(x):
        return np.empty(x.size, np.float32)[0]

    @compiling.kernel
    def whole(x):
        x[0] = careless(x)

    with pytest.raises(numba.core.errors.NumbaError, match=r"NRT|returning of array"):
        whole(np.zeros(3, np.float32))


def test_another_numba_compiles_in_full(monkeypatch):
    monkeypatch.setattr(linking, "PIPELINE", None)
    inner, _, run = of(compiling.device)
    x = np.arange(4, dtype=np.float32)
    assert run(x)[0] == inner(x) + 1
    assert not any(isinstance(r.library, linking.LinkedLibrary) for r in inner.overloads.values())
