"""Parts of a model to be written: their pieces, put together, are the tensor, whatever a piece is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet import parts
from bitnet.codecs import CODECS
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGMLType, TensorData, read, write
from bitnet.parts import MADE_TERNARY, copy, matrix_of, retyped, row_blocks, row_reader

Q = "blk.0.attn_q.weight"


def one(folder, array, type_=GGMLType.F32, name="token_embd.weight", more=()):
    path = folder / "a.gguf"
    data = CODECS[type_].encode(array)
    tensors = [TensorData(name=name, shape=array.shape, type=type_, data=data), *more]
    write(path, {"general.architecture": "llama"}, tensors)
    return read(path)


def together(part):
    return np.concatenate([np.ascontiguousarray(p).reshape(-1).view(np.uint8) for p in part.pieces()])


@given(n_row=st.integers(1, 50), n_col=st.integers(1, 50), piece=st.integers(1, 300))
def test_blocks_of_rows_cover_a_matrix_once(n_row, n_col, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PIECE", piece)
        blocks = list(row_blocks((n_row, n_col)))
    assert [i for rows in blocks for i in range(rows.start, rows.stop)] == list(range(n_row))
    assert all((rows.stop - rows.start) * n_col <= max(piece, n_col) for rows in blocks)


@given(piece=st.integers(32, 4000), to=st.sampled_from([GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0]))
def test_pieces_put_together_are_the_tensor(tmp_path_factory, piece, to):
    values = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    source = one(tmp_path_factory.mktemp("p"), values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PIECE", piece)
        assert together(copy(source, "token_embd.weight")).tobytes() == values.tobytes()
        part = retyped(source, source.tensors["token_embd.weight"], to)
        assert (together(part) == CODECS[to].encode(values)).all()
        assert (part.expected()(slice(3, 9)) == CODECS[to].decode(together(part), (20, 64))[3:9]).all()
    assert (part.original is None) == (to == GGMLType.F32)


@pytest.mark.parametrize("type_", [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0])
def test_rows_are_read_from_their_own_bytes(tmp_path, type_):
    values = np.random.default_rng(1).normal(size=(7, 32)).astype(np.float32)
    source = one(tmp_path, values, type_)
    whole = CODECS[type_].decode(source.raw("token_embd.weight"), (7, 32))
    assert (row_reader(source, source.tensors["token_embd.weight"])()(slice(2, 5)) == whole[2:5]).all()


def test_a_type_that_cannot_be_read(tmp_path):
    source = one(tmp_path, np.ones((4, 32), np.float32))
    with pytest.raises(UsageError, match="F32, which cannot be made F16"):
        retyped(source, source.tensors["token_embd.weight"], GGMLType.F16, {})


def test_only_projections_are_matrices(tmp_path):
    ternary = np.sign(np.random.default_rng(2).normal(size=(8, 128))).astype(np.float32) * np.float32(0.25)
    source = one(tmp_path, ternary)
    assert matrix_of(source, "token_embd.weight") is None
    found = matrix_of(one(tmp_path, ternary, name=Q), Q)
    assert found.exact
    assert found.scale() == np.float32(0.25)
    part = found.part(CODECS[GGMLType.I2_S])
    assert (part.expected()(slice(0, 8)) == ternary).all()
    assert part.lost == ""


def test_floats_of_many_magnitudes_are_made_ternary_and_said_to_be(tmp_path):
    values = np.random.default_rng(3).normal(size=(8, 128)).astype(np.float32)
    found = matrix_of(one(tmp_path, values, name=Q), Q)
    assert not found.exact
    assert found.part(CODECS[GGMLType.I2_S]).lost == MADE_TERNARY


def test_a_scale_beside_is_multiplied_in(tmp_path):
    scale = TensorData(name="blk.0.attn_q.scale", shape=(1,), type=GGMLType.F32, data=np.array([0.5], "<f4"))
    found = matrix_of(one(tmp_path, np.ones((8, 128), np.float32), name=Q, more=[scale]), Q)
    assert found.has_scale
    assert found.scale() == np.float32(0.5)


FLOAT_TYPES = [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_", FLOAT_TYPES)
def test_what_is_no_number_is_refused_by_file_and_tensor_whatever_becomes_of_it(tmp_path, type_, bad):
    values = np.random.default_rng(4).normal(size=(7, 32)).astype(np.float32)
    source = one(tmp_path, values, type_)
    raw = source.raw("token_embd.weight").copy()
    row = raw.reshape(7, -1)[5]
    if type_ == GGMLType.Q8_0:
        row[:2] = np.array([bad], "<f2").view(np.uint8)
    else:
        encoded = CODECS[type_].encode(np.full((1, 1), bad, np.float32))
        row[: len(encoded)] = encoded
    data = TensorData(name="token_embd.weight", shape=(7, 32), type=type_, data=raw)
    write(tmp_path / "b.gguf", {"general.architecture": "llama"}, [data])
    damaged = read(tmp_path / "b.gguf")
    found = [copy(damaged, "token_embd.weight")]
    found += [retyped(damaged, damaged.tensors["token_embd.weight"], to) for to in FLOAT_TYPES]
    for part in found:
        with pytest.raises(ModelFileError, match="holds NaN or infinity") as caught:
            together(part)
        assert str(caught.value).startswith(f"{tmp_path / 'b.gguf'}: tensor token_embd.weight holds")


def test_what_a_codec_refuses_is_told_with_file_and_tensor(tmp_path):
    source = one(tmp_path, np.full((2, 32), 1e6, np.float32))
    part = retyped(source, source.tensors["token_embd.weight"], GGMLType.F16)
    with pytest.raises(UsageError, match=r"tensor token_embd.weight: a weight of 1e\+06 is too large") as caught:
        together(part)
    assert caught.value.where == str(tmp_path / "a.gguf")
