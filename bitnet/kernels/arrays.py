"""Parts of flat arrays without what slicing costs.

numba's slices take milliseconds each to compile, and an index that may be negative, as `at + i` is to the compiler, is
looked at in every turn of a loop, which keeps it from being vectorised. A part is a pointer and a count, its indices
begin at 0, and nothing is checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from bitnet.kernels.simd import intrinsic


def _array(context: Any, builder: Any, type_: Any, data: Any, n: Any) -> Any:
    """A flat array that owns nothing."""
    array = context.make_array(type_)(context, builder)
    size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(type_.dtype)))
    context.populate_array(
        array,
        data=data,
        shape=cgutils.pack_array(builder, [n]),
        strides=cgutils.pack_array(builder, [size]),
        itemsize=size,
        meminfo=None,
    )
    return array._getvalue()


@intrinsic
def part(typingctx: Any, array: Any, at: Any, n: Any) -> Any:
    """Elements [at, at + n) of a flat array, which must outlive them; to be written only if it may be."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _array(context, builder, signature.return_type, builder.gep(data, [args[1]]), args[2])

    kind = types.Array(array.dtype, 1, "C")  # one type for arrays that may be written and others: one compilation
    return kind(array, types.intp, types.intp), build


@intrinsic
def bytes_at(typingctx: Any, address: Any, n: Any) -> Any:
    """Some bytes at an address."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        return _array(context, builder, signature.return_type, data, args[1])

    return types.Array(types.uint8, 1, "C")(types.int64, types.intp), build
