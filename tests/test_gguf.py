"""Opening files: the recorded ones, damaged ones, and what is no model at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARCH, file, small, tensor, text_key
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.errors import BitNetError, GGUFError, ModelFileError
from bitnet.gguf import GGUF, GGMLType, StringArray, TensorData, ValueType, read, write
from bitnet.gguf_header import parse
from bitnet.gguf_layout import place

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
MODELS = json.loads((GOLDENS / "manifest.json").read_text())["models"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


@pytest.fixture
def model(path) -> GGUF:
    path.write_bytes(small())
    return read(path)


@pytest.mark.parametrize("name", MODELS)
def test_opens_what_bitnet_cpp_reads(name):
    recorded = MODELS[name]
    model = read(GOLDENS / recorded["file"])
    params = recorded["params"]
    arch = model.get("general.architecture", str)
    assert arch == params["arch"]
    assert model.get(f"{arch}.block_count", int) == params["layers"]
    assert model.get(f"{arch}.embedding_length", int) == params["embd"]
    assert model.sha256() == recorded["sha256"]
    assert model.n_bytes == recorded["bytes"]
    assert model.notices == ()
    assert model.tensors["token_embd.weight"].type is GGMLType.F16
    assert model.tensors["token_embd.weight"].shape == (params["vocab_n"], params["embd"])
    ternary = [t for t in model.tensors.values() if t.type is GGMLType.I2_S]
    assert len(ternary) == 7 * params["layers"]
    for info in ternary:
        assert info.n_bytes == info.shape[0] * info.shape[1] // 4 + 32
        scale = model.raw(info.name)[-32:-28].view("<f4")[0]
        assert 0 < scale < 1
    tokens = model.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == params["vocab_n"]
    assert model.types["tokenizer.ggml.tokens"] is ValueType.ARRAY


def test_a_tensor_is_a_read_only_view_of_exactly_its_bytes(path):
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(path, {}, [TensorData(name="t", shape=(3, 4), type=GGMLType.F32, data=data)])
    raw = read(path).raw("t")
    assert raw.dtype == np.uint8
    assert not raw.flags.writeable
    assert not raw.flags.owndata
    np.testing.assert_array_equal(raw.view("<f4").reshape(3, 4), data)
    with pytest.raises(ValueError, match="read-only"):
        raw[0] = 1


def test_views_outlive_the_object(path):
    write(path, {}, [TensorData(name="t", shape=(2,), type=GGMLType.F32, data=np.float32([1, 2]))])
    raw = read(path).raw("t")
    path.unlink()
    assert raw.view("<f4").tolist() == [1, 2]


def test_unknown_tensor(model):
    with pytest.raises(GGUFError, match="no such tensor"):
        model.raw("t")


def test_metadata_cannot_be_changed(model):
    for mapping in (model.metadata, model.types, model.tensors):
        with pytest.raises(TypeError):
            mapping["x"] = 1
    assert "2 tensors" in repr(model)


def test_get(model):
    assert model.get(ARCH, str) == "bitnet-b1.58"
    assert model.get("a.bool", bool) is True
    assert model.get("a.float", float) == 0.5
    assert model.get("general.alignment", int) == 32
    assert model.get("general.alignment", ValueType.UINT32) == 32
    assert model.get("a.tokens", list) == [b"a", b"\xff", b""]
    assert isinstance(model.get("a.tokens", StringArray), StringArray)
    assert model.get("a.scores", list) == [1, 2, 3]
    assert model.get("a.scores", np.ndarray).dtype == np.float32
    assert len(model.get("a.nested", list)) == 2
    assert model.get("none", int, 7) == 7
    assert model.get("none", str, None) is None


@pytest.mark.parametrize(
    ("key", "expected", "reason"),
    [
        ("none", int, "missing"),
        (ARCH, int, "STRING, but int"),
        ("a.bool", int, "BOOL, but int"),
        ("general.alignment", bool, "UINT32, but bool"),
        ("general.alignment", float, "UINT32, but float"),
        ("general.alignment", ValueType.UINT64, "UINT32, but UINT64"),
        ("a.float", list, "FLOAT32, but list"),
        ("a.scores", StringArray, "ARRAY, but StringArray"),
    ],
)
def test_get_refuses(model, key, expected, reason):
    with pytest.raises(GGUFError, match=reason) as caught:
        model.get(key, expected)
    assert caught.value.field == key
    assert caught.value.remedy


def test_sha256(model, path):
    assert model.sha256() == model.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_written_to_in_place_is_refused(model, path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    with pytest.raises(GGUFError, match="changed after it was opened"):
        model.raw("norm.weight")
    with pytest.raises(GGUFError, match="changed after it was opened"):
        model.sha256()


def test_a_file_that_was_replaced_is_read_as_it_was(model, path):
    write(path, {}, [])
    assert len(model.raw("norm.weight")) == 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"Once upon a time there was no model in this file.\n", "this is a text file"),
        (small()[:-1], "truncated: 1 bytes of its data are missing"),
        (small()[:-120], "truncated"),
        (small()[:100], "more than the rest"),
    ],
    ids=["empty", "text", "one byte short", "no data", "half a header"],
)
def test_a_damaged_file_is_one_clear_message(path, content, message):
    path.write_bytes(content)
    with pytest.raises(GGUFError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "hint: " in str(caught.value)
    assert caught.value.exit_code == 3


def test_what_is_no_file_is_one_clear_message(tmp_path):
    fifo = tmp_path / "pipe.gguf"
    os.mkfifo(fifo)
    cases = {
        tmp_path / "none.gguf": "no such file",
        tmp_path: "is a directory",
        fifo: "not a regular file",
        tmp_path / ("n" * 300): "cannot be opened",
        tmp_path / "a\0b": "cannot be opened",
    }
    for path, message in cases.items():
        with pytest.raises(ModelFileError, match=message) as caught:
            read(path)
        assert caught.value.remedy
        assert caught.value.exit_code == 3


def test_a_file_that_may_not_be_read(path, monkeypatch):
    path.write_bytes(small())

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelFileError, match="may not be read by this user"):
        read(path)


def test_opening_reads_no_tensor_data(path):
    """A sparse file of 64 GiB opens at once."""
    n = 16 << 30
    head = file((text_key(ARCH, "llama"),), (tensor("t", (n,), 0),), 32)[:-32]
    with path.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + 4 * n)
    start = time.process_time()
    model = read(path)
    assert time.process_time() - start < 3  # reading 64 GiB takes more on any machine
    assert model.tensors["t"].n_bytes == 4 * n
    assert not model.raw("t")[-4:].any()


def test_a_large_vocabulary_opens_fast(path):
    n_tokens, n_merges = 128_256, 280_147  # those of BitNet-b1.58-2B-4T
    metadata = {
        ARCH: "bitnet-b1.58",
        "tokenizer.ggml.tokens": [b"t%d" % i for i in range(n_tokens)],
        "tokenizer.ggml.merges": [b"a%d b%d" % (i, i) for i in range(n_merges)],
        "tokenizer.ggml.scores": np.zeros(n_tokens, np.float32),
    }
    write(path, metadata, [])
    start = time.thread_time()
    model = read(path)
    assert time.thread_time() - start < 1.5  # 0.1 s on an idle core of 2026; a quadratic parser takes minutes
    assert model.metadata["tokenizer.ggml.tokens"][n_tokens - 1] == b"t%d" % (n_tokens - 1)
    assert model.get("tokenizer.ggml.merges", list) == metadata["tokenizer.ggml.merges"]


def opens(raw: bytes) -> bool:
    """Whether a file opens; any error but ours fails the test."""
    try:
        place(parse(raw, "m"), raw, "m")
    except BitNetError:
        return False
    return True


def test_every_truncation_is_refused():
    raw = small()
    assert opens(raw)
    assert not any(opens(raw[:n]) for n in range(len(raw)))


def test_every_single_byte_changed_gives_a_file_or_our_error():
    raw = bytearray(small())
    header = len(raw) - 128
    opened = 0
    for at in range(header):
        kept = raw[at]
        for value in {0, 1, 0x7F, 0x80, 0xFF, kept ^ 1, kept ^ 0x40, (kept + 1) % 256} - {kept}:
            raw[at] = value
            opened += opens(bytes(raw))
        raw[at] = kept
    assert opened > 0  # letters of names and values of numbers may change


@settings(max_examples=200, deadline=5000, derandomize=True)
@given(st.data())
def test_random_damage_gives_a_file_or_our_error(data):
    raw = bytearray(small(data.draw(st.sampled_from(["bitnet", "llama", "gpt2"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "set", "u64", "cut", "insert"]))
        if kind == "flip":
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "u64":
            raw[at : at + 8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        elif kind == "cut":
            del raw[at : at + data.draw(st.integers(1, 16))]
        else:
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        if not raw:
            break
    opens(bytes(raw))


@settings(deadline=5000, derandomize=True)
@given(st.binary(max_size=400))
def test_random_bytes_after_the_magic_give_a_file_or_our_error(tail):
    opens(b"GGUF\3\0\0\0" + tail)


@pytest.mark.slow
def test_thousands_of_random_damages_give_a_file_or_our_error():
    rng = random.Random(7)
    base = small()
    start = time.process_time()
    for _ in range(60_000):
        raw = bytearray(base)
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw) - 128)] = rng.choice((0, 1, 2, 255, rng.randrange(256)))
        opens(bytes(raw))
    assert time.process_time() - start < 120  # 2 ms a file; a hang is far above
