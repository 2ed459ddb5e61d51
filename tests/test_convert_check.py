"""The comparison after writing: what is equal passes, and each kind of lie is caught."""

import numpy as np
import pytest
import small_models

from bitnet.convert_check import Change, check
from bitnet.errors import ModelFileError
from bitnet.gguf import GGMLType, read, write
from bitnet.transcode import EMBEDDING_TYPES, plan

NAME = "token_embd.weight"


def pair(tmp_path, *, to=GGMLType.I2_S, embedding=None, change=None):
    """A model, its plan, and what was written of it, with one tensor changed."""
    keys, tensors = small_models.parts("bitnet-b1.58", GGMLType.I2_S, 128)
    write(tmp_path / "a.gguf", keys | small_models.vocabulary(), tensors.values())
    source = read(tmp_path / "a.gguf")
    planned = plan(source, to, embedding=embedding)
    written = [part.data() for part in planned.parts]
    write(tmp_path / "b.gguf", planned.metadata, written)
    if change is not None:
        raw = bytearray((tmp_path / "b.gguf").read_bytes())
        info = read(tmp_path / "b.gguf").tensors[change]
        raw[info.offset + 1] ^= 1
        (tmp_path / "b.gguf").write_bytes(raw)
    return source, read(tmp_path / "b.gguf"), list(planned.parts)


@pytest.mark.parametrize("to", [GGMLType.I2_S, GGMLType.F16, GGMLType.F32])
def test_what_is_equal_passes_without_change(tmp_path, to):
    told = []
    source, target, parts = pair(tmp_path, to=to)
    assert set(check(source, target, parts, told.append)) == {Change()}
    assert told == parts


@pytest.mark.parametrize("name", [NAME, "blk.0.attn_norm.weight", "blk.0.ffn_up.weight"])
def test_one_bit_is_enough(tmp_path, name):
    with pytest.raises(ModelFileError, match=f"tensor {name} differs.*after it was written"):
        check(*pair(tmp_path, change=name))


def test_a_tensor_that_is_missing(tmp_path):
    source, _, parts = pair(tmp_path)
    write(tmp_path / "c.gguf", {"general.architecture": "bitnet-b1.58"}, [p.data() for p in parts[1:]])
    with pytest.raises(ModelFileError, match=f"tensor {parts[0].name} is missing"):
        check(source, read(tmp_path / "c.gguf"), parts)


@pytest.mark.parametrize("embedding", EMBEDDING_TYPES)
def test_what_a_type_rounds_is_counted(tmp_path, embedding):
    source, target, parts = pair(tmp_path, embedding=embedding)
    by_name = dict(zip((p.name for p in parts), check(source, target, parts), strict=True))
    info = source.tensors[NAME]
    before = source.raw(NAME).view({"F32": "<f4", "F16": "<f2"}[info.type.name]).astype(np.float32)
    from bitnet.codecs import CODECS

    after = CODECS[embedding].decode(target.raw(NAME), info.shape).reshape(-1)
    assert by_name[NAME] == Change(n=int((before != after).sum()), max_abs=float(np.abs(before - after).max()))
