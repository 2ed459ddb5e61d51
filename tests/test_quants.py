"""Types that are read, not written: equal to the gguf package, exact for numbers, and refused where they are none."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from bitnet.codecs import CODECS, codec_of
from bitnet.codecs.quants import BLOCK_TYPES, NO_WEIGHTS
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGMLType

NUMBERS = {GGMLType.I8: "<i1", GGMLType.I16: "<i2", GGMLType.I32: "<i4", GGMLType.I64: "<i8", GGMLType.F64: "<f8"}
by_name = {"ids": lambda t: t.name}


def test_every_type_is_read_or_refused_with_a_reason():
    for type_ in GGMLType:
        if type_ in NO_WEIGHTS:
            with pytest.raises(ModelFileError, match=f"{type_.name} is no type for weights: {NO_WEIGHTS[type_]}"):
                codec_of(type_)
        else:
            assert codec_of(type_).type is type_


@pytest.mark.parametrize("type_", BLOCK_TYPES, **by_name)
def test_blocks_are_decoded_as_by_the_gguf_package(type_):
    shape = (3, 512)
    codec = CODECS[type_]
    raw = np.random.default_rng(int(type_)).integers(0, 256, codec.n_bytes(shape)).astype(np.uint8)
    raw &= 0x3F  # no half-precision number with this high byte is infinite or NaN
    theirs = gguf.quants.dequantize(raw.reshape(3, -1), GGMLQuantizationType(int(type_)))
    np.testing.assert_array_equal(codec.decode(raw, shape), theirs)
    assert codec.decode(raw, shape).dtype == np.float32
    assert theirs.any()


@pytest.mark.parametrize("type_", BLOCK_TYPES, **by_name)
def test_scales_that_are_not_finite_are_refused(type_):
    raw = np.full(CODECS[type_].n_bytes((1, 256)), 0xFF, np.uint8)
    with pytest.raises(ModelFileError, match=f"type {type_.name} hold NaN or infinity") as caught:
        CODECS[type_].decode(raw, (1, 256))
    assert caught.value.remedy


@pytest.mark.parametrize("type_", NUMBERS, **by_name)
def test_numbers_become_floats(type_):
    values = np.array([[-128, -1, 0, 1, 2, 127]], NUMBERS[type_])
    found = CODECS[type_].decode(values.view(np.uint8).reshape(-1), values.shape)
    np.testing.assert_array_equal(found, values.astype(np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize("type_", [GGMLType.I32, GGMLType.I64], **by_name)
def test_whole_numbers_that_floats_cannot_hold_are_refused(type_):
    for value, fits in ((1 << 24, True), ((1 << 24) + 2, False), (-(1 << 31), False)):
        raw = np.array([[value]], NUMBERS[type_]).view(np.uint8).reshape(-1)
        if fits:
            assert CODECS[type_].decode(raw, (1, 1))[0, 0] == value
        else:
            with pytest.raises(ModelFileError, match="float32 holds whole numbers to 2\\^24"):
                CODECS[type_].decode(raw, (1, 1))


def test_float64_beyond_float32_is_refused():
    for value in (1e300, np.nan):
        with pytest.raises(ModelFileError, match="NaN or infinity"):
            CODECS[GGMLType.F64].decode(np.array([value]).view(np.uint8), (1, 1))


@pytest.mark.parametrize("type_", [*BLOCK_TYPES, *NUMBERS], **by_name)
def test_none_of_them_is_written(type_):
    with pytest.raises(UsageError, match=f"{type_.name} is read, not written"):
        CODECS[type_].encode(np.zeros((1, 256), np.float32))
