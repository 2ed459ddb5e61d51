"""Packed and float tensors as I2_S: against a plain reading of the bytes."""

import checkpoints as ck
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bitnet.codecs.i2_s import unpack_i2_s
from bitnet.errors import ModelFileError
from bitnet.hf_weights import Dense, Ternary, vector
from bitnet.safetensors_file import Shards

TRITS = arrays(np.int8, (8, 128), elements=st.integers(-1, 1))


def shards(folder, **tensors):
    ck.save(folder / ck.SINGLE, tensors)
    return Shards(folder)


def packed(trits):
    """transformers' packing, one weight at a time."""
    quarter = len(trits) // 4
    out = np.zeros((quarter, trits.shape[1]), np.uint8)
    for row in range(len(trits)):
        for column in range(trits.shape[1]):
            out[row % quarter, column] |= (int(trits[row, column]) + 1) << 2 * (row // quarter)
    return "U8", list(out.shape), out.tobytes()


def matrix(found, order=None, linear_class="bitlinear", master=False):
    return Ternary(
        shards=found,
        entry=found.entries["w"],
        shape=(8, 128),
        scale_entry=found.entries.get("s"),
        linear_class=linear_class,
        master=master,
        order=np.arange(8) if order is None else order,
    )


@given(trits=TRITS, scale=st.floats(2**-10, 2**10, width=32))
def test_packed_weights(tmp_path_factory, trits, scale):
    found = shards(tmp_path_factory.mktemp("w"), w=packed(trits), s=ck.floats([1], scale))
    for linear_class, expected in (
        ("bitlinear", np.float32(1) / np.float32(scale)),
        ("autobitlinear", np.float32(scale)),
    ):
        read = unpack_i2_s(matrix(found, linear_class=linear_class).raw(), (8, 128))
        assert (read.trits == trits).all()
        assert read.scale == expected


@given(trits=TRITS, seed=st.integers(0, 99))
def test_rows_in_another_order(tmp_path_factory, trits, seed):
    found = shards(tmp_path_factory.mktemp("w"), w=packed(trits), s=ck.floats([1], 1.0))
    order = np.random.default_rng(seed).permutation(8)
    assert (unpack_i2_s(matrix(found, order).raw(), (8, 128)).trits == trits[order]).all()
    assert (matrix(found, order).raw_f16().view(np.float16).reshape(8, 128) == trits[order]).all()


@given(trits=TRITS)
def test_floats_that_are_ternary_already(tmp_path_factory, trits):
    if not trits.any():
        trits[0, 0] = 1
    values = ck.floats([8, 128], trits * np.float32(0.375), "F16")
    found = matrix(shards(tmp_path_factory.mktemp("w"), w=values))
    assert (unpack_i2_s(found.raw(), (8, 128)).trits == trits).all()
    assert found.scale == np.float32(0.375)
    assert not found.ternarised


def test_master_weights_only_where_they_are_meant(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 128)).astype(np.float32)
    found = shards(tmp_path, w=ck.floats([8, 128], values))
    assert matrix(found, master=True).ternarised
    with pytest.raises(ModelFileError, match="more than one magnitude"):
        matrix(found).raw()


def test_dense_matrices_are_views_in_the_files_type(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    found = shards(tmp_path, w=ck.floats([6, 4], values))
    assert (Dense(shards=found, entry=found.entries["w"]).raw().view(np.float32).reshape(6, 4) == values).all()
    order = np.array([5, 0, 1, 2, 3, 4])
    swapped = Dense(shards=found, entry=found.entries["w"], order=order).raw()
    assert (swapped.view(np.float32).reshape(6, 4) == values[order]).all()


def test_vectors_are_finite(tmp_path):
    found = shards(tmp_path, good=ck.floats([3], 2.0), bad=ck.floats([3], np.inf))
    assert (vector(found, found.entries["good"]) == 2).all()
    with pytest.raises(ModelFileError, match="NaN or infinity"):
        vector(found, found.entries["bad"])
