"""The quantisers against loops written from the engines' sources, value by value."""

from __future__ import annotations

import struct
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reference import rounding
from reference.semantics import Semantics

ORDINARY = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def rows(width):
    return hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(width)), elements=ORDINARY)


@given(rows(20))
@settings(deadline=None)
def test_int8_token_is_the_paper_quantiser(x):
    q, s = rounding.int8_token(x)
    for row, qs, scale in zip(x, q, s, strict=True):
        assert scale[0] == np.float32(127.0 / max(float(np.abs(row).max()), 1e-5))
        for value, integer in zip(row, qs, strict=True):
            assert integer == min(127, max(-128, round(float(np.float32(value * scale[0])))))  # round: half to even


#: 127 / 3 is no float32; its product with the next value is half an integer in float32, and a little less in truth.
TELLING = np.array([[3.0, 0.17716536, -0.17716536]], np.float32)


@given(rows(20))
@example(TELLING)
@settings(deadline=None)
def test_a_fused_product_is_rounded_once(x):
    q, s = rounding.int8_token(x, kind="int8_token_fused")
    assert np.array_equal(s, rounding.int8_token(x)[1])
    for row, qs, scale in zip(x, q, s, strict=True):
        exact = [Fraction(float(value)) * Fraction(float(scale[0])) for value in row]
        assert qs.tolist() == [min(127, max(-128, round(value))) for value in exact]


def test_a_fused_product_makes_no_ties():
    rounded, fused = (rounding.int8_token(TELLING, kind=kind)[0] for kind in ("int8_token", "int8_token_fused"))
    assert rounded.tolist() == [[127, 8, -8]]
    assert fused.tolist() == [[127, 7, -7]]


@given(rows(256))
@settings(deadline=None, max_examples=30)
def test_q8_k_follows_the_signed_peak(x):
    q, d = rounding.int8_blocks(x, "q8_k")
    for t, row in enumerate(x):
        peak = next((v for v in row if abs(v) == np.abs(row).max()), np.float32(0))
        if peak == 0:
            assert d[t, 0, 0] == 0
            assert not q[t].any()
            continue
        inverse = np.float32(-127) / peak
        assert d[t, 0, 0] == np.float32(1) / inverse
        assert all(q[t, 0, i] == min(127, round(float(inverse * v))) for i, v in enumerate(row))


@given(rows(64))
@settings(deadline=None, max_examples=30)
def test_q8_0_stores_its_scale_as_f16(x):
    q, d = rounding.int8_blocks(x, "q8_0")
    for t, row in enumerate(x):
        for b, block in enumerate(row.reshape(2, 32)):
            largest = np.abs(block).max()
            if largest == 0:
                assert not q[t, b].any()
                continue
            inverse = np.float32(127) / largest
            assert d[t, b, 0] == np.float32(np.float16(largest / np.float32(127)))
            assert all(q[t, b, i] == round(float(inverse * v)) for i, v in enumerate(block))


def test_a_row_of_zeros_is_zeros_everywhere():
    zero = np.zeros((2, 256), np.float32)
    q, s = rounding.int8_token(zero)
    assert not q.any()
    assert (s == np.float32(127 / 1e-5)).all()
    for kind in rounding.BLOCK:
        q, d = rounding.int8_blocks(zero, kind)
        assert not q.any()
        assert not d.any()


def test_rounding_rules_differ_only_where_they_should():
    x = np.array([[127.0, 0.5, 1.5, -2.5, 0.7]], np.float32)  # s = 1
    expected = {"half_even": [127, 0, 2, -2, 1], "away": [127, 1, 2, -3, 1], "truncate": [127, 0, 1, -2, 0]}
    for rule, integers in expected.items():
        q, _ = rounding.int8_token(x, Semantics(activation_rounding=rule))
        assert q.tolist() == [integers]


def test_one_scale_a_tensor_is_set_by_its_largest_row():
    x = np.array([[1.0, 0.5], [100.0, 50.0]], np.float32)
    q, s = rounding.int8_token(x, Semantics(activation_scale="tensor"))
    assert s.tolist() == [[np.float32(1.27)], [np.float32(1.27)]]
    assert q.tolist() == [[1, 1], [127, 64]]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bf16_is_the_nearest_with_an_even_last_bit(value):
    x = np.array([value], np.float32)
    [result] = rounding.bf16(x)
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    below = bits & 0xFFFF0000
    rest = bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and (below >> 16) & 1)
    expected = below + (0x10000 if up else 0)
    assert struct.unpack("<I", struct.pack("<f", result))[0] == expected


def test_float_types():
    x = np.array([1.0 + 2.0**-11, 70000.0, np.nan], np.float32)
    assert rounding.f16(x)[:2].tolist() == [1.0, np.inf]
    assert np.isnan(rounding.bf16(x)[2])
    assert np.array_equal(rounding.float_type(x, "f32"), x, equal_nan=True)
    assert rounding.float_type(x, "bf16")[0] == 1.0


def test_rotary_angles_agree_but_are_not_equal():
    """Iterated float32 multiplication drifts by one rounding a pair: 64 pairs · 6e-8 of the angle."""
    positions = np.arange(200)
    exact, iterated, single = (rounding.rope_angles(positions, 128, 5e5, k) for k in ("f64", "f32_iterated", "f32"))
    for other in (iterated, single):
        assert (np.abs(other - exact) <= 64 * 6e-8 * exact + 1e-30).all()
        assert not np.array_equal(other, exact)
    assert not np.array_equal(iterated, single)


def test_numerics_are_checked_by_name():
    assert rounding.resolve(None)["activation"] == "int8_token"
    assert rounding.resolve({"kv": "f16"})["kv"] == "f16"
    with pytest.raises(ValueError, match="kv is 'q4'"):
        rounding.resolve({"kv": "q4"})
    with pytest.raises(ValueError, match="unknown numerics field 'cache'"):
        rounding.resolve({"cache": "f16"})


def test_the_table_of_numerics_is_the_engines():
    """Written twice on purpose; the names must still be the same."""
    from bitnet.config import _NUMERICS_CHOICES, Numerics

    assert {k: set(v) for k, v in rounding.NUMERICS.items()} == {k: set(v) for k, v in _NUMERICS_CHOICES.items()}
    assert rounding.resolve(None) == Numerics().to_dict()
