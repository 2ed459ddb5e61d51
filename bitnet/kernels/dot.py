"""Tile × activations as intrinsics, for every variant: what the loops of `ternary.py` are made of.

Three opaque values travel through a kernel: the variant, which carries no data at all; `Sums`, the int32 sums of some
rows for some tokens; and `Partial`, the accumulators of the inner loop. `add` multiplies one tile by the inputs of all
its tokens; `flush` moves partial sums into sums, at least every `group` tiles. Tiles are multiplied as they are packed,
or unpacked first; the inputs are int8 activations, or the tables that `fill` makes of them for a variant that looks
products up. How each variant does it is in `strategies.py`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from bitnet.kernels import strategies
from bitnet.kernels.lookup import Lookup
from bitnet.kernels.simd import intrinsic
from bitnet.kernels.variants import TILES, Variant
from bitnet.kernels.vectors import Inputs

_I32, _INTP = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()


class VariantType(types.Type):
    """A variant as the compiler sees it: a type without data."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.packed, self.unpacked = strategies.of(variant)
        self.shape = TILES[variant.layout]
        super().__init__(name=f"variant({variant.id})")


class Sums(types.Type):
    """Sums of `rows` rows for `n_token` tokens, int32; of tiles as they are packed, or unpacked."""

    def __init__(self, n_token: int, rows: int, *, unpacked: bool) -> None:
        self.n_token, self.rows, self.unpacked = n_token, rows, unpacked
        super().__init__(name=f"sums({n_token},{rows},{unpacked})")

    @property
    def llvm(self) -> ir.Type:
        """One vector a token."""
        return ir.ArrayType(ir.VectorType(_I32, self.rows), self.n_token)


class Partial(types.Type):
    """Accumulators of one variant for `rows` rows and `n_token` tokens."""

    def __init__(self, variant: VariantType, sums: Sums) -> None:
        self.strategy = variant.unpacked if sums.unpacked else variant.packed
        self.n_token, self.rows = sums.n_token, sums.rows
        super().__init__(name=f"partial({variant.variant.id},{sums.name})")

    @property
    def llvm(self) -> ir.Type:
        """As many vectors as the strategy has accumulators."""
        return ir.ArrayType(self.strategy.vector(self.rows), self.strategy.count(self.n_token, self.rows))


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


def _zero(variant: Any, share: int, *, unpacked: bool) -> Any:
    """Sums of a block of tokens divided by `share`, or of one token."""
    strategy = variant.unpacked if unpacked else variant.packed
    n_token = max(1, strategy.block // share) if share else 1

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(signature.return_type.llvm, None)

    return Sums(n_token, strategy.rows(n_token), unpacked=unpacked)(variant), build


@intrinsic
def one(typingctx: Any, variant: Any) -> Any:
    """Sums of one token for as many rows of a tile as the variant takes at once; all 0."""
    return _zero(variant, 0, unpacked=False)


@intrinsic
def few(typingctx: Any, variant: Any) -> Any:
    """The same for half a block of tokens."""
    return _zero(variant, 2, unpacked=False)


@intrinsic
def block(typingctx: Any, variant: Any) -> Any:
    """The same for a block of tokens, as many as share one reading of a tile."""
    return _zero(variant, 1, unpacked=False)


@intrinsic
def unpacked_one(typingctx: Any, variant: Any) -> Any:
    """Sums of one token over an unpacked tile of 16 rows."""
    return _zero(variant, 0, unpacked=True)


@intrinsic
def unpacked_few(typingctx: Any, variant: Any) -> Any:
    """The same for half a block of tokens."""
    return _zero(variant, 2, unpacked=True)


@intrinsic
def unpacked_block(typingctx: Any, variant: Any) -> Any:
    """The same for a block of tokens."""
    return _zero(variant, 1, unpacked=True)


@intrinsic
def start(typingctx: Any, variant: Any, sums: Any) -> Any:
    """Accumulators for the rows and tokens of `sums`, all 0."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(signature.return_type.llvm, None)

    return Partial(variant, sums)(variant, sums), build


@intrinsic
def add(typingctx: Any, partial: Any, tiles: Any, at: Any, inputs: Any, at_input: Any, stride: Any) -> Any:
    """Add the product of (a part of) one tile and its columns of the inputs.

    `tiles[at]` is the first lane's first byte; `inputs[at_input + t · stride]` the first byte of token t's inputs.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = signature.args[0]
        tile = _address(context, builder, signature.args[1], args[1], args[2])
        source = Inputs(builder, _address(context, builder, signature.args[3], args[3], args[4]), args[5])
        state = part.strategy.add(builder, _elements(builder, args[0]), tile, source, part.n_token, part.rows)
        return _array(builder, part.llvm, state)

    return partial(partial, tiles, types.intp, inputs, types.intp, types.intp), build


@intrinsic
def flush(typingctx: Any, partial: Any, sums: Any) -> Any:
    """The sums with the partial sums added."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = signature.args[0]
        found = part.strategy.flush(builder, _elements(builder, args[0]), part.n_token, part.rows)
        old = _elements(builder, args[1])
        return _array(builder, args[1].type, [builder.add(a, b) for a, b in zip(old, found, strict=True)])

    return sums(partial, sums), build


@intrinsic
def unpack(typingctx: Any, variant: Any, tiles: Any, at: Any, digits: Any, to: Any, next_rows: Any) -> Any:
    """Write the tile at `tiles[at]` as bytes to `digits[to]`: 16 rows × 4 columns, the next 4 columns, …

    Rows beyond the first 16 go `next_rows` bytes further.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile = _address(context, builder, signature.args[1], args[1], args[2])
        found = _address(context, builder, signature.args[3], args[3], args[4])
        signature.args[0].packed.unpack(builder, tile, found, args[5])
        return context.get_dummy_value()

    return types.void(variant, tiles, types.intp, digits, types.intp, types.intp), build


@intrinsic
def fill(typingctx: Any, variant: Any, q: Any, at: Any, tables: Any, to: Any) -> Any:
    """Make the tables of a tile's activations at `q[at]`, to `tables[to]`; nothing if the variant reads none."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strategy = signature.args[0].packed
        if isinstance(strategy, Lookup):
            codes = _address(context, builder, signature.args[1], args[1], args[2])
            strategy.fill(builder, codes, _address(context, builder, signature.args[3], args[3], args[4]))
        return context.get_dummy_value()

    return types.void(variant, q, types.intp, tables, types.intp), build


@intrinsic
def store(typingctx: Any, sums: Any, out: Any, at: Any, stride: Any) -> Any:
    """Write the sums of token t to `out[at + stride · t :]`, a flat int32 array."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        for t, vector in enumerate(_elements(builder, args[0])):
            pointer = builder.gep(data, [builder.add(args[2], builder.mul(args[3], ir.Constant(_INTP, t)))])
            builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(sums, out, types.intp, types.intp), build


@intrinsic
def restore(typingctx: Any, sums: Any, stored: Any, at: Any, stride: Any) -> Any:
    """Sums as `store` wrote them."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        vectors = []
        for t in range(signature.args[0].n_token):
            pointer = builder.gep(data, [builder.add(args[2], builder.mul(args[3], ir.Constant(_INTP, t)))])
            type_ = ir.VectorType(_I32, signature.args[0].rows)
            vectors.append(builder.load(builder.bitcast(pointer, type_.as_pointer())))
            vectors[-1].align = 4
        return _array(builder, signature.return_type.llvm, vectors)

    return sums(sums, stored, types.intp, types.intp), build


@intrinsic
def rows(typingctx: Any, sums: Any) -> Any:
    """How many rows of a tile `sums` holds, a constant."""
    return types.intp(sums), _constant(sums.rows)


@intrinsic
def tokens(typingctx: Any, sums: Any) -> Any:
    """How many tokens `sums` is of, a constant."""
    return types.intp(sums), _constant(sums.n_token)


@intrinsic
def group(typingctx: Any, variant: Any, sums: Any) -> Any:
    """After how many tiles partial sums must be flushed, a constant."""
    strategy = variant.unpacked if sums.unpacked else variant.packed
    return types.intp(variant, sums), _constant(strategy.group)


@intrinsic
def bias(typingctx: Any, variant: Any, sums: Any) -> Any:
    """What the digits are too large by, a constant: 1 for 0..2, 0 for trits."""
    return types.intp(variant, sums), _constant((variant.unpacked if sums.unpacked else variant.packed).bias)


@intrinsic
def table_bytes(typingctx: Any, variant: Any) -> Any:
    """Bytes of the tables of a tile's activations, a constant; 0 where activations are read."""
    return types.intp(variant), _constant(variant.packed.table_bytes)


@intrinsic
def tile_rows(typingctx: Any, variant: Any) -> Any:
    """Rows of a tile, a constant."""
    return types.intp(variant), _constant(variant.shape.rows)


@intrinsic
def columns(typingctx: Any, variant: Any) -> Any:
    """Columns of a tile, a constant."""
    return types.intp(variant), _constant(variant.shape.columns)


@intrinsic
def tile_bytes(typingctx: Any, variant: Any) -> Any:
    """Bytes of a tile, a constant."""
    return types.intp(variant), _constant(variant.shape.n_bytes)


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
