"""The layouts of I2_S: each as it is written down, told apart, and turned into the order of kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.codecs import Layout, codecs, pack_i2_s, ternary_codes, unpack_i2_s
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGMLType

I2_S = GGMLType.I2_S
repeatable = settings(max_examples=30, deadline=None, derandomize=True)


def place(layout, row, col, n_col):
    """Byte and shift of a weight, from the formats' description."""
    if layout is Layout.ROWS:
        return row // 4 * n_col + col, 6 - 2 * (row % 4)
    group, width = (128, 32) if layout is Layout.X86 else (64, 16)
    block, j = divmod(row * n_col + col, group)
    return block * width + j % width, 6 - 2 * (j // width)


def naive(trits, layout):
    out = bytearray(trits.size // 4)
    for (row, col), trit in np.ndenumerate(trits):
        byte, shift = place(layout, row, col, trits.shape[1])
        out[byte] |= (int(trit) + 1) << shift
    return bytes(out)


@st.composite
def matrices(draw):
    shape = (4 * draw(st.integers(1, 3)), 128 * draw(st.integers(1, 3)))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(-1, 2, shape).astype(np.int8)


@pytest.mark.parametrize("layout", Layout, ids=lambda v: v.name)
@repeatable
@given(trits=matrices(), data=st.data())
def test_every_layout_is_as_written_down(layout, trits, data):
    raw = pack_i2_s(trits, 0.5, layout=layout)
    assert raw[:-32].tobytes() == naive(trits, layout)
    codec = codecs(layout=layout)[I2_S]
    np.testing.assert_array_equal(codec.unpack(raw, trits.shape, None).trits, trits)
    np.testing.assert_array_equal(codec.encode(codec.unpack(raw, trits.shape, None)), raw)
    np.testing.assert_array_equal(codec.decode(raw, trits.shape), trits / np.float32(2))
    begin = data.draw(st.integers(0, len(trits)))
    rows = slice(begin, data.draw(st.integers(begin, len(trits))))
    np.testing.assert_array_equal(codec.unpack(raw, trits.shape, rows).trits, trits[rows])
    codes, scale, blocks = ternary_codes(I2_S, raw, trits.shape, codecs(layout=layout))
    assert codes.tobytes() == naive(trits, Layout.X86)
    assert (scale, blocks) == (0.5, None)


def test_layouts_differ_and_each_reads_the_others_without_a_fault():
    """So nothing but the weights' own statistics can tell them apart."""
    trits = np.random.default_rng(0).integers(-1, 2, (8, 256)).astype(np.int8)
    packed = {layout: pack_i2_s(trits, 1.0, layout=layout) for layout in Layout}
    assert len({raw.tobytes() for raw in packed.values()}) == len(Layout)
    for layout, raw in packed.items():
        for other in Layout:
            same = np.array_equal(unpack_i2_s(raw, trits.shape, layout=other).trits, trits)
            assert same == (other is layout)


@pytest.mark.parametrize("layout", Layout, ids=lambda v: v.name)
def test_large_matrices_are_worked_in_pieces_without_a_seam(layout):
    trits = np.random.default_rng(1).integers(-1, 2, (1004, 2560)).astype(np.int8)
    codes, _, _ = ternary_codes(I2_S, pack_i2_s(trits, 1.0, layout=layout), trits.shape, codecs(layout=layout))
    assert codes.tobytes() == pack_i2_s(trits, 1.0)[:-32].tobytes()


@pytest.mark.parametrize("layout", Layout, ids=lambda v: v.name)
def test_code_3_is_in_no_layout(layout):
    raw = pack_i2_s(np.zeros((4, 128), np.int8), 1.0, layout=layout)
    raw[5] |= 3 << 4
    with pytest.raises(ModelFileError, match="code 3"):
        codecs(layout=layout)[I2_S].unpack(raw, (4, 128), None)
    with pytest.raises(ModelFileError, match="code 3"):
        ternary_codes(I2_S, raw, (4, 128), codecs(layout=layout))


def test_four_rows_are_four_rows():
    with pytest.raises(UsageError, match="6 rows are not a multiple of 4"):
        pack_i2_s(np.zeros((6, 128), np.int8), 1.0, layout=Layout.ROWS)
    with pytest.raises(UsageError, match="6 rows are not a multiple of 4"):
        unpack_i2_s(np.zeros(6 * 32 + 32, np.uint8), (6, 128), layout=Layout.ROWS)
