"""Weight formats: lossless where they claim it, equal to the gguf package where it knows them, and never silent."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet.codecs import (
    CODECS,
    Ternary,
    Tile,
    codecs,
    pack_i2_s,
    pack_tq1_0,
    pack_tq2_0,
    ternary_codes,
    unpack_i2_s,
    unpack_tq1_0,
    unpack_tq2_0,
)
from bitnet.codecs.i2_s import codes_to_trits, trits_to_codes
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGMLType, read

I2_S, TQ1_0, TQ2_0 = GGMLType.I2_S, GGMLType.TQ1_0, GGMLType.TQ2_0
TERNARY = (I2_S, TQ1_0, TQ2_0)
PACK = {I2_S: lambda trits: pack_i2_s(trits, 1.0), TQ1_0: pack_tq1_0, TQ2_0: pack_tq2_0}
SHARED = (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, TQ1_0, TQ2_0)  # the gguf package encodes these
GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"

by_name = {"ids": lambda t: t.name}
repeatable = settings(max_examples=60, deadline=None, derandomize=True)


def peer(type_: GGMLType) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType(int(type_))


def trits_of(n_row: int, n_col: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (n_row, n_col)).astype(np.int8)


@st.composite
def matrices(draw, values, dtype, block=256):
    """Few values in a constant matrix, or noise from a seed: a matrix is too large to draw value by value."""
    shape = (draw(st.integers(1, 5)), block * draw(st.integers(1, 4)))
    if draw(st.booleans()):
        return draw(hnp.arrays(dtype, shape, elements=values, fill=values))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(shape)
    return (np.clip(np.rint(noise), -1, 1) if dtype is np.int8 else noise).astype(dtype)


trit_matrices = matrices(st.integers(-1, 1), np.int8)
weights = matrices(st.floats(-100, 100, width=32, allow_subnormal=False), np.float32)


def i2_s_naive(trits: np.ndarray) -> bytes:
    """As the format is written down, one weight at a time."""
    out = bytearray(trits.size // 4)
    for i, trit in enumerate(trits.reshape(-1).tolist()):
        group, j = divmod(i, 128)
        out[group * 32 + j % 32] |= (trit + 1) << (6 - 2 * (j // 32))
    return bytes(out)


@pytest.mark.parametrize("type_", TERNARY, **by_name)
@repeatable
@given(trits=trit_matrices)
def test_trits_survive_packing(type_, trits):
    raw = PACK[type_](trits)
    codec = CODECS[type_]
    assert raw.nbytes == codec.n_bytes(trits.shape)
    unpacked = codec.unpack(raw, trits.shape, None)
    np.testing.assert_array_equal(unpacked.trits, trits)
    np.testing.assert_array_equal(codec.encode(unpacked), raw)
    np.testing.assert_array_equal(codec.decode(raw, trits.shape), trits.astype(np.float32))
    np.testing.assert_array_equal(codec.encode(trits.astype(np.float32) * np.float32(0.5)), PACK_HALF[type_](trits))


def pack_half_tq(pack):
    """0.5 for blocks that hold a weight, and 0, as the quantiser finds it, for those of zeros alone."""
    return lambda trits: pack(trits, np.abs(trits).reshape(len(trits), -1, 256).max(-1).astype(np.float32) / 2)


PACK_HALF = {
    I2_S: lambda trits: pack_i2_s(trits, 0.5 if trits.any() else 0.0),
    TQ1_0: pack_half_tq(pack_tq1_0),
    TQ2_0: pack_half_tq(pack_tq2_0),
}


@repeatable
@given(
    trits=matrices(st.integers(-1, 1), np.int8, block=128),
    scale=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_i2_s_is_the_format_as_written_down(trits, scale):
    raw = pack_i2_s(trits, scale)
    assert raw[:-32].tobytes() == i2_s_naive(trits)
    assert raw[-32:-28].view("<f4")[0] == np.float32(scale)
    assert not raw[-28:].any()
    unpacked = unpack_i2_s(raw, trits.shape)
    assert unpacked.scale == scale
    np.testing.assert_array_equal(unpacked.trits, trits)


@pytest.mark.parametrize("type_", TERNARY, **by_name)
@repeatable
@given(trits=trit_matrices)
def test_every_ternary_format_gives_the_same_codes(type_, trits):
    codes, scale, block_scale = ternary_codes(type_, PACK[type_](trits), trits.shape)
    assert codes.shape == (trits.shape[0], trits.shape[1] // 4)
    assert codes.dtype == np.uint8
    assert codes.tobytes() == i2_s_naive(trits)
    assert scale == 1.0
    if type_ is I2_S:
        assert block_scale is None
    else:
        assert block_scale.shape == (trits.shape[0], trits.shape[1] // 256)
        assert (block_scale == 1).all()


def test_i2_s_codes_are_a_view():
    raw = pack_i2_s(trits_of(3, 128), 2.0)
    codes, scale, _ = ternary_codes(I2_S, raw, (3, 128))
    assert np.shares_memory(codes, raw)
    assert scale == 2.0


@pytest.mark.parametrize("type_", TERNARY, **by_name)
def test_large_matrices_are_worked_in_pieces_without_a_seam(type_):
    trits = trits_of(300, 2560)  # several chunks, the last of them short
    raw = PACK[type_](trits)
    np.testing.assert_array_equal(CODECS[type_].unpack(raw, trits.shape, None).trits, trits)
    assert ternary_codes(type_, raw, trits.shape)[0].tobytes() == pack_i2_s(trits, 1.0)[:-32].tobytes()


@pytest.mark.parametrize("type_", TERNARY, **by_name)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(2, 5), slice(6, None), slice(3, 3)], ids=str)
def test_some_rows(type_, rows):
    trits = trits_of(7, 512)
    scales = np.float32(2.0) ** -np.arange(14, dtype=np.float32).reshape(7, 2)
    raw = {
        I2_S: lambda: pack_i2_s(trits, 0.25),
        TQ1_0: lambda: pack_tq1_0(trits, scales),
        TQ2_0: lambda: pack_tq2_0(trits, scales),
    }[type_]()
    part = CODECS[type_].unpack(raw, trits.shape, rows)
    np.testing.assert_array_equal(part.trits, trits[rows])
    if type_ is I2_S:
        assert part.scale == 0.25
    else:
        np.testing.assert_array_equal(part.block_scale, scales[rows])


@pytest.mark.parametrize("name", ["b158_a", "b158_hd128", "bitnet_silu", "llama_tied"])
def test_what_bitnet_cpp_reads_is_encoded_to_the_same_bytes(name):
    model = read(GOLDENS / f"{name}.gguf")
    for info in model.tensors.values():
        raw = model.raw(info.name)
        codec = CODECS[info.type]
        assert codec.n_bytes(info.shape) == info.n_bytes
        dense = codec.decode(raw, info.shape)
        assert dense.shape == info.shape
        np.testing.assert_array_equal(codec.encode(dense), raw)
        if codec.ternary:
            unpacked = codec.unpack(raw, info.shape, None)
            np.testing.assert_array_equal(codec.encode(unpacked), raw)
            # Seeded with equal chances: 16,384 trits or more, so 0.02 is over 5 standard deviations of a share.
            shares = [(unpacked.trits == t).mean() for t in (-1, 0, 1)]
            assert max(abs(s - 1 / 3) for s in shares) < 0.02
            assert 0.01 < unpacked.scale < 0.2


@pytest.mark.parametrize("type_", SHARED, **by_name)
@repeatable
@given(values=weights)
def test_encodes_and_decodes_as_the_gguf_package(type_, values):
    with np.errstate(all="ignore"):  # their quantisers overflow where a block is all but zero
        theirs = gguf.quants.quantize(values, peer(type_)).view(np.uint8)
    ours = CODECS[type_].encode(values)
    np.testing.assert_array_equal(ours, theirs.reshape(-1))
    np.testing.assert_array_equal(
        CODECS[type_].decode(ours, values.shape), gguf.quants.dequantize(theirs, peer(type_)).astype(np.float32)
    )


def test_tq1_0_decodes_every_byte_as_the_gguf_package():
    """Bytes that no packing gives decode too; 13 of 256 are such."""
    raw = np.zeros((256, 54), np.uint8)
    raw[:, :52] = np.arange(256, dtype=np.uint8)[:, None]
    raw[:, 52:] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    ours = CODECS[TQ1_0].decode(raw.reshape(-1), (256, 256))
    np.testing.assert_array_equal(ours, gguf.quants.dequantize(raw, peer(TQ1_0)))


@pytest.mark.parametrize("type_", [TQ1_0, TQ2_0, GGMLType.Q8_0], **by_name)
def test_weights_too_small_for_their_scale_become_zeros(type_):
    values = np.full((1, 256), np.float32(1e-44))
    assert not CODECS[type_].decode(CODECS[type_].encode(values), values.shape).any()


def test_bf16_keeps_nan_and_infinity_and_rounds_to_even():
    values = np.array([[np.nan, np.inf, -np.inf, 1.00390625, 1.01171875, -0.0]], np.float32)
    codec = CODECS[GGMLType.BF16]
    found = codec.decode(codec.encode(values), values.shape)
    np.testing.assert_array_equal(found, np.float32([[np.nan, np.inf, -np.inf, 1.0, 1.015625, -0.0]]))


def test_f32_decodes_to_a_view():
    raw = CODECS[GGMLType.F32].encode(np.ones((2, 3), np.float32))
    assert np.shares_memory(CODECS[GGMLType.F32].decode(raw, (2, 3)), raw)


def test_float_formats_decode_any_number_of_dimensions():
    for type_ in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
        raw = CODECS[type_].encode(values)
        np.testing.assert_array_equal(CODECS[type_].decode(raw, (2, 3, 4)), values)
        assert CODECS[type_].decode(raw, (24,)).shape == (24,)


def test_another_order_of_bits_or_elements_is_noticed():
    """The comparisons above would fail on the layouts that others have shipped under the same type."""
    trits = trits_of(4, 256)
    right = trits_to_codes(trits)
    pairs_reversed = ((right & 3) << 6) | ((right & 12) << 2) | ((right >> 2) & 12) | (right >> 6)
    in_64s = (trits + 1).astype(np.uint8).reshape(-1, 4, 16)  # ARM: 64 weights in 16 bytes
    arm = (in_64s[:, 0] << 6 | in_64s[:, 1] << 4 | in_64s[:, 2] << 2 | in_64s[:, 3]).reshape(right.shape)
    for wrong in (pairs_reversed, arm):
        assert wrong.tobytes() != i2_s_naive(trits)
        assert (codes_to_trits(wrong) != trits).any()


@pytest.mark.parametrize("type_", [I2_S, TQ2_0], **by_name)
@pytest.mark.parametrize("element", [0, 1, 31, 32, 127, 128, 511, 512 + 77, 3 * 512 - 1])
def test_code_3_is_refused_and_its_element_named(type_, element):
    shape = (3, 512)
    raw = PACK[type_](trits_of(*shape))
    group, j = divmod(element, 128)
    if type_ is I2_S:
        raw[group * 32 + j % 32] |= 3 << (6 - 2 * (j // 32))
    else:
        raw[group // 2 * 66 + group % 2 * 32 + j % 32] |= 3 << (2 * (j // 32))
    message = rf"code 3 at element {element} \(row {element // 512}, column {element % 512}\)"
    for use in (CODECS[type_].decode, CODECS[type_].unpack, ternary_codes):
        arguments = (type_, raw, shape) if use is ternary_codes else (raw, shape)
        with pytest.raises(ModelFileError, match=message) as caught:
            use(*arguments, None) if use is CODECS[type_].unpack else use(*arguments)
        assert caught.value.remedy


def test_code_3_is_found_in_a_large_matrix():
    shape = (3000, 2560)
    raw = pack_i2_s(np.zeros(shape, np.int8), 1.0)
    raw[-33] |= 3
    with pytest.raises(ModelFileError, match=f"element {3000 * 2560 - 1} "):
        ternary_codes(I2_S, raw, shape)
    raw[1 << 20] |= 3 << 2  # the first byte of the second part that is looked at
    with pytest.raises(ModelFileError, match=f"element {(4 << 20) + 64} "):
        ternary_codes(I2_S, raw, shape)


def test_sizes_and_scales_are_checked():
    raw = pack_i2_s(trits_of(2, 128), 1.0)
    with pytest.raises(ModelFileError, match="takes 96 bytes, not 64; its scale is missing"):
        unpack_i2_s(raw[:-32], (2, 128))
    with pytest.raises(ModelFileError, match="takes 96 bytes, not 95"):
        unpack_i2_s(raw[:-1], (2, 128))
    for bad in (np.nan, np.inf):
        raw[-32:-28] = np.frombuffer(np.float32(bad).tobytes(), np.uint8)
        with pytest.raises(ModelFileError, match=f"scale of an I2_S tensor is {bad}"):
            ternary_codes(I2_S, raw, (2, 128))
    for type_, unpack, size in ((TQ1_0, unpack_tq1_0, 54), (TQ2_0, unpack_tq2_0, 66)):
        raw = PACK[type_](trits_of(2, 512))
        raw[3 * size - 2 : 3 * size] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
        with pytest.raises(ModelFileError, match="scale of block 0 of row 1 is nan"):
            unpack(raw, (2, 512))
        assert unpack(raw, (2, 512), slice(0, 1)).trits.shape == (1, 512)
        with pytest.raises(UsageError, match="rows are"):
            unpack(raw, (2, 512), slice(0, 2, 2))


@pytest.mark.parametrize("type_", CODECS, **by_name)
def test_every_format_checks_its_size_and_shape(type_):
    codec = codecs(tiles={(type_, 32, 256): Tile(32, 96 if type_ is GGMLType.TL2 else 32, 32)})[type_]
    raw = np.zeros(codec.n_bytes((32, 256)), np.uint8)
    assert codec.decode(raw, (32, 256)).shape == (32, 256)
    for wrong in (raw[:-1], np.append(raw, np.uint8(0))):
        with pytest.raises(ModelFileError, match="bytes, not"):
            codec.decode(wrong, (32, 256))
    for shape in ((0, 256), (), (2, 255) if codec.block > 1 else (2, -1)):
        with pytest.raises(UsageError, match="does not suit"):
            codec.n_bytes(shape)


@pytest.mark.parametrize("pack", PACK.values(), ids=lambda p: p.__name__)
@pytest.mark.parametrize(
    "trits",
    [
        np.full((1, 256), 2, np.int8),
        np.full((1, 256), -2, np.int8),
        np.zeros((1, 256), np.int16),
        np.zeros((1, 192), np.int8),
        np.zeros(256, np.int8),
        np.zeros((0, 256), np.int8),
    ],
    ids=["two", "minus two", "int16", "part of a block", "one dimension", "no rows"],
)
def test_what_is_no_trit_matrix_is_not_packed(pack, trits):
    with pytest.raises(UsageError):
        pack(trits)


def test_scales_that_would_be_changed_are_not_packed():
    trits = trits_of(2, 256)
    with pytest.raises(UsageError, match=r"not a float16.*") as caught:
        pack_tq2_0(trits, 0.1)
    assert ".scale" in caught.value.remedy
    with pytest.raises(UsageError, match="too large for float16"):
        pack_tq1_0(trits, 1e6)
    with pytest.raises(UsageError, match=r"block scales are \[3\]"):
        pack_tq1_0(trits, np.ones(3, np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(UsageError, match="the scale is"):
            pack_i2_s(trits, bad)
        with pytest.raises(UsageError, match="NaN or infinite"):
            pack_tq2_0(trits, bad)
    with pytest.raises(UsageError, match="one scale a tensor"):
        CODECS[I2_S].encode(Ternary(trits=trits, block_scale=np.ones((2, 1), np.float32)))
    with pytest.raises(UsageError, match="beside the blocks"):
        CODECS[TQ2_0].encode(Ternary(trits=trits, scale=0.5, block_scale=np.ones((2, 1), np.float32)))


def test_weights_that_a_format_cannot_hold_are_refused():
    with pytest.raises(UsageError, match="more than one magnitude"):
        CODECS[I2_S].encode(np.linspace(-1, 1, 128, dtype=np.float32).reshape(1, 128))
    for type_ in (I2_S, TQ1_0, TQ2_0, GGMLType.Q8_0):
        with pytest.raises(UsageError, match="NaN or infinity"):
            CODECS[type_].encode(np.full((1, 256), np.nan, np.float32))
    for type_, value in ((GGMLType.F16, 1e5), (TQ1_0, 1e5), (GGMLType.Q8_0, 1e7)):
        with pytest.raises(UsageError, match="too large for float16"):
            CODECS[type_].encode(np.full((1, 256), value, np.float32))
    for type_ in (TQ1_0, GGMLType.Q8_0):
        with pytest.raises(UsageError, match="multiple of"):
            CODECS[type_].encode(np.ones((1, 100), np.float32))


def test_only_ternary_formats_have_ternary_codes():
    with pytest.raises(UsageError, match="F32 is not a ternary format"):
        ternary_codes(GGMLType.F32, np.zeros(512, np.uint8), (1, 128))


def test_dense():
    trits = trits_of(2, 512)
    scales = np.float32([[1, 2], [3, 4]])
    expected = trits * np.repeat(scales, 256, axis=1)
    np.testing.assert_array_equal(Ternary(trits=trits, block_scale=scales).dense(), expected)
    np.testing.assert_array_equal(Ternary(trits=trits, scale=0.5, block_scale=scales).dense(), expected / 2)
    for type_ in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        raw = CODECS[type_].encode(Ternary(trits=trits, scale=0.5))
        np.testing.assert_array_equal(CODECS[type_].decode(raw, trits.shape), trits / np.float32(2))


@pytest.mark.parametrize("type_", TERNARY, **by_name)
def test_unpacking_needs_little_memory_beside_its_result(type_):
    shape = (1000, 2560)
    raw = PACK[type_](trits_of(*shape))
    tracemalloc.start()
    try:
        CODECS[type_].unpack(raw, shape, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One byte a weight for the trits, a quarter for codes, and a few chunks of a quarter of a million weights.
    assert peak < 1.25 * shape[0] * shape[1] + 4 * (1 << 18)


@pytest.mark.slow
@pytest.mark.parametrize("type_", TERNARY, **by_name)
def test_unpacking_is_fast_enough_for_large_models(type_):
    shape = (6912, 2560)
    raw = PACK[type_](trits_of(*shape))
    best = min(_seconds(lambda: CODECS[type_].unpack(raw, shape, None)) for _ in range(5))
    # 2 billion weights in 40 s at worst; an idle core of 2026 needs 3 to 5 s. Slower means a loop in Python.
    assert shape[0] * shape[1] / best > 50e6


def _seconds(work) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
