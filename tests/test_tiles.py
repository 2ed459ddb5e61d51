"""Tile sizes: known shapes, configurations of every kind of badness, and tiles that do not suit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.codecs.tiles import (
    DEFAULT_TILES,
    PRESETS,
    Tile,
    kernel_config,
    parse_kernel_config,
    propose_tile,
    tile_fault,
    tile_of,
)
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGMLType

TL1, TL2 = GGMLType.TL1, GGMLType.TL2
SECTION = "[Kernels_0]\nm = 3200\nk = 8640\nbm = 160\nbk = 96\nbmm = 32\n"


@pytest.mark.parametrize("tiles", PRESETS.values(), ids=PRESETS)
def test_every_preset_suits_its_shape(tiles):
    for (type_, n_row, n_col), tile in tiles.items():
        assert tile_fault(type_, n_row, n_col, tile) is None, (type_, n_row, n_col)


def test_presets_know_the_shapes_of_both_types():
    shapes = {t: {key[1:] for key in DEFAULT_TILES if key[0] is t} for t in (TL1, TL2)}
    assert shapes[TL1] == shapes[TL2]
    assert {(3200, 8640), (3200, 3200), (8640, 3200), (14336, 4096), (1536, 4096)} <= shapes[TL1]


@given(
    type_=st.sampled_from([TL1, TL2]),
    n_row=st.integers(1, 40).map(lambda n: 32 * n),
    n_col=st.integers(8, 80).map(lambda n: 32 * n),
)
def test_what_is_proposed_suits(type_, n_row, n_col):
    assert tile_fault(type_, n_row, n_col, propose_tile(type_, (n_row, n_col))) is None


@pytest.mark.parametrize(("type_", "shape"), [(TL1, (48, 512)), (TL2, (48, 512)), (TL2, (64, 224)), (TL1, (64, 40))])
def test_shapes_that_no_tile_suits(type_, shape):
    with pytest.raises(UsageError, match=f"no tile of {type_.name} suits a matrix of {shape[0]} × {shape[1]}"):
        propose_tile(type_, shape)


@pytest.mark.parametrize(
    ("type_", "tile", "fault"),
    [
        (TL1, Tile(0, 64, 32), "must be positive"),
        (TL1, Tile(64, 64, 48), "bmm 48 is none of TL1's"),
        (TL2, Tile(64, 96, 64), "bmm 64 is none of TL2's"),
        (TL1, Tile(48, 64, 32), "bm 48 is not a multiple"),
        (TL1, Tile(192, 64, 32), "does not divide 256 rows"),
        (TL1, Tile(64, 96, 32), "does not divide 640 columns"),
        (TL1, Tile(64, 20, 32), "bk 20 is not a multiple of 8"),
        (TL2, Tile(64, 64, 32), "bk 64 is not a multiple of 24"),
        (TL2, Tile(64, 168, 32), "leaves 136 columns, not a multiple of 32"),
        (TL2, Tile(64, 960, 32), "leaves 640 columns in pairs, more than"),
    ],
)
def test_tiles_that_do_not_suit(type_, tile, fault):
    assert fault in tile_fault(type_, 256, 640, tile)
    with pytest.raises(ModelFileError, match="does not suit") as caught:
        tile_of({(type_, 256, 640): tile}, type_, (256, 640))
    assert caught.value.remedy


def test_an_unknown_shape_names_the_known_ones():
    with pytest.raises(ModelFileError, match=r"of 2560 × 2560 are unknown.*\n.*kernel_config.ini.*3200 × 8640"):
        tile_of(DEFAULT_TILES, TL2, (2560, 2560))
    with pytest.raises(UsageError, match="unknown"):
        tile_of({}, TL1, (256, 256), UsageError)


def test_a_configuration_is_read_for_both_types():
    tiles = parse_kernel_config(SECTION, "here")
    assert tiles == {(t, 3200, 8640): Tile(160, 96, 32) for t in (TL1, TL2)}
    assert parse_kernel_config(SECTION.replace("m = 3200", "M: 3200 "), "here") == tiles


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 1 << 20), st.integers(1, 1 << 20)),
        st.builds(Tile, *[st.integers(1, 1 << 20)] * 3),
        min_size=1,
        max_size=4,
    )
)
def test_a_configuration_survives_writing(tiles):
    read = parse_kernel_config(kernel_config(tiles), "here")
    assert read == {(t, *shape): tile for shape, tile in tiles.items() for t in (TL1, TL2)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no section"),
        ("m = 3", "no kernel configuration"),
        (SECTION + SECTION, "no kernel configuration"),
        (SECTION.replace("bk = 96\n", ""), r"\[Kernels_0\] has no bk"),
        (SECTION.replace("96", "-96"), "bk is '-96'"),
        (SECTION.replace("96", "0"), "bk is '0'"),
        (SECTION.replace("96", "1e2"), "bk is '1e2'"),
        (SECTION.replace("96", "²"), "bk is '²'"),
        (SECTION.replace("96", "9" * 5000), "bk is"),
        (SECTION.replace("96", "%(m)s"), "bk is"),
    ],
)
def test_configurations_that_are_none(text, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        parse_kernel_config(text, "a.ini")
    assert caught.value.where == "a.ini"


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UsageError):
        assert parse_kernel_config(text, "here")
