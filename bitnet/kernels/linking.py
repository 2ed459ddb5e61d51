"""Functions that nothing but kernels call stop at LLVM code, which the kernels link.

numba optimises every function that it compiles, translates it to machine code, and optimises it again as a part of its
caller, and of the caller's caller. Of a function that only kernels call, all but the last is thrown away, and that was
two fifths of the time to compile ours. With the pipeline below, such a function is lowered and no more; the kernel that
it ends up in is optimised once, as a whole.

`pipeline_class` is numba's for the purpose, the methods of a library that are overridden are not. Where a version of
numba has others, `PIPELINE` is None and functions are compiled in full: the same code, later.

Passes that look for what kernels do without (closures, `with`, fused expressions of whole arrays, branches on the types
of arguments) are left out of both pipelines. So is, for linked functions that make no array, the one that inserts where
variables end: that is for counting references, and they count none (`_nrt=False`). Together a fifth of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from typing import Any

from numba.core import codegen, compiler, typed_passes
from numba.core.compiler_machinery import LoweringPass, register_pass

_OVERRIDDEN = (
    "_finalize_dynamic_globals",
    "_finalize_final_module",
    "_finalize_specific",
    "_optimize_final_module",
    "_optimize_functions",
    "get_pointer_to_function",
)

#: Passes, by name, that find nothing to do in kernels.
_NEEDLESS = {
    "DeadBranchPrune",
    "FindLiterallyCalls",
    "GenericRewrites",
    "InlineClosureLikes",
    "InlineOverloads",
    "LiteralPropagationSubPipelinePass",
    "LiteralUnroll",
    "MakeFunctionToJitFunction",
    "NopythonRewrites",
    "RewriteDynamicRaises",
    "RewriteSemanticConstants",
    "WithLifting",
}
#: Inserts `del` of variables.
_DELETES = "IRLegalization"


class _Codegen:
    """A library's code generator, without the search for an address that only machine code has."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def set_env(self, name: str, env: Any) -> None:
        """Nothing: exceptions of a linked function, the environment's one use, do not need it."""


class LinkedLibrary(codegen.JITCodeLibrary):
    """LLVM code of one function and of those that it calls, as it was lowered."""

    @property
    def codegen(self) -> Any:
        """What made this library."""
        return _Codegen(self._codegen)

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """What Python gets to call: a TypeError."""
        self._ensure_finalized()
        return ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value or 0


@register_pass(mutates_CFG=False, analysis_only=False)
class _UseLinkedLibrary(LoweringPass):
    """Gives the function that is compiled a library to be lowered to."""

    _name = "use_linked_library"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """As numba makes one where there is none."""
        state.library = LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return True


def _pipeline(state: Any, needless: Collection[str]) -> Any:
    """The pipeline of numba that compiles without objects, but for some passes."""
    pipeline = compiler.DefaultPassBuilder.define_nopython_pipeline(state)
    pipeline.passes = [(step, why) for step, why in pipeline.passes if step.__name__ not in needless]
    return pipeline


class KernelCompiler(compiler.CompilerBase):
    """The pipeline of kernels."""

    def define_pipelines(self) -> list[Any]:
        """To machine code."""
        pipeline = _pipeline(self.state, _NEEDLESS)
        pipeline.finalize()
        return [pipeline]


class LinkedCompiler(compiler.CompilerBase):
    """The pipeline of functions that kernels link."""

    def define_pipelines(self) -> list[Any]:
        """To lowered code."""
        counts_references = self.state.flags.nrt
        pipeline = _pipeline(self.state, _NEEDLESS if counts_references else {*_NEEDLESS, _DELETES})
        pipeline.add_pass_after(_UseLinkedLibrary, typed_passes.NoPythonSupportedFeatureValidation)
        pipeline.finalize()
        return [pipeline]


#: For `numba.njit(pipeline_class=…)`, or None where this numba is another inside.
PIPELINE: Any = LinkedCompiler if all(hasattr(codegen.JITCodeLibrary, name) for name in _OVERRIDDEN) else None
