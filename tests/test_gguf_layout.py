"""Where tensors may lie, what their sizes must be, and which engine's type a number is."""

from __future__ import annotations

import struct

import pytest
from gguf_bytes import ARCH, file, tensor, text_key, u32_key

from bitnet.errors import GGUFError
from bitnet.gguf import GGMLType
from bitnet.gguf_header import parse
from bitnet.gguf_layout import place

F32, F16, Q4_0, I2_S, TL1, TL2 = 0, 1, 2, 36, 38, 39
I64 = 2**63 - 1


def opened(raw: bytes):
    return place(parse(raw, "m.gguf"), raw, "m.gguf")


def one(dims: tuple[int, ...], type_: int, data: int, offset: int = 0, arch: str = "llama") -> bytes:
    return file((text_key(ARCH, arch),), (tensor("t", dims, type_, offset),), data)


def two(first: tuple[int, ...], offset: int, data: int) -> bytes:
    return file((), (tensor("a", first, F32), tensor("b", (8,), F32, offset)), data)


MALFORMED = {
    "type 4": (one((32,), 4, 64), "tensor t", "Q4_2, retired"),
    "type 31": (one((32,), 31, 64), "tensor t", "Q4_0_4_4, retired"),
    "type 40": (one((64,), 40, 64), "tensor t", "NVFP4"),
    "type 42": (one((64,), 42, 64), "tensor t", "TL2 of a newer bitnet.cpp"),
    "type 43": (one((64,), 43, 64), "tensor t", "type 43 is unknown"),
    "type 2^32-1": (one((64,), 2**32 - 1, 64), "tensor t", "unknown"),
    "part of a block": (one((33,), Q4_0, 64), "tensor t", "33 are not a multiple of 32"),
    "part of an I2_S group": (one((192,), I2_S, 80), "tensor t", "192 are not a multiple of 128"),
    "part of a TQ block": (one((128,), GGMLType.TQ2_0, 64), "tensor t", "multiple of 256"),
    "TL2 row under 256": (one((128, 4), TL2, 64, arch="bitnet"), "tensor t", "shorter than 256"),
    "byte size overflows": (one((2**61, 2), GGMLType.I64, 64), "tensor t", "overflows"),
    "end overflows": (one((I64 // 8 * 8,), GGMLType.I8, 64), "tensor t", "overflows"),
    "offset unaligned": (one((8,), F32, 128, offset=4), "tensor t", "offset 4 is not a multiple"),
    "offset at the end": (one((8,), F32, 32, offset=32), "tensor t", "past the end"),
    "offset far past the end": (one((8,), F32, 32, offset=1 << 40), "tensor t", "past the end"),
    "offset 2^63": (one((8,), F32, 32, offset=1 << 63), "tensor t", "offset 9223372036854775808 overflows"),
    "offset wraps": (one((8,), F32, 32, offset=2**64 - 32), "tensor t", "overflows"),
    "no data": (one((8,), F32, 0), "tensor t", "past the end"),
    "data truncated": (one((8,), F32, 31), "tensor t", "truncated: 1 bytes"),
    "scale tail missing": (one((128,), I2_S, 32), "tensor t", "truncated: 32 bytes"),
    "the same place twice": (two((8,), 0, 32), "tensor b", "overlaps tensor a"),
    "overlap": (two((16,), 32, 64), "tensor b", "overlaps tensor a"),
    "longer than the file, then another": (two((1 << 40,), 32, 64), "tensor b", "overlaps tensor a"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_refuses(name):
    raw, field, reason = MALFORMED[name]
    with pytest.raises(GGUFError) as caught:
        opened(raw)
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert caught.value.offset is not None
    assert caught.value.remedy


def test_places_tensors_in_the_order_of_the_header_whatever_their_offsets():
    raw = file((), (tensor("late", (2, 4), F32, 32), tensor("early", (8,), F16, 0)), 64)
    tensors, notices = opened(raw)
    assert list(tensors) == ["late", "early"]
    assert tensors["late"].shape == (4, 2)
    start = len(raw) - 64
    assert (tensors["late"].offset, tensors["late"].n_bytes) == (start + 32, 32)
    assert (tensors["early"].offset, tensors["early"].n_bytes) == (start, 16)
    assert notices == ()


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_places_by_the_declared_alignment(alignment):
    tensors = (tensor("a", (1,), F32), tensor("b", (1,), F32, max(4, alignment)))
    raw = file((u32_key("general.alignment", alignment),), tensors, 2 * max(4, alignment), alignment=alignment)
    placed, notices = opened(raw)
    assert placed["b"].offset - placed["a"].offset == max(4, alignment)
    assert placed["a"].offset % alignment == 0
    assert notices == ()


def test_reports_gaps_trailing_bytes_and_padding_that_is_not_zero():
    data = bytearray(32 * 6)
    tensors = (tensor("a", (7,), F32), tensor("b", (8,), F32, 96))
    raw = file((), tensors, bytes(data))
    [gap, trailing] = opened(raw)[1]
    assert "64 bytes belong to no tensor after tensor a" in gap
    assert "64 trailing bytes after tensor b" in trailing
    data[28] = 1
    [_, _, padding] = opened(file((), tensors, bytes(data)))[1]
    assert "the padding after tensor a is not zero" in padding


def test_reports_a_gap_before_the_first_tensor_and_bytes_after_a_header_alone():
    [notice] = opened(one((8,), F32, 64, offset=32))[1]
    assert "32 bytes belong to no tensor after the header" in notice
    [notice] = opened(file(data=64))[1]
    assert "64 trailing bytes after the header" in notice
    assert opened(file())[1] == ()


def test_spells_out_few_of_many_notices():
    tensors = tuple(tensor(f"t{i}", (8,), F32, 64 * i) for i in range(20))
    notices = opened(file((), tensors, 64 * 20))[1]
    assert len(notices) == 9
    assert notices[-1] == "and 12 more like it"


def test_the_last_tensor_need_not_be_padded():
    tensors, notices = opened(one((3,), F32, 12))
    assert tensors["t"].n_bytes == 12
    assert notices == ()


@pytest.mark.parametrize("arch", ["bitnet", "bitnet-b1.58", "bitnet-25", "llama"])
def test_bitnet_cpp_types_are_read_for_its_architectures(arch):
    for type_, size in ((I2_S, 96), (37, 256), (TL1, 96)):
        tensors, notices = opened(one((128, 2), type_, size, arch=arch))
        assert tensors["t"].n_bytes == size
        assert notices == ()


def test_a_gap_after_a_tensor_of_bitnet_cpp_is_reported_not_refused():
    [notice] = opened(one((128, 2), I2_S, 96 + 128))[1]
    assert "128 trailing bytes" in notice


def test_elsewhere_they_are_read_where_their_sizes_fit_and_that_is_said():
    tensors, [notice] = opened(one((128, 2), I2_S, 96, arch="falcon"))
    assert tensors["t"].type is GGMLType.I2_S
    assert "its size fits" in notice
    assert "I2_S" in notice


def test_elsewhere_they_are_refused_where_their_sizes_do_not_fit_and_both_readings_are_named():
    with pytest.raises(GGUFError, match=r"I2_S of bitnet\.cpp or IQ4_NL_4_4, retired by ggml; architecture 'gpt2'"):
        opened(one((128, 2), I2_S, 160, arch="gpt2"))
    with pytest.raises(GGUFError, match="architecture None"):
        opened(file((), (tensor("t", (128, 2), I2_S),), 160))


def tl2_bytes(n_row: int, n_col: int) -> int:
    codes = (n_col - 256) * n_row // 3 * 5 // 8 + 256 * n_row // 2 * 4 // 8
    return -(-codes // 32) * 32 + 32


@pytest.mark.parametrize(("n_row", "n_col", "codes"), [(256, 640, 36864), (320, 544, 39680)])
def test_tl2_has_the_size_that_its_converter_writes(n_row, n_col, codes):
    # The sizes of the packed vectors recorded from Microsoft's converter, without the scale that follows.
    tensors, _ = opened(one((n_col, n_row), TL2, codes + 32, arch="bitnet"))
    assert tensors["t"].n_bytes == codes + 32


@pytest.mark.parametrize("arch", ["bitnet", "llama", "gpt-oss"])
def test_type_39_with_the_size_of_mxfp4_is_not_read_as_tl2(arch):
    with pytest.raises(GGUFError, match=r"TL2 of bitnet\.cpp or MXFP4"):
        opened(one((512, 4), TL2, 512 * 4 // 32 * 17, arch=arch))


def test_type_39_with_the_size_of_tl2_is_read_so_outside_its_architectures():
    tensors, [notice] = opened(one((640, 256), TL2, tl2_bytes(256, 640), arch="llama"))
    assert tensors["t"].type is GGMLType.TL2
    assert "TL2" in notice


def test_a_header_that_ends_with_the_file_has_no_tensors():
    raw = file((text_key("a", "b"),))
    assert opened(raw) == ({}, ())
    assert struct.unpack_from("<I", raw, 4) == (3,)
