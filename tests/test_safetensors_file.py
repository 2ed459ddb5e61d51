"""Shards and their index: what is read, and what is refused."""

import json
from contextlib import suppress

import checkpoints as ck
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ModelFileError, UsageError
from bitnet.safetensors_file import Shards, TensorToWrite, read_json, write

SHARDED = "bitnet-autobitlinear"
SECOND = "model-00002-of-00002.safetensors"


def index(folder, **changes):
    path = folder / ck.INDEX
    values = json.loads(path.read_text())
    values["weight_map"] |= changes.pop("weight_map", {})
    path.write_text(json.dumps(values | changes))


def test_every_byte_is_where_it_was():
    folder = ck.FIXTURES / SHARDED
    expected = {}
    for file in folder.glob("*.safetensors"):
        expected |= ck.load(file)
    shards = Shards(folder)
    assert {
        name: (e.dtype, list(e.shape), shards.raw(name).tobytes()) for name, e in shards.entries.items()
    } == expected
    assert shards.n_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    shards.release()
    assert shards.raw("model.norm.weight").tobytes() == expected["model.norm.weight"][2]


def test_views_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        Shards(ck.FIXTURES / SHARDED).raw("model.norm.weight")[0] = 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / SECOND).unlink(), "the shard is missing"),
        (lambda f: index(f, weight_map={"x": SECOND}), "does not hold it"),
        (lambda f: index(f, weight_map={"model.norm.weight": "model-00001-of-00002.safetensors"}), "does not hold it"),
        (lambda f: index(f, weight_map={"x": "../" + SECOND}), "no safetensors file of this folder"),
        (lambda f: index(f, weight_map={"x": "/etc/passwd"}), "no safetensors file of this folder"),
        (lambda f: index(f, weight_map={"x": 3}), "no safetensors file of this folder"),
        (lambda f: (f / ck.INDEX).write_text('{"weight_map": []}'), "weight_map"),
        (lambda f: (f / ck.INDEX).write_text("{"), "is not JSON"),
        (lambda f: (f / ck.INDEX).write_text("[]"), "is not a JSON object"),
        (lambda f: ck.save(f / SECOND, ck.load(f / SECOND) | {"extra": ck.floats([1], 0)}), "are not listed"),
        (lambda f: ck.save(f / SECOND, ck.load(f / "model-00001-of-00002.safetensors")), "is in"),
    ],
)
def test_index_and_shards_that_disagree(tmp_path, damage, words):
    folder = ck.copied(tmp_path, SHARDED)
    damage(folder)
    with pytest.raises(ModelFileError, match=words) as caught:
        Shards(folder)
    assert caught.value.exit_code == 3
    assert str(folder) in str(caught.value)


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def entry(begin, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 7,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (200 << 20).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"\xff\xff",
        header(a=entry(0, 4)),
        header(a=entry(0, 4)) + bytes(5),
        header(a=entry(4, 0)) + bytes(4),
        header(a=entry(0, 4), b=entry(2, 6)) + bytes(6),
        header(a=entry(0, 4), b=entry(8, 12)) + bytes(12),
        header(a=entry(0, 4, shape=(2,))) + bytes(4),
        header(a=entry(0, 4, dtype="F33")) + bytes(4),
        header(a=entry(0, 1 << 63)) + bytes(4),
        header(a=entry(0, 4, shape=(1 << 62, 1 << 62))) + bytes(4),
        header(a={"dtype": "F32"}),
    ],
)
def test_files_that_are_none(tmp_path, raw):
    (tmp_path / ck.SINGLE).write_bytes(raw)
    with pytest.raises(ModelFileError, match=ck.SINGLE) as caught:
        Shards(tmp_path)
    assert caught.value.remedy


@given(at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused(tmp_path_factory, at, byte):
    folder = tmp_path_factory.mktemp("damaged")
    raw = bytearray((ck.FIXTURES / "llama-bitlinear" / ck.SINGLE).read_bytes())
    raw[at] = byte
    (folder / ck.SINGLE).write_bytes(raw)
    with suppress(ModelFileError):
        shards = Shards(folder)
        for name in shards.entries:
            shards.raw(name)


def test_json_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("bitnet.safetensors_file.MAX_JSON", 10)
    (tmp_path / "config.json").write_text('{"a": "bcdefghijk"}')
    with pytest.raises(ModelFileError, match="larger"):
        read_json(tmp_path / "config.json")


def test_json_nested_beyond_reason(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelFileError, match="is not JSON"):
        read_json(tmp_path / "config.json")


def test_written_and_read(tmp_path):
    values = {"b": np.arange(6, dtype="<f4").reshape(2, 3), "a": np.arange(5, dtype=np.uint8)}
    tensors = [
        TensorToWrite(
            name=name, dtype="F32" if name == "b" else "U8", shape=v.shape, data=lambda v=v: iter((v[:1], v[1:]))
        )
        for name, v in values.items()
    ]
    write(tmp_path / ck.SINGLE, tensors, {"format": "pt"})
    shards = Shards(tmp_path)
    assert {name: shards.raw(name).tobytes() for name in values} == {name: v.tobytes() for name, v in values.items()}
    from safetensors.numpy import load_file

    assert all((load_file(tmp_path / ck.SINGLE)[name] == v).all() for name, v in values.items())


def test_a_tensor_shorter_than_its_shape_is_not_written(tmp_path):
    tensor = TensorToWrite(name="a", dtype="F32", shape=(2,), data=lambda: iter((np.zeros(1, "<f4"),)))
    with pytest.raises(UsageError, match="has 4 bytes, not 8"):
        write(tmp_path / ck.SINGLE, [tensor], {})
