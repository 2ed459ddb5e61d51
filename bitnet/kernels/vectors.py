"""LLVM code for vectors of bytes: the helpers that the builders of kernels share."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def lanes(bits: int, n: int) -> ir.VectorType:
    """The type of n integers."""
    return ir.VectorType(ir.IntType(bits), n)


def every(type_: ir.VectorType, value: int) -> ir.Constant:
    """A constant in every lane."""
    return ir.Constant(type_, [value] * type_.count)


def load(b: Any, address: Any, offset: int, type_: ir.Type) -> Any:
    """An unaligned load, `offset` bytes on."""
    value = b.load(b.bitcast(b.gep(address, [ir.Constant(_I64, offset)]), type_.as_pointer()))
    value.align = 1
    return value


def store(b: Any, value: Any, address: Any, offset: int) -> None:
    """An unaligned store, `offset` bytes on."""
    b.store(value, b.bitcast(b.gep(address, [ir.Constant(_I64, offset)]), value.type.as_pointer())).align = 1


def shuffle(b: Any, x: Any, y: Any, order: list[int]) -> Any:
    """Lanes of two vectors, those of the second counted on from the first's."""
    return b.shuffle_vector(x, y, ir.Constant(lanes(32, len(order)), order))


def same(b: Any, value: Any, n: int) -> Any:
    """One number in n lanes."""
    undef = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    return shuffle(b, b.insert_element(undef, value, ir.Constant(_I32, 0)), undef, [0] * n)


def join(b: Any, vectors: list[Any]) -> Any:
    """Vectors one after another in one; their number is a power of two."""
    while len(vectors) > 1:
        n = vectors[0].type.count
        vectors = [shuffle(b, x, y, list(range(2 * n))) for x, y in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def call(b: Any, name: str, result: ir.Type, args: list[Any]) -> Any:
    """An instruction that LLVM knows by name."""
    kind = ir.FunctionType(result, [a.type for a in args])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    return b.call(function, args)


def opaque(b: Any, vector: Any) -> Any:
    """The same vector in a register of x86, hidden from the optimiser."""
    return b.asm(ir.FunctionType(vector.type, [vector.type]), "", "=v,0", [vector], side_effect=False)


def fence(b: Any) -> None:
    """No load or store moves past this when instructions are ordered: fewer values wait in registers at once."""
    b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)


class Inputs:
    """The activations (or tables) of a tile: token t's begin at `first[t · stride]`."""

    def __init__(self, b: Any, first: Any, stride: Any) -> None:
        self._builder, self._first, self._stride = b, first, stride

    def address(self, token: int, offset: int) -> Any:
        """Where a byte of a token is."""
        b = self._builder
        at = b.mul(self._stride, ir.Constant(_I64, token)) if token else ir.Constant(_I64, 0)
        return b.gep(self._first, [b.add(at, ir.Constant(_I64, offset))])

    def word(self, token: int, plane: int, n: int) -> Any:
        """The four activations of a plane as one word, in n lanes."""
        value = self._builder.load(self._builder.bitcast(self.address(token, 4 * plane), _I32.as_pointer()))
        value.align = 1
        return same(self._builder, value, n)
