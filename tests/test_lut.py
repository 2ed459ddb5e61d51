"""TL1 and TL2: the bytes of Microsoft's packer, every kind of tile, and damage that is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.codecs import (
    Ternary,
    Tile,
    codecs,
    pack_i2_s,
    pack_tl1,
    pack_tl2,
    ternary_codes,
    unpack_tl1,
    unpack_tl2,
)
from bitnet.codecs.tiles import tile_fault
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGMLType
from reference import tables

TL1, TL2 = GGMLType.TL1, GGMLType.TL2
FOLDER = Path(__file__).parents[1] / "fixtures" / "goldens" / "tl"
GOLDENS = json.loads((FOLDER / "manifest.json").read_text())
PACK, UNPACK = {TL1: pack_tl1, TL2: pack_tl2}, {TL1: unpack_tl1, TL2: unpack_tl2}
ORACLE = {TL1: tables.tl1, TL2: tables.tl2}
by_name = {"ids": lambda t: t.name}


def golden(entry):
    data = np.load(FOLDER / entry["file"])
    tile = Tile(entry["bm"], entry["bk"], entry["bmm"])
    return GGMLType[entry["kind"].upper()], data["ternary"], data["packed"], tile


@st.composite
def tiled(draw):
    """A type, a tile, and trits of a shape that it suits."""
    type_ = draw(st.sampled_from([TL1, TL2]))
    bmm = draw(st.sampled_from([16, 32, 64])) if type_ is TL1 else 32
    bm = bmm * draw(st.integers(1, 3))
    bk = draw(st.sampled_from([32, 64, 128])) if type_ is TL1 else 24 * draw(st.sampled_from([1, 4, 8, 12]))
    n_row, n_col = bm * draw(st.integers(1, 3)), 32 * draw(st.integers(8, 24))
    tile = Tile(bm, bk, bmm)
    if tile_fault(type_, n_row, n_col, tile) is not None:
        n_col = bk * -(-256 // bk) if type_ is TL1 else 96 * 4
        tile = tile if type_ is TL1 else Tile(bm, 96, 32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return type_, tile, rng.integers(-1, 2, (n_row, n_col)).astype(np.int8)


@pytest.mark.parametrize("entry", GOLDENS, ids=lambda e: e["file"])
def test_bytes_are_those_of_microsofts_packer(entry):
    type_, trits, packed, tile = golden(entry)
    raw = PACK[type_](trits, 0.25, tile)
    assert raw[:-32].tobytes() == packed.tobytes()
    assert raw[-32:-28].view("<f4")[0] == 0.25
    assert not raw[-28:].any()
    unpacked = UNPACK[type_](raw, trits.shape, tile)
    np.testing.assert_array_equal(unpacked.trits, trits)
    assert unpacked.scale == 0.25


@pytest.mark.parametrize("entry", GOLDENS, ids=lambda e: e["file"])
def test_the_oracle_reads_them_with_its_own_code(entry):
    type_, trits, packed, tile = golden(entry)
    raw = np.concatenate([packed, np.array([0.25], "<f4").view(np.uint8), np.zeros(28, np.uint8)])
    read, scale = ORACLE[type_](raw, *trits.shape, tables.Tiling(tile.bm, tile.bk, tile.bmm))
    np.testing.assert_array_equal(read, trits)
    assert scale == np.float32(0.25)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=tiled(), scale=st.floats(width=32, allow_nan=False, allow_infinity=False), data=st.data())
def test_trits_survive_packing(case, scale, data):
    type_, tile, trits = case
    raw = PACK[type_](trits, scale, tile)
    codec = codecs(tiles={(type_, *trits.shape): tile})[type_]
    assert raw.nbytes == codec.n_bytes(trits.shape)
    unpacked = codec.unpack(raw, trits.shape, None)
    np.testing.assert_array_equal(unpacked.trits, trits)
    assert unpacked.scale == scale
    np.testing.assert_array_equal(codec.encode(unpacked), raw)
    np.testing.assert_array_equal(codec.decode(raw, trits.shape), trits * np.float32(scale))
    begin = data.draw(st.integers(0, len(trits)))
    rows = slice(begin, data.draw(st.integers(begin, len(trits))))
    np.testing.assert_array_equal(codec.unpack(raw, trits.shape, rows).trits, trits[rows])
    oracle, _ = ORACLE[type_](raw, *trits.shape, tables.Tiling(tile.bm, tile.bk, tile.bmm))
    np.testing.assert_array_equal(oracle, trits)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=tiled())
def test_codes_for_kernels_are_those_of_i2_s_padded_with_zero_weights(case):
    type_, tile, trits = case
    raw = PACK[type_](trits, 0.5, tile)
    codes, scale, blocks = ternary_codes(type_, raw, trits.shape, codecs(tiles={(type_, *trits.shape): tile}))
    padded = np.zeros((len(trits), -(-trits.shape[1] // 128) * 128), np.int8)
    padded[:, : trits.shape[1]] = trits
    assert codes.tobytes() == pack_i2_s(padded, 1.0)[:-32].tobytes()
    assert (scale, blocks) == (0.5, None)


@pytest.mark.parametrize("type_", [TL1, TL2], **by_name)
def test_dense_weights_must_be_ternary(type_):
    tile = Tile(32, 96, 32)
    codec = codecs(tiles={(type_, 32, 384): tile})[type_]
    trits = np.random.default_rng(0).integers(-1, 2, (32, 384)).astype(np.int8)
    weights = trits * np.float32(0.3)
    np.testing.assert_array_equal(codec.encode(weights), PACK[type_](trits, float(np.float32(0.3)), tile))
    with pytest.raises(UsageError, match="more than one magnitude"):
        codec.encode(weights + np.float32(0.1))
    with pytest.raises(UsageError, match="one scale a tensor"):
        codec.encode(Ternary(trits=trits, block_scale=np.ones((32, 1), np.float32)))
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(UsageError, match="the scale is"):
            PACK[type_](trits, bad, tile)
    with pytest.raises(UsageError, match="hold values other"):
        PACK[type_](trits * np.int8(2), 1.0, tile)
    with pytest.raises(UsageError, match="does not suit"):
        PACK[type_](trits, 1.0, Tile(64, 96, 32))


def spoiled(raw, byte, value):
    raw = raw.copy()
    raw[byte] = value
    return raw


@pytest.mark.parametrize("entry", GOLDENS, ids=lambda e: e["file"])
def test_codes_that_no_packer_writes_are_refused_and_placed(entry):
    type_, trits, _, tile = golden(entry)
    raw = PACK[type_](trits, 1.0, tile)
    m, three = len(trits), trits.shape[1] // tile.bk * tile.bk
    faults = [(3, 0x09, "a pair above 8")]
    if type_ is TL2:
        faults = [
            (3, 0x0E, "a triple above 13"),
            (m * three * 5 // 24 + 3, 0x90, "a pair above 8"),
            (len(raw) - 33, 1, "codes after the last"),
        ]
    for byte, value, reason in faults:
        with pytest.raises(ModelFileError, match=f"{reason} in rows 0 to {tile.bm - 1} ") as caught:
            UNPACK[type_](spoiled(raw, byte, value), trits.shape, tile)
        assert "other tile sizes" in caught.value.remedy
    if type_ is TL2:
        zeros = PACK[type_](np.zeros_like(trits), 1.0, tile)
        with pytest.raises(ModelFileError, match="a negative zero"):
            UNPACK[type_](spoiled(zeros, m * three // 6, 1), trits.shape, tile)


@pytest.mark.parametrize("entry", GOLDENS, ids=lambda e: e["file"])
def test_sizes_and_scales_are_checked(entry):
    type_, trits, _, tile = golden(entry)
    raw = PACK[type_](trits, 1.0, tile)
    with pytest.raises(ModelFileError, match="its scale is missing"):
        UNPACK[type_](raw[:-32], trits.shape, tile)
    with pytest.raises(ModelFileError, match="does not suit"):
        UNPACK[type_](raw, trits.shape, Tile(tile.bm + 1, tile.bk, tile.bmm))
    with pytest.raises(UsageError, match="rows are"):
        UNPACK[type_](raw, trits.shape, tile, slice(0, 4, 2))
    raw[-32:-28] = np.array([np.inf], "<f4").view(np.uint8)
    with pytest.raises(ModelFileError, match=f"scale of a {type_.name} tensor is inf"):
        UNPACK[type_](raw, trits.shape, tile)


def test_a_wrong_tile_reads_other_weights():
    """No file says that it is wrong: hence the presets, and the evidence that `formats` looks for."""
    type_, trits, _, tile = golden(GOLDENS[0])
    wrong = UNPACK[type_](PACK[type_](trits, 1.0, tile), trits.shape, Tile(64, tile.bk, tile.bmm))
    # Two thirds of seeded trits differ where rows are mixed up; some rows stay in place.
    assert (wrong.trits != trits).mean() > 0.4
    assert sorted(np.unique(wrong.trits)) == [-1, 0, 1]


@pytest.mark.parametrize("type_", [TL1, TL2], **by_name)
def test_shapes_without_a_tile_are_refused(type_):
    with pytest.raises(ModelFileError, match="of 64 × 512 are unknown"):
        ternary_codes(type_, np.zeros(64 * 512 // 4 + 32, np.uint8), (64, 512))
    with pytest.raises(UsageError, match="of 64 × 512 are unknown"):
        codecs()[type_].encode(np.zeros((64, 512), np.float32))
