"""The code that the ternary kernels become on another machine, for variants that this one cannot run.

    python -m bitnet.kernels.emit neon --as object > kernel.o

writes an object file with two C functions, to be linked with a driver and run under an emulator:

    ternary_sums(void *unused, const uint8_t *tiles, int64_t row_tiles, int64_t n_tile,
                 const int8_t *q, int64_t n_token, int8_t *scratch, int32_t *sums);

    plane_sums(void *unused, const uint8_t *high, const uint8_t *low, int64_t rows, int64_t groups,
               const int8_t *q, int64_t n_input, int32_t *sums);

`sums[row tile, token, rows of a tile]` takes the sums of digits × codes (of trits, where products are looked up), for
at most `ternary.TOGETHER` tokens; `q` is [n_token, columns of all tiles]; `scratch` holds `ternary.DIGITS` bytes and,
where tables are read, those of the tokens. Of the head's codes (`planes.py`), `sums[2, n_input, rows]` takes those of
the high plane and of the low one; `q` is [n_input, 128 · groups].

It runs in a process of its own: numba's compiler is told to make code for no machine in particular and to load none
of it, and LLVM's target machine of the other kind turns it into instructions. The driver defines the names that the
object leaves open; they are for errors and for memory that nothing here allocates, and none is called.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

from llvmlite import binding
from numba import carray, types
from numba.core import compiler, cpu
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from bitnet.kernels import dot, planes, screening, ternary
from bitnet.kernels.variants import VARIANTS, Variant

Form = Literal["assembly", "object"]

#: The exported functions.
SYMBOL = "ternary_sums"
PLANE_SYMBOL = "plane_sums"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A machine: LLVM's names of its kind and its CPU."""

    triple: str
    cpu: str


#: A machine for each instruction set of `variants.VARIANTS`.
TARGETS = {
    "avx512vnni": Target(triple="x86_64-unknown-linux-gnu", cpu="cascadelake"),
    "avx2": Target(triple="x86_64-unknown-linux-gnu", cpu="haswell"),
    "neon_dotprod": Target(triple="aarch64-unknown-linux-gnu", cpu="cortex-a76"),
    "generic": Target(triple="x86_64-unknown-linux-gnu", cpu="x86-64"),
}


def emitted(variant: Variant, form: Form) -> bytes:
    """The kernels of a variant as assembly or as an object file, compiled in a child process."""
    command = [sys.executable, "-m", "bitnet.kernels.emit", variant.id, "--as", form]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603  this module


def _sums(v, tiles, row_tiles, n_tile, q, n_token, scratch, out):
    n_row, n_byte, stride = dot.tile_rows(v), dot.tile_bytes(v), n_tile * dot.columns(v)
    flat = carray(tiles, (row_tiles * n_tile * n_byte,))
    flat_q = carray(q, (n_token * stride,))
    direct = ternary.is_direct(n_token)
    width = dot.table_bytes(v) * n_tile if direct else 0
    space = carray(scratch, (ternary.DIGITS + n_token * width,))
    sums = carray(out, (row_tiles * n_token * n_row,))
    inputs, input_stride = flat_q, stride
    if width:
        inputs, input_stride = space[ternary.DIGITS :], width
        for t in range(n_token):
            ternary.fill_tables(v, flat_q, t * stride, n_tile, inputs, t * width)
    for tile_row in range(row_tiles):
        ternary.row_tile_sums(
            v, flat, tile_row * n_tile * n_byte, n_tile, flat_q, 0, stride, inputs, 0, input_stride, n_token,
            direct, space, sums[n_row * n_token * tile_row :],
        )  # fmt: skip


def _plane_sums(v, high, low, rows, groups, q, n_input, out):
    width = planes.GROUP * groups
    flat_high, high_bytes = carray(high, (rows * planes.HIGH_BYTES * groups,)), planes.HIGH_BYTES * groups
    flat_low, low_bytes = carray(low, (rows * planes.LOW_BYTES * groups,)), planes.LOW_BYTES * groups
    flat_q = carray(q, (n_input * width,))
    sums = carray(out, (2 * n_input * rows,))
    second = n_input * rows
    screening.rows_of_high(v, flat_high, high_bytes, 0, rows, flat_q, n_input, width, sums, rows)
    for r in range(rows):
        for t in range(0, n_input - 1, 2):
            to = second + t * rows + r
            screening.row_of_low(planes.two(v), flat_low, r * low_bytes, flat_q, t * width, width, sums, to, rows)
        if n_input % 2:
            t = n_input - 1
            to = second + t * rows + r
            screening.row_of_low(planes.one(v), flat_low, r * low_bytes, flat_q, t * width, width, sums, to, rows)


def _functions(variant: Variant) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The exported functions and the types of their arguments."""
    kind, size, sums = dot.VariantType(variant), types.intp, types.CPointer(types.int32)
    codes, q = types.CPointer(types.uint8), types.CPointer(types.int8)
    return {
        SYMBOL: (_sums, (kind, codes, size, size, q, size, q, sums)),
        PLANE_SYMBOL: (_plane_sums, (kind, codes, codes, size, size, q, size, sums)),
    }


def _llvm(function: Any, signature: tuple[Any, ...], name: str) -> str:
    """LLVM code of a function, exported by that name."""
    flags: Any = compiler.Flags()
    flags.no_compile, flags.no_cpython_wrapper, flags.nrt, flags.error_model = True, True, True, "numpy"
    context = cpu_target.target_context.with_aot_codegen("bitnet", cpu_name="")
    cpu_target.__dict__["_toplevel_target_context"] = context  # device functions are compiled for it too
    # numba tells functions of one signature apart by what it would call: a new method for each
    nothing_to_call = mock.patch.object(cpu.CPUContext, "get_executable", side_effect=lambda *_: [].append)
    with global_compiler_lock, nothing_to_call:
        library = context.codegen().create_library("bitnet")
        result = compiler.compile_extra(
            cpu_target.typing_context, context, function, signature, types.void, flags, locals={}, library=library
        )
        library.finalize()
        library.get_function(result.fndesc.llvm_cfunc_wrapper_name).name = name
        return str(library._final_module)


def _instructions(codes: list[str], target: Target, form: Form) -> bytes:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target.triple).create_target_machine(cpu=target.cpu, opt=3, reloc="pic")
    module = binding.parse_assembly(codes[0])
    for other in codes[1:]:
        module.link_in(binding.parse_assembly(other))
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    module.verify()
    if form == "object":
        return bytes(machine.emit_object(module))
    return str(machine.emit_assembly(module)).encode()


def main() -> None:
    """Write the code of one variant to standard output."""
    parser = argparse.ArgumentParser(prog="python -m bitnet.kernels.emit")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--as", dest="form", choices=("assembly", "object"), default="assembly")
    arguments = parser.parse_args()
    variant = VARIANTS[arguments.variant]
    codes = [_llvm(function, signature, name) for name, (function, signature) in _functions(variant).items()]
    sys.stdout.buffer.write(_instructions(codes, TARGETS[variant.isa], arguments.form))


if __name__ == "__main__":
    main()
