"""Every file a loader must refuse is refused, with what, where and what to do, and the right exit code."""

from __future__ import annotations

import os
from pathlib import Path

import gguf_bytes
import malformed
import pytest
import small_models
import test_gguf_header
import test_gguf_layout
from gguf_bytes import array, file, key, string, tensor, u32_key
from test_gguf_shards import REFUSED as SHARDS

import bitnet
from bitnet.errors import BitNetError, GGUFError, ModelFileError, ResourceLimitError
from bitnet.gguf import ValueType, read

ROOT = Path(__file__).parents[1]
CONTAINER = {name: entry[0] for name, entry in (test_gguf_header.MALFORMED | test_gguf_layout.MALFORMED).items()}
MODELS = {name: entry for entries in malformed.REFUSED.values() for name, entry in entries.items()}

MIB = 1 << 20


def wide(name: str, element: ValueType, n: int) -> bytes:
    return key(name, ValueType.ARRAY, array(element, n))


#: Files that break no rule but pass a limit: bytes, or how many zeros, in turn; and words of the message.
OVER_LIMIT = {
    "65,537 keys": ([file(tuple(u32_key(f"k{i}", i) for i in range(65_537)))], "65537 is over the limit of 65536"),
    "65,537 tensors": ([file(tensors=tuple(tensor(f"t{i}", (1,), 0, 32 * i) for i in range(65_537)))], "65537 is over"),
    "a text of 16 MiB and one byte": (
        [file((key("k", ValueType.STRING, string("", length=16 * MIB + 1)),)), 16 * MIB + 1],
        "16777217 is over 16777216",
    ),
    "a token of 16 MiB and one byte": (
        [file((wide("k", ValueType.STRING, 1) + string("", length=16 * MIB + 1),)), 16 * MIB + 1],
        "16777217 bytes is over",
    ),
    "an array of 16 Mi elements and one": (
        [file((wide("k", ValueType.UINT8, 16 * MIB + 1),)), 16 * MIB + 1],
        "16777217 elements is over",
    ),
    "a header of 256 MiB and more": (
        [
            *(file((wide("a", ValueType.UINT64, 16 * MIB),), n_keys=2), 128 * MIB),
            *(wide("b", ValueType.UINT64, 16 * MIB), 128 * MIB),
        ],
        "header is longer than 256 MiB",
    ),
}


def use(path: Path) -> None:
    """All that a user may ask of a model."""
    model = bitnet.load(path, device="plain")
    model.encode("the")
    model.chat_prompt([{"role": "user", "content": "the"}])


def refusal(path: Path) -> BitNetError:
    with pytest.raises(BitNetError) as caught:
        use(path)
    error = caught.value
    assert path.name in str(error) or "tokenizer.chat_template" in str(error)
    assert error.what
    assert error.remedy
    assert str(error).count("\n") == 1  # one sentence and one hint
    return error


@pytest.mark.parametrize("name", CONTAINER)
def test_a_container_that_breaks_a_rule(tmp_path, name):
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTAINER[name])
    error = refusal(path)
    assert isinstance(error, GGUFError)
    assert error.exit_code == 3
    assert error.offset is not None
    assert error.field


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_breaks_a_rule(tmp_path, name):
    raw, words = MODELS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    error = refusal(path)
    assert isinstance(error, ModelFileError)
    assert error.exit_code == 3
    with pytest.raises(BitNetError, match=words):
        use(path)


@pytest.mark.parametrize("name", OVER_LIMIT)
def test_a_file_that_passes_a_limit(tmp_path, name):
    pieces, words = OVER_LIMIT[name]
    path = tmp_path / "m.gguf"
    with path.open("wb") as out:
        for piece in pieces:
            out.write(piece) if isinstance(piece, bytes) else out.seek(piece, os.SEEK_CUR)
        out.truncate(out.tell())
    error = refusal(path)
    assert isinstance(error, ResourceLimitError)
    assert error.exit_code == 6
    assert words in error.what


def test_a_file_changed_while_it_is_open(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes.small())
    model = read(path)
    with path.open("r+b") as out:
        out.seek(-1, os.SEEK_END)
        out.write(b"\1")
    os.utime(path, ns=(1, 1))
    with pytest.raises(GGUFError, match="changed after it was opened") as caught:
        model.raw("q.weight")
    assert caught.value.exit_code == 3


def test_the_sound_ones_are_accepted(tmp_path):
    path = tmp_path / "m.gguf"
    for arguments in ((), malformed.I2_S, ("llama", malformed.GGMLType.TQ2_0, 256)):
        path.write_bytes(malformed.model(*arguments))
        use(path)
    path.write_bytes(small_models.model_bytes(*small_models.parts("bitnet", tokenizer="llama")))
    use(path)


#: Each line of the list of refusals, and files of the tables above that stand for it.
LINES = {
    "empty file": ["empty"],
    "short or bad magic": ["two bytes", "magic alone", "text", "binary"],
    "version 0, 1 or unknown": ["version 0", "version 1", "version 4"],
    "big-endian": ["big-endian"],
    "counts larger than the bytes left": ["tensor count 2^64-1", "key count 2^64-1", "key count 1, no key"],
    "key or string length past the end": ["key past the end", "key of 2^64-1", "text past the end"],
    "key longer than 65,535": ["key too long"],
    "key empty": ["key empty"],
    "key duplicate": ["key twice"],
    "key with NUL or control characters": ["key with NUL", "key with newline"],
    "unknown value type": ["value type 13", "array element type 99"],
    "bool not 0 or 1": ["bool 2", "bool 2 in an array"],
    "invalid UTF-8 where text is due": ["text not UTF-8", "key not UTF-8", "name not UTF-8"],
    "array past the end": ["array past the end", "array of 2^64-1", "array size wraps"],
    "nested arrays deeper than 4": ["nested deeper than 4"],
    "alignment": ["alignment 0", "alignment 48", "alignment 2 MiB", "alignment is text", "alignment is 64-bit"],
    "dimensions 0 or more than 4": ["no dimensions", "five dimensions", "2^32-1 dimensions"],
    "dimensions zero or negative": ["dimension 0", "dimension negative"],
    "product or byte size overflowing": ["product overflows", "byte size overflows", "end overflows"],
    "total wrapping": ["offset wraps"],
    "row not whole blocks": ["part of a block", "part of an I2_S group", "part of a TQ block"],
    "unknown or retired type": ["type 4", "type 31", "type 43", "type 2^32-1"],
    "offset unaligned, past the end, wrapping": ["offset unaligned", "offset at the end", "offset 2^63"],
    "data truncated": ["data truncated", "no data"],
    "names duplicate, empty, too long": ["name twice", "name empty", "name too long"],
    "names with control or path characters": ["name with control", "name is a path", "name is a Windows path"],
    "tensors overlapping": ["overlap", "the same place twice"],
    "scale tail missing": ["scale tail missing"],
    "limit on the header": ["a header of 256 MiB and more"],
    "limits on keys and tensors": ["65,537 keys", "65,537 tensors"],
    "limits on strings and arrays": ["a text of 16 MiB and one byte", "an array of 16 Mi elements and one"],
    "shard missing or foreign": list(SHARDS),
    **{line: list(entries) for line, entries in malformed.REFUSED.items()},
}


def test_every_line_of_the_list_has_its_files_and_there_are_enough():
    known = {*CONTAINER, *MODELS, *OVER_LIMIT, *SHARDS}
    assert all(LINES.values())
    for line, names in LINES.items():
        assert set(names) <= known, line
    assert len(CONTAINER) + len(MODELS) + len(OVER_LIMIT) + len(SHARDS) >= 120
    contents = [
        *CONTAINER.values(),
        *(raw for raw, _ in MODELS.values()),
        *(pieces[0] for pieces, _ in OVER_LIMIT.values()),
    ]
    assert len(set(contents)) == len(contents)  # no file is counted twice
