"""Plain decoders against loops written from the layouts, and against each other through lossless copies."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.gguf import read
from reference.decode import decode, unpack_i2_s
from reference.runner import ReferenceUnavailableError
from reference.semantics import CONTRACT, Semantics

TENSOR = "blk.0.attn_q.weight"


class OneTensor:
    """As much of a container as `decode` needs."""

    def __init__(self, data, shape, kind, **scales):
        info = type("Info", (), {"shape": shape, "type": type("Type", (), {"name": kind})})
        self.tensors = {"w.weight": info, **dict.fromkeys(scales, info)}
        self._raw = {"w.weight": data, **scales}

    def raw(self, name):
        return self._raw[name]


def i2_s(codes, scale=0.5):
    """The layout, one element at a time."""
    packed = np.zeros(codes.size // 4 + 32, np.uint8)
    for n, code in enumerate(codes.reshape(-1)):
        group, inside = divmod(n, 128)
        packed[group * 32 + inside % 32] |= int(code) << (6 - 2 * (inside // 32))
    packed[-32:-28] = np.array([scale], "<f4").view(np.uint8)
    return packed


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_i2_s_is_read_as_its_layout_says(seed):
    codes = np.random.default_rng(seed).integers(0, 3, (3, 256))
    matrix = decode(OneTensor(i2_s(codes), (3, 256), "I2_S"), "w.weight", CONTRACT)
    assert np.array_equal(matrix.values, codes - 1)
    assert matrix.scale == np.float32(0.5)
    assert matrix.ternary
    assert np.array_equal(matrix.dense(CONTRACT), (codes - 1) * np.float32(0.5))


def test_each_wrong_order_is_another_permutation_of_the_same_codes():
    packed = np.random.default_rng(0).integers(0, 256, 96, np.uint8)
    orders = [unpack_i2_s(packed, o) for o in ("interleaved", "interleaved_64", "sequential", "sequential_reversed")]
    for i, one in enumerate(orders):
        assert np.array_equal(np.bincount(one), np.bincount(orders[0]))
        assert all(not np.array_equal(one, other) for other in orders[:i])
    byte = np.array([0b00011011], np.uint8)
    assert unpack_i2_s(byte, "sequential").tolist() == [0, 1, 2, 3]
    assert unpack_i2_s(byte, "sequential_reversed").tolist() == [3, 2, 1, 0]


def test_code_three_is_refused_unless_a_defect_maps_it():
    codes = np.full((1, 128), 3)
    with pytest.raises(ReferenceUnavailableError, match="128 codes are 3"):
        decode(OneTensor(i2_s(codes), (1, 128), "I2_S"), "w.weight", CONTRACT)
    mapped = decode(OneTensor(i2_s(codes), (1, 128), "I2_S"), "w.weight", Semantics(code_map=(-2, -1, 1, 2)))
    assert (mapped.values == 2).all()


def test_i2_s_rows_must_be_whole_groups():
    with pytest.raises(ReferenceUnavailableError, match="multiple of 128"):
        decode(OneTensor(np.zeros(80, np.uint8), (3, 64), "I2_S"), "w.weight", CONTRACT)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_lossless_copies_decode_to_the_same_trits(tmp_path, kind):
    path = golden_models.retyped("b158_a", tmp_path / "copy.gguf", kind)
    one, other = decode(read(golden_models.model("b158_a")), TENSOR, CONTRACT), decode(read(path), TENSOR, CONTRACT)
    assert np.array_equal(one.values, other.values)
    assert other.block_scale is None
    assert (other.scale, other.extra_scale) == (np.float32(1), one.scale)


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_blocks_keep_their_own_scales(kind):
    rng = np.random.default_rng(2)
    scale = np.array([[0.25, 2.0], [1.0, 0.5]], np.float32)
    trits = rng.integers(-1, 2, (2, 512)).astype(np.float32)
    dense = trits * np.repeat(scale, 256, axis=1)
    raw = quants.quantize(dense, GGMLQuantizationType[kind]).reshape(-1)
    matrix = decode(OneTensor(raw, (2, 512), kind), "w.weight", CONTRACT)
    assert np.array_equal(matrix.values, trits)
    assert np.array_equal(matrix.block_scale, scale)
    assert np.array_equal(matrix.dense(CONTRACT), dense)
    x = rng.standard_normal((3, 512))
    # two float64 summation orders of 512 terms
    assert np.allclose(matrix.product(x), x @ dense.T.astype(np.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_dense_types_are_what_the_gguf_package_wrote(kind):
    values = np.random.default_rng(3).uniform(-1, 1, (4, 64)).astype(np.float32)
    # Half a unit in the last place below 1; Q8_0: half a step of 1/127, and the scale's own f16 rounding.
    nearest = {"F32": 0.0, "F16": 2.0**-12, "BF16": 2.0**-9, "Q8_0": 1 / 254 + 2.0**-11}[kind]
    raw = quants.quantize(values, GGMLQuantizationType[kind]).view(np.uint8)
    matrix = decode(OneTensor(raw.reshape(-1), (4, 64), kind), "w.weight", CONTRACT)
    assert not matrix.ternary
    assert np.abs(matrix.dense(CONTRACT) - values).max() <= nearest
    if kind != "F32":
        assert np.array_equal(matrix.dense(CONTRACT), quants.dequantize(raw, GGMLQuantizationType[kind]))


def test_products_are_exact_for_integers_and_the_same_wide_or_narrow():
    gguf = read(golden_models.model("b158_a"))
    x = np.random.default_rng(4).integers(-128, 128, (5, 256)).astype(np.float64)
    narrow, wide = (decode(gguf, TENSOR, CONTRACT, wide=w) for w in (False, True))
    expected = x.astype(np.int64) @ narrow.values.astype(np.int64).T
    assert np.array_equal(narrow.product(x), expected)
    assert np.array_equal(wide.product(x), expected)


def test_reternarised_weights_shrink_by_their_density():
    gguf = read(golden_models.model("b158_a"))
    one, twice = decode(gguf, TENSOR, CONTRACT), decode(gguf, TENSOR, Semantics(reternarised=True))
    assert np.array_equal(one.values, twice.values)
    assert twice.scale == pytest.approx(one.scale * np.abs(one.values).mean(), rel=1e-6)  # float32 product


def test_a_type_without_a_plain_decoder_is_named():
    with pytest.raises(ReferenceUnavailableError, match="no plain decoder for Q4_K"):
        decode(OneTensor(np.zeros(144, np.uint8), (1, 256), "Q4_K"), "w.weight", CONTRACT)
