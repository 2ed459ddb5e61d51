"""The header: what it may say, and one refusal for each rule of the format."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from gguf_bytes import ARCH, array, file, key, small, string, tensor, text_key, u32_key

from bitnet import gguf_types
from bitnet.errors import GGUFError, ResourceLimitError
from bitnet.gguf import GGMLType, StringArray, TypedArray, ValueType
from bitnet.gguf_header import parse

A = ValueType.ARRAY
NESTED_4 = array(A, 1, array(A, 1, array(A, 1, array(ValueType.UINT8, 1, b"\7"))))
NESTED_5 = array(A, 1, NESTED_4)


def one(payload: bytes, value_type: int = A) -> bytes:
    return file((key("k", value_type, payload),))


#: What is wrong: the file, the field at fault, words of the reason, and the byte it is noticed at (None: any).
MALFORMED: dict[str, tuple[bytes, str, str, int | None]] = {
    "empty": (b"", "magic", "empty", 0),
    "two bytes": (b"GG", "magic", "ends after 2 bytes", 0),
    "magic alone": (b"GGUF", "version", "needs 4 bytes", 4),
    "text": (b"This is a text file, you see.", "magic", "begins with b'This'", 0),
    "binary": (bytes(range(200, 255)), "magic", "begins with", 0),
    "version 0": (file(version=0), "version", "version 0", 4),
    "version 1": (file(version=1), "version", "version 1", 4),
    "version 4": (file(version=4), "version", "version 4", 4),
    "big-endian": (file(version=3 << 24), "version", "big-endian", 4),
    "no counts": (b"GGUF\3\0\0\0", "tensor count", "needs 8 bytes", 8),
    "tensor count 2^64-1": (file(n_tensors=2**64 - 1), "tensor count", "more than the rest", 8),
    "key count 2^64-1": (file(n_keys=2**64 - 1), "key count", "more than the rest", 16),
    "key count 1, no key": (file(n_keys=1), "key count", "more than the rest", 16),
    "key past the end": (file((string("k", length=100) + bytes(20),)), "key 0 of 1", "length 100 is past", 24),
    "key of 2^64-1": (file((string("k", length=2**64 - 1) + bytes(20),)), "key 0 of 1", "past the end", 24),
    "key too long": (file((u32_key("k" * 65_536, 1),)), "key 0 of 1", "65536 is over 65535", 24),
    "key empty": (file((u32_key("", 1),)), "key 0 of 1", "empty", 24),
    "key twice": (file((u32_key("k", 1), u32_key("k", 1))), "k", "twice", 41),
    "key with NUL": (file((u32_key("a\0b", 1),)), "key 0 of 1", "control", 24),
    "key with newline": (file((u32_key("a\nb", 1),)), "key 0 of 1", "control", 24),
    "key not UTF-8": (file((key(b"\xff\xfe", 4, bytes(4)),)), "key 0 of 1", "UTF-8", 24),
    "value type 13": (file((key("k", 13, bytes(8)),)), "k", "value type 13", 33),
    "bool 2": (one(b"\2", ValueType.BOOL), "k", "bool is 2", 37),
    "bool 2 in an array": (one(array(7, 3, b"\0\1\2")), "k[2]", "bool is 2", 51),
    "text not UTF-8": (file((text_key(ARCH, b"a\xff"),)), ARCH, "UTF-8 at its byte 1", 56),
    "text past the end": (one(string("abc", length=4), ValueType.STRING), "k", "length 4 is past", 37),
    "value cut off": (file((key("k", ValueType.FLOAT64, bytes(7)),)), "k", "needs 8 bytes", 37),
    "array cut off in its head": (one(struct.pack("<I", 4)), "k", "needs 8 bytes", 41),
    "array element type 99": (one(array(99, 1, bytes(8))), "k", "value type 99", 37),
    "array past the end": (one(array(ValueType.UINT32, 3, bytes(11))), "k", "3 elements are past", 37),
    "array of 2^64-1": (one(array(ValueType.UINT64, 2**64 - 1, bytes(16))), "k", "past the end", 37),
    "array size wraps": (one(array(ValueType.UINT64, 2**61 + 1, bytes(16))), "k", "past the end", 37),
    "strings past the end": (one(array(ValueType.STRING, 9, bytes(16))), "k", "9 elements are past", 37),
    "string of 2^64-1 in an array": (
        one(array(ValueType.STRING, 2, string("a") + string("b", length=2**64 - 1))),
        "k[1]",
        "needs 18446744073709551615 bytes",
        66,
    ),
    "last string cut off": (
        one(array(ValueType.STRING, 2, string("a") + string("bc", length=3))),
        "k[1]",
        "needs 3",
        66,
    ),
    "string array without its last length": (
        one(array(ValueType.STRING, 3, string("abcdefgh") + string("i"))),
        "k[2]",
        "needs 8 bytes",
        74,
    ),
    "nested deeper than 4": (one(NESTED_5), "k", "deeper than 4", 85),
    "nested past the end": (one(array(A, 2, array(4, 0))), "k", "2 elements are past", 37),
    "alignment 0": (file((u32_key("general.alignment", 0),)), "general.alignment", "is 0, not a power", 53),
    "alignment 48": (file((u32_key("general.alignment", 48),)), "general.alignment", "is 48", 53),
    "alignment 2 MiB": (file((u32_key("general.alignment", 1 << 21),)), "general.alignment", "2097152", 53),
    "alignment is text": (file((text_key("general.alignment", "32"),)), "general.alignment", "of type STRING", 53),
    "alignment is 64-bit": (
        file((key("general.alignment", ValueType.UINT64, struct.pack("<Q", 32)),)),
        "general.alignment",
        "of type UINT64",
        53,
    ),
    "tensor count 1, no tensor": (file(n_tensors=1), "tensor count", "more than the rest", 8),
    "tensor cut off": (file(tensors=(tensor("t" * 32, (1, 1), 0)[:-1],)), "tensor t", "needs 8 bytes", None),
    "name empty": (file(tensors=(tensor("", (1, 1), 0),)), "tensor 0 of 1", "empty", 24),
    "name too long": (file(tensors=(tensor("n" * 65, (1,), 0),)), "tensor 0 of 1", "65 is over 64", 24),
    "name twice": (file(tensors=(tensor("n", (1,), 0), tensor("n", (1,), 0, 32)), data=64), "tensor n", "twice", 57),
    "name with control": (file(tensors=(tensor("a\x1bb", (1,), 0),)), "tensor 0 of 1", "control", 24),
    "name is a path": (file(tensors=(tensor("../x", (1,), 0),)), "tensor ../x", "path characters", 24),
    "name is a Windows path": (file(tensors=(tensor("a\\x", (1,), 0),)), "tensor a", "path characters", 24),
    "name is a folder": (file(tensors=(tensor("..", (1,), 0),)), "tensor ..", "path characters", 24),
    "name not UTF-8": (file(tensors=(tensor(b"\xc0", (1,), 0),)), "tensor 0 of 1", "UTF-8", 24),
    "no dimensions": (file(tensors=(tensor("n", (1,), 0, n_dims=0),)), "tensor n", "0 dimensions", 33),
    "five dimensions": (file(tensors=(tensor("n", (1,) * 5, 0),)), "tensor n", "5 dimensions", 33),
    "2^32-1 dimensions": (file(tensors=(tensor("n", (1,), 0, n_dims=2**32 - 1),)), "tensor n", "dimensions", 33),
    "dimension 0": (file(tensors=(tensor("n", (4, 0), 0),)), "tensor n", "dimension 1 is 0", 45),
    "dimension negative": (file(tensors=(tensor("n", (-4,), 0),)), "tensor n", "dimension 0 is -4", 37),
    "product overflows": (file(tensors=(tensor("n", (2**32, 2**32), 0),)), "tensor n", "overflow", 37),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_refuses(name):
    raw, field, reason, offset = MALFORMED[name]
    with pytest.raises(GGUFError) as caught:
        parse(raw, "m.gguf")
    error = caught.value
    assert error.path == "m.gguf"
    assert error.field is not None
    assert field in error.field
    assert reason in error.reason
    assert error.remedy
    if offset is not None:
        assert error.offset == offset


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"PK\x03\x04" + bytes(30), "PyTorch"),
        (b"<!DOCTYPE html><html><head>", "web page"),
        (b"tjgg" + bytes(30), "GGML"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"__metadata__":{}}', "safetensors"),
        (b"This is a text file, you see.", "text file"),
        (bytes(range(200, 255)), "path of a GGUF"),
    ],
)
def test_says_what_a_file_that_is_no_model_is(start, word):
    with pytest.raises(GGUFError, match=word):
        parse(start, "m.gguf")


def test_reads_every_type():
    header = parse(small(), "m")
    assert header.version == 3
    assert header.alignment == 32
    assert header.metadata[ARCH] == "bitnet-b1.58"
    assert header.metadata["a.bool"] is True
    assert header.metadata["a.float"] == 0.5
    assert header.metadata["a.tokens"] == [b"a", b"\xff", b""]
    np.testing.assert_array_equal(header.metadata["a.scores"], np.float32([1, 2, 3]))
    nested = header.metadata["a.nested"]
    assert isinstance(nested, TypedArray)
    assert [v.tolist() for v in nested] == [[1, 2], [1, 2]]
    assert [t.name for t in header.tensors] == ["norm.weight", "q.weight"]
    assert header.tensors[1].dims == (128, 2)
    assert header.tensors[1].type_number == GGMLType.I2_S


@pytest.mark.parametrize(
    ("value_type", "code", "value"),
    [
        (ValueType.UINT8, "B", 255),
        (ValueType.INT8, "b", -128),
        (ValueType.UINT16, "H", 65535),
        (ValueType.INT16, "h", -32768),
        (ValueType.UINT32, "I", 2**32 - 1),
        (ValueType.INT32, "i", -(2**31)),
        (ValueType.FLOAT32, "f", -0.25),
        (ValueType.UINT64, "Q", 2**64 - 1),
        (ValueType.INT64, "q", -(2**63)),
        (ValueType.FLOAT64, "d", 1e300),
    ],
)
def test_reads_the_extremes_of_a_scalar_and_of_an_array(value_type, code, value):
    payload = struct.pack(f"<{code}", value)
    header = parse(one(payload, value_type), "m")
    assert header.metadata["k"] == value
    assert type(header.metadata["k"]) in (int, float)
    values = parse(one(array(value_type, 2, payload * 2)), "m").metadata["k"]
    assert values.tolist() == [value, value]
    assert not values.flags.writeable


def test_reads_version_2_and_depth_4_and_empty_arrays():
    assert parse(file(version=2), "m").version == 2
    assert parse(one(NESTED_4), "m").metadata["k"].type is A
    for element in ValueType:
        assert len(parse(one(array(element, 0)), "m").metadata["k"]) == 0


@pytest.mark.parametrize(
    ("limit", "value", "raw", "word"),
    [
        ("MAX_KEYS", 1, file((u32_key("a", 1), u32_key("b", 1))), "limit of 1"),
        ("MAX_TENSORS", 1, file(tensors=(tensor("a", (1,), 0), tensor("b", (1,), 0))), "limit of 1"),
        ("MAX_STRING", 4, one(string("abcde"), ValueType.STRING), "5 is over 4"),
        ("MAX_STRING", 4, one(array(ValueType.STRING, 1, string("abcde"))), "5 bytes is over 4"),
        ("MAX_ARRAY", 2, one(array(ValueType.UINT8, 3, bytes(3))), "limit of 2"),
        ("MAX_ARRAY", 2, one(array(ValueType.STRING, 3, bytes(24))), "limit of 2"),
        ("MAX_HEADER", 64, one(array(ValueType.UINT8, 40, bytes(40))), "header is longer"),
        ("MAX_HEADER", 64, one(array(ValueType.STRING, 2, string("a" * 9) + string("b"))), "header is longer"),
        ("MAX_PARSE_SECONDS", -1.0, small(), "takes more than"),
    ],
)
def test_refuses_what_passes_a_limit(monkeypatch, limit, value, raw, word):
    monkeypatch.setattr(gguf_types, limit, value)
    with pytest.raises(ResourceLimitError, match=word):
        parse(raw, "m")


def test_refuses_nested_arrays_that_cost_more_memory_than_their_bytes_allow(monkeypatch):
    n = 3000
    raw = one(array(A, n, array(ValueType.UINT8, 0) * n))
    assert len(parse(raw, "m").metadata["k"]) == n
    monkeypatch.setattr("bitnet.gguf_header._BASE_MEMORY", 0)
    with pytest.raises(ResourceLimitError, match="times its size in memory"):
        parse(raw, "m")


def test_a_huge_count_allocates_nothing():
    import tracemalloc

    raw = one(array(ValueType.STRING, 2**40, bytes(1000)))
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError):
            parse(raw, "m")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # the file is 1 kB and the count 10^12; anything of the count's size would be far above


def test_a_vocabulary_takes_at_most_four_times_its_bytes():
    import tracemalloc

    n = 100_000
    raw = one(array(ValueType.STRING, n, bytes(8 * n)))  # empty strings: the most objects for the bytes
    tracemalloc.start()
    try:
        strings = parse(raw, "m").metadata["k"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(strings, StringArray)
    assert len(strings) == n
    assert peak < gguf_types.MEMORY_FACTOR * len(raw)
