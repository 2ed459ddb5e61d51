"""Sizes of types, and the array of strings."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.gguf_types import BLOCKS, GGMLType, StringArray, ValueType, align_up, shape_fault, tensor_bytes

OWN = {GGMLType.I2_S, GGMLType.I8_S, GGMLType.TL1, GGMLType.TL2}  # bitnet.cpp's; the gguf package lacks them
# ggml's struct has two halves and 32 bytes; the gguf package still counts two floats, as ggml did in 2023.
PEER_DIFFERS = {GGMLType.Q8_1}


@pytest.mark.parametrize("type_", [t for t in GGMLType if t not in OWN | PEER_DIFFERS], ids=lambda t: t.name)
def test_numbers_and_blocks_are_those_of_the_gguf_package(type_):
    peer = gguf.GGMLQuantizationType(int(type_))
    assert peer.name == type_.name
    assert gguf.GGML_QUANT_SIZES[peer] == BLOCKS[type_]


def test_value_types_are_those_of_the_gguf_package():
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}


@pytest.mark.parametrize(
    ("type_", "shape", "n_bytes"),
    [
        (GGMLType.F32, (3, 5), 60),
        (GGMLType.I2_S, (4, 256), 256 + 32),
        (GGMLType.TL1, (256, 256), 16384 + 32),
        (GGMLType.TL2, (256, 640), 36864 + 32),
        (GGMLType.TL2, (320, 544), 39680 + 32),
        (GGMLType.TQ1_0, (2, 512), 4 * 54),
        (GGMLType.TQ2_0, (2, 512), 4 * 66),
        (GGMLType.Q8_0, (64,), 68),
        (GGMLType.I2_S, (128256, 2560), 128256 * 640 + 32),
    ],
)
def test_size_of_a_tensor(type_, shape, n_bytes):
    assert tensor_bytes(type_, shape) == n_bytes
    assert shape_fault(type_, shape) is None


@pytest.mark.parametrize(
    ("type_", "shape", "word"),
    [
        (GGMLType.F32, (), "positive"),
        (GGMLType.F32, (2, 0), "positive"),
        (GGMLType.I2_S, (2, 64), "128"),
        (GGMLType.TL2, (2, 128), "256"),
        (GGMLType.F64, (2**60, 2), "63 bits"),
    ],
)
def test_faults_of_a_shape(type_, shape, word):
    assert word in shape_fault(type_, shape)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 1 << 40), st.sampled_from([1, 2, 32, 4096]))
def test_align_up(n, alignment):
    up = align_up(n, alignment)
    assert up % alignment == 0
    assert 0 <= up - n < alignment


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20)))
def test_an_array_of_strings_is_a_sequence_of_bytes(strings):
    array = StringArray.of(strings)
    assert array.tolist() == list(array) == strings
    assert array == strings
    assert len(array) == len(strings)
    assert [array[i] for i in range(len(strings))] == strings
    assert array[1:] == strings[1:]
    if strings:
        assert array[-1] == strings[-1]
    with pytest.raises(IndexError):
        array[len(strings)]
    assert array == StringArray.of(strings)
    assert array != [*strings, b""]


def test_an_array_of_text():
    array = StringArray.of(["Ġthe", b"\xff"])
    assert array[0].decode() == "Ġthe"
    with pytest.raises(UnicodeDecodeError):
        array.text()
    assert StringArray.of(["a", "ü"]).text() == ["a", "ü"]
    with pytest.raises(TypeError):
        StringArray.of([1])
    assert array != 5
    assert repr(array) == "StringArray(2 strings)"
    assert StringArray.of([]).tolist() == []
    assert np.array(array.tolist()[:1], dtype=object)[0] == "Ġthe".encode()
