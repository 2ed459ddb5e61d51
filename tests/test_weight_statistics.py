"""Counts of weights: equal to what counting the decoded ones gives, for every form a matrix may have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import floats

from bitnet.codecs.i2_s import trits_to_codes
from bitnet.kernels.row_tiles import as_rows
from bitnet.linear import DenseMatrix, Int8Matrix, TernaryMatrix
from bitnet.weight_statistics import constant_fault, is_finite, is_ternary, matrix_statistics, norm_statistics

RNG = np.random.default_rng(3)


def ternary(trits, scale=0.5, block_scale=None):
    n_row, n_col = trits.shape
    return TernaryMatrix(
        name="blk.0.attn_q.weight",
        type_name="I2_S",
        n_row=n_row,
        n_col=n_col,
        n_bytes=0,
        scale=np.float32(scale),
        tiles=as_rows(trits_to_codes(trits.astype(np.int8))),
        block_scale=block_scale,
    )


def dense(values, scale=1.0):
    n_row, n_col = values.shape
    kept = {"name": "m", "type_name": "F32", "n_row": n_row, "n_col": n_col, "n_bytes": 0, "scale": np.float32(scale)}
    return DenseMatrix(**kept, data=values)


def int8(codes, block_scale):
    n_row, n_col = codes.shape
    kept = {"name": "m", "type_name": "Q8_0", "n_row": n_row, "n_col": n_col, "n_bytes": 0, "scale": np.float32(1)}
    return Int8Matrix(**kept, data=codes, block_scale=block_scale.astype(np.float32))


def bf16(values):
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16)


TRITS = RNG.integers(-1, 2, (24, 256))
NORMAL = RNG.standard_normal((40, 64)).astype(np.float32)
FORMS = {
    "ternary": ternary(TRITS),
    "blocks": ternary(TRITS, 1.0, RNG.uniform(0.5, 1.5, (24, 1)).astype(np.float32)),
    "f32": dense(NORMAL),
    "f32 scaled": dense(NORMAL, 0.25),
    "f16": dense(NORMAL.astype(np.float16).view(np.uint16)),
    "bf16": dense(bf16(NORMAL)),
    "ternary floats": dense((TRITS * np.float32(0.3)).astype(np.float32)),
    "q8_0": int8(RNG.integers(-127, 128, (8, 64)).astype(np.int8), RNG.uniform(0.01, 0.02, (8, 2))),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_counts_are_those_of_the_decoded_weights(form):
    s, values = matrix_statistics(FORMS[form]), floats(FORMS[form])
    magnitudes = np.unique(np.abs(values[values != 0]))
    assert s.finite
    assert s.n == values.size
    # float32 products against float64 ones, and for blocks the mean scale against each block's own
    rounding = 0.02 if form == "blocks" else 1e-6
    assert s.mean_abs == pytest.approx(np.abs(values).mean(), rel=rounding)
    assert s.max_abs == pytest.approx(np.abs(values).max(), rel=1e-6)
    if form in ("ternary", "blocks", "ternary floats"):
        assert (s.negative, s.zero, s.positive) == ((values < 0).sum(), (values == 0).sum(), (values > 0).sum())
        assert s.scale == pytest.approx(magnitudes.mean(), rel=rounding)
        assert s.mean_abs / s.scale == pytest.approx(1 - s.zero / s.n)
    else:
        assert len(magnitudes) > 1
        assert (s.negative, s.zero, s.positive, s.scale) == (None, None, None, None)
    assert set(s.to_dict()) == set(s.__dataclass_fields__)


def test_what_is_ternary_in_type_or_in_value():
    assert {form for form in FORMS if is_ternary(FORMS[form])} == {"ternary", "blocks", "ternary floats"}
    carried = np.zeros((2000, 600), np.float32)  # more than is looked at together, and nothing in the first part
    carried[1900:] = np.float16(0.3) * RNG.integers(-1, 2, (100, 600))
    for values in (carried, carried.astype(np.float16).view(np.uint16), bf16(carried)):
        assert is_ternary(dense(values))
        values[1999, 0] = 1
        assert not is_ternary(dense(values))
        assert is_ternary(dense(values), n_row=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 39])
def test_what_is_not_finite_is_seen(bad, row):
    values = NORMAL.copy()
    values[row, 5] = bad
    for data in (values, values.astype(np.float16).view(np.uint16), bf16(values)):
        s = matrix_statistics(dense(data))
        assert not s.finite
        assert s.scale is None
        assert None not in (s.to_dict()["mean_abs"], s.to_dict()["max_abs"])
    assert not matrix_statistics(int8(np.ones((1, 32), np.int8), np.array([[bad]]))).finite


@settings(deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([np.uint32, np.uint16, np.int16]))
def test_any_float_that_is_not_finite_is_found_wherever_it_is(data, dtype):
    n, values = data.draw(st.sampled_from([1, 300, (1 << 17) + 9])), {np.uint32: np.float32}
    bits = np.zeros((1, n), dtype)
    at = data.draw(st.integers(0, n - 1))
    bits.view(f"u{bits.itemsize}")[0, at] = data.draw(st.integers(0, (1 << 8 * bits.itemsize) - 1))
    matrix = dense(bits.view(values.get(dtype, dtype)))
    assert is_finite(matrix) is bool(np.isfinite(floats(matrix)).all()) is matrix_statistics(matrix).finite


def test_finite_floats_whose_scale_makes_them_infinite():
    for values, finite in ((1e10, True), (1e20, False), (-1e20, False)):
        matrix = dense(np.full((1, 32), values, np.float32), scale=1e20)
        assert is_finite(matrix) is matrix_statistics(matrix).finite is finite


ONE_BYTE = {0x00: "constant", 0x55: "all zero", 0xAA: "constant"}


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 255))
def test_of_ternary_matrices_only_those_of_one_code_are_constant(byte):
    matrix = ternary(np.ones((3, 128), np.int8))
    matrix.codes[:] = byte
    fault = constant_fault(matrix)
    assert (fault or "").startswith(ONE_BYTE.get(byte, ""))
    assert (fault is None) is (byte not in ONE_BYTE)
    matrix.codes[2, 31] ^= 1
    assert constant_fault(matrix) is None


@pytest.mark.parametrize(
    ("matrix", "fault"),
    [
        (ternary(TRITS, 0.0), "all zero: its scale is 0"),
        (ternary(TRITS, 1.0, np.zeros((24, 1), np.float32)), "all zero: every block scale is 0"),
        (ternary(np.zeros((24, 256)), 1.0, np.arange(24, dtype=np.float32)[:, None]), "all zero"),
        (ternary(np.ones((24, 256)), 1.0, np.arange(24, dtype=np.float32)[:, None]), None),
        (ternary(np.ones((24, 256)), 1.0, np.full((24, 1), 2, np.float32)), "constant"),
        (dense(np.zeros((4, 4), np.float32)), "all zero"),
        (dense(np.full((4, 4), 2, np.float32)), "constant"),
        (dense(np.full((4, 4), 0x3C00, np.uint16)), "constant"),
        (dense(np.eye(4, dtype=np.float32)), None),
        (dense(np.repeat(np.arange(2, dtype=np.float32), 4).reshape(2, 4)), None),  # each row constant, not the whole
        (int8(np.zeros((2, 64), np.int8), np.ones((2, 2))), "all zero"),
        (int8(np.ones((2, 64), np.int8), np.array([[1, 1], [1, 2]])), None),
        *((matrix, None) for matrix in FORMS.values()),
    ],
)
def test_constant_faults(matrix, fault):
    found = constant_fault(matrix)
    assert found is None if fault is None else found.startswith(fault)


def test_norms():
    s = norm_statistics("n", np.float32([3, -4]))
    assert (s.n, s.min, s.max, s.mean) == (2, -4, 3, -0.5)
    assert s.rms == pytest.approx(12.5**0.5)
    assert set(s.to_dict()) == {"name", "n", "min", "max", "mean", "rms"}
