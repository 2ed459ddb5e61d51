"""Tile × activations as intrinsics, for every variant: what the loops of `ternary.py` are made of.

Three opaque values travel through a kernel: the variant, which carries no data at all; `Sums`, the int32 sums of some
rows for some tokens; and `Partial`, the accumulators of the inner loop. `add` multiplies one tile by the activations
of all its tokens; `flush` moves partial sums into sums, at least every `group` tiles. How each variant does it is in
`strategies.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from bitnet.kernels import strategies
from bitnet.kernels.simd import intrinsic
from bitnet.kernels.variants import TILE_COLUMNS, Variant

_I32, _INTP = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()


class VariantType(types.Type):
    """A variant as the compiler sees it: a type without data."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.strategy = strategies.of(variant)
        super().__init__(name=f"variant({variant.id})")


class Sums(types.Type):
    """Sums of `rows` rows for `n_token` tokens, int32."""

    def __init__(self, n_token: int, rows: int) -> None:
        self.n_token, self.rows = n_token, rows
        super().__init__(name=f"sums({n_token},{rows})")

    @property
    def llvm(self) -> ir.Type:
        """One vector a token."""
        return ir.ArrayType(ir.VectorType(_I32, self.rows), self.n_token)


class Partial(types.Type):
    """Accumulators of one variant for `rows` rows and `n_token` tokens."""

    def __init__(self, variant: VariantType, n_token: int, rows: int) -> None:
        self.variant, self.n_token, self.rows = variant, n_token, rows
        super().__init__(name=f"partial({variant.variant.id},{n_token},{rows})")

    @property
    def llvm(self) -> ir.Type:
        """As many vectors as the strategy has accumulators."""
        strategy = self.variant.strategy
        return ir.ArrayType(strategy.vector(self.rows), strategy.count(self.n_token, self.rows))


@typeof_impl.register(Variant)
def _type_of_variant(value: Variant, _context: Any) -> VariantType:
    return VariantType(value)


register_model(VariantType)(models.OpaqueModel)


@unbox(VariantType)
def _unbox_variant(_type: VariantType, _value: Any, c: Any) -> Any:
    return NativeValue(c.context.get_dummy_value())


class _ArrayModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


register_model(Sums)(_ArrayModel)
register_model(Partial)(_ArrayModel)


def _elements(builder: Any, array: Any) -> list[Any]:
    return [builder.extract_value(array, i) for i in range(array.type.count)]


def _array(builder: Any, type_: ir.Type, values: list[Any]) -> Any:
    array = ir.Constant(type_, ir.Undefined)
    for i, value in enumerate(values):
        array = builder.insert_value(array, value, i)
    return array


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The address of an element of a flat array, as bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _BYTES)


def _constant(value: int) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(_INTP, value)

    return build


def _zero(variant: Any, n_token: int) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(signature.return_type.llvm, None)

    return Sums(n_token, variant.strategy.rows(n_token))(variant), build


@intrinsic
def one(typingctx: Any, variant: Any) -> Any:
    """Sums of one token for as many rows of a tile as the variant takes at once; all 0."""
    return _zero(variant, 1)


@intrinsic
def few(typingctx: Any, variant: Any) -> Any:
    """The same for half a block of tokens."""
    return _zero(variant, variant.strategy.block // 2)


@intrinsic
def block(typingctx: Any, variant: Any) -> Any:
    """The same for a block of tokens, as many as share one reading of a tile."""
    return _zero(variant, variant.strategy.block)


@intrinsic
def start(typingctx: Any, variant: Any, sums: Any) -> Any:
    """Accumulators for the rows and tokens of `sums`, all 0."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(signature.return_type.llvm, None)

    return Partial(variant, sums.n_token, sums.rows)(variant, sums), build


@intrinsic
def add(typingctx: Any, partial: Any, tiles: Any, at: Any, q: Any, at_q: Any, stride: Any) -> Any:
    """Add the product of (a part of) one tile and its columns of the activations.

    `tiles[at]` is the first lane's first byte; `q[at_q + t · stride]` the first activation of token t.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = signature.args[0]
        tile = _address(context, builder, signature.args[1], args[1], args[2])
        first = _address(context, builder, signature.args[3], args[3], args[4])

        def four(token: int, plane: int) -> Any:
            """The four activations of a plane, as one word."""
            at_token = builder.mul(args[5], ir.Constant(_INTP, token)) if token else ir.Constant(_INTP, 0)
            address = builder.gep(first, [builder.add(at_token, ir.Constant(_INTP, 4 * plane))])
            word = builder.load(builder.bitcast(address, _I32.as_pointer()))
            word.align = 1
            return word

        strategy = part.variant.strategy
        state = strategy.add(builder, _elements(builder, args[0]), tile, four, part.n_token, part.rows)
        return _array(builder, part.llvm, state)

    return partial(partial, tiles, types.intp, q, types.intp, types.intp), build


@intrinsic
def flush(typingctx: Any, partial: Any, sums: Any) -> Any:
    """The sums with the partial sums added."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = signature.args[0]
        found = part.variant.strategy.flush(builder, _elements(builder, args[0]), part.n_token, part.rows)
        old = _elements(builder, args[1])
        return _array(builder, args[1].type, [builder.add(a, b) for a, b in zip(old, found, strict=True)])

    return sums(partial, sums), build


@intrinsic
def store(typingctx: Any, sums: Any, out: Any, at: Any) -> Any:
    """Write the sums of token t to `out[at + 16 · t :]`, a flat int32 array."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        for t, vector in enumerate(_elements(builder, args[0])):
            pointer = builder.gep(data, [builder.add(args[2], ir.Constant(_INTP, 16 * t))])
            builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(sums, out, types.intp), build


@intrinsic
def rows(typingctx: Any, sums: Any) -> Any:
    """How many rows of a tile `sums` holds, a constant."""
    return types.intp(sums), _constant(sums.rows)


@intrinsic
def tokens(typingctx: Any, sums: Any) -> Any:
    """How many tokens `sums` is of, a constant."""
    return types.intp(sums), _constant(sums.n_token)


@intrinsic
def group(typingctx: Any, variant: Any) -> Any:
    """After how many tiles partial sums must be flushed, a constant."""
    return types.intp(variant), _constant(variant.strategy.group)


@intrinsic
def columns(typingctx: Any, variant: Any) -> Any:
    """Columns of a tile, a constant."""
    return types.intp(variant), _constant(TILE_COLUMNS[variant.variant.layout])


@intrinsic
def prefetch(typingctx: Any, array: Any, at: Any) -> Any:
    """Begin to fetch the cache line of `array[at]`, which may lie beyond the end."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1])
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
        function = builder.module.globals.get("llvm.prefetch.p0") or ir.Function(
            builder.module, kind, "llvm.prefetch.p0"
        )
        builder.call(function, [address, *(ir.Constant(_I32, i) for i in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), build
