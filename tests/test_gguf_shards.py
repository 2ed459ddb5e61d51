"""Split models: any shard opens all, and what does not belong together is refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import small_models

import bitnet
from bitnet.errors import GGUFError, ModelFileError, ResourceLimitError
from bitnet.gguf import GGMLType, TensorData, ValueType, read, write
from bitnet.gguf_shards import shard_paths

U16, I32 = ValueType.UINT16, ValueType.INT32


def name(i: int, n: int, stem: str = "m") -> str:
    return f"{stem}-{i + 1:05d}-of-{n:05d}.gguf"


def split(folder: Path, n: int = 3, *, change=None, stem: str = "m", model=None) -> list[Path]:
    """A small model in `n` files, as gguf-split writes them; `change(i, keys, tensors)` may alter each."""
    keys, tensors = model or small_models.parts("bitnet-b1.58", GGMLType.I2_S, 128)
    folder.mkdir(parents=True, exist_ok=True)
    stored = list(tensors.values())
    paths = []
    for i in range(n):
        mine = {"split.no": (U16, i), "split.count": (U16, n), "split.tensors.count": (I32, len(stored))}
        here = stored[i::n]
        if change is not None:
            change(i, mine, here)
        paths.append(folder / name(i, n, stem))
        write(paths[-1], (keys if i == 0 else {}) | {k: v for k, v in mine.items() if v is not None}, here)
    return paths


@pytest.mark.parametrize("n", [2, 3, 7])
def test_any_shard_opens_the_whole_model(tmp_path, n):
    keys, tensors = small_models.parts("bitnet-b1.58", GGMLType.I2_S, 128)
    write(tmp_path / "whole.gguf", keys, tensors.values())
    whole = bitnet.load(tmp_path / "whole.gguf", device="plain")
    for path in split(tmp_path, n):
        file = read(path)
        assert file.path == path
        assert [p.name for p in file.paths] == [name(i, n) for i in range(n)]
        assert set(file.tensors) == set(tensors)
        assert file.notices == ()  # I2_S is read by the architecture of the first shard, in every one
        for tensor in tensors:
            np.testing.assert_array_equal(file.raw(tensor), whole.gguf.raw(tensor))
        assert file.get("general.architecture", str) == "bitnet-b1.58"
        assert file.n_bytes == sum(p.stat().st_size for p in file.paths)
        assert file.sha256() == hashlib.sha256(b"".join(p.read_bytes() for p in file.paths)).hexdigest()
        model = bitnet.load(path, device="plain")
        np.testing.assert_array_equal(model.logits([1, 2, 3]), whole.logits([1, 2, 3]))


def test_a_link_of_any_name_opens_what_it_points_to(tmp_path):
    paths = split(tmp_path / "there")
    link = tmp_path / "here" / "model.gguf"
    link.parent.mkdir()
    for path in paths:
        link.unlink(missing_ok=True)
        link.symlink_to(path)
        assert [p.resolve() for p in read(link).paths] == [p.resolve() for p in paths]
    blobs = tmp_path / "blobs"  # as a cache keeps them: the links have the names
    blobs.mkdir()
    for i, path in enumerate(paths):
        path.rename(blobs / str(i))
        path.symlink_to(blobs / str(i))
    assert read(paths[1]).paths == tuple(paths)
    with pytest.raises(GGUFError, match="its name does not end in"):
        read(blobs / "0")


def test_one_shard_of_one_is_a_file(tmp_path):
    keys, tensors = small_models.parts()
    write(tmp_path / "any.gguf", keys | {"split.no": (U16, 0), "split.count": (U16, 1)}, tensors.values())
    assert len(read(tmp_path / "any.gguf").paths) == 1


def test_a_name_alone_makes_no_shard(tmp_path):
    keys, tensors = small_models.parts()
    write(tmp_path / name(0, 3), keys, tensors.values())
    assert len(read(tmp_path / name(0, 3)).tensors) == len(tensors)


def test_a_notice_names_its_shard(tmp_path):
    paths = split(tmp_path)
    with paths[1].open("ab") as out:
        out.write(bytes(64))
    [notice] = read(paths[0]).notices
    assert notice.startswith(f"{name(1, 3)}: 64 trailing bytes")


def test_a_shard_written_to_in_place_is_refused(tmp_path):
    import os

    paths = split(tmp_path)
    file = read(paths[0])
    moved = [t.name for t in file.tensors.values() if t.shard == 2]
    kept = [t.name for t in file.tensors.values() if t.shard == 1]
    os.utime(paths[2], ns=(1, 1))
    file.raw(kept[0])
    with pytest.raises(GGUFError, match="changed after it was opened") as caught:
        file.raw(moved[0])
    assert caught.value.path == str(paths[2])
    with pytest.raises(GGUFError, match="changed"):
        file.sha256()


def _missing(folder):
    paths = split(folder, 7)
    for path in paths[1:]:
        path.unlink()
    return paths[0]


def _first_missing(folder):
    paths = split(folder)
    paths[0].unlink()
    return paths[2]


def _damaged(folder):
    paths = split(folder)
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    return paths[0]


def _foreign(folder, **keys):
    """The second shard comes from another model of the same name."""
    paths = split(folder)

    def other(i, mine, tensors):
        mine.update(keys)
        if not keys:
            tensors[:] = tensors[:1]

    elsewhere = split(folder / "other", change=other)
    elsewhere[1].replace(paths[1])
    return paths[0]


def _renamed(folder, new):
    paths = split(folder)
    return paths[1].rename(folder / new)


def _keys(folder, which, **changes):
    changes = {f"split.{key.replace('_', '.')}": value for key, value in changes.items()}
    return split(folder, change=lambda i, keys, _: keys.update(changes) if i == which else None)[0]


def _twice(folder):
    twin = TensorData(name="output_norm.weight", shape=(4,), type=GGMLType.F32, data=np.ones(4, np.float32))
    change = lambda i, keys, tensors: tensors.append(twin) if not any(t.name == twin.name for t in tensors) else None  # noqa: E731
    return split(folder, change=change)[0]


#: What is wrong: a function that makes it and gives the file to open, and words of the message.
REFUSED = {
    "six shards missing": (
        _missing,
        "6 of the 7 files of this model are missing: m-00002-of-00007.gguf, .* and 2 more",
    ),
    "first shard missing": (_first_missing, "1 of the 3 files of this model are missing: m-00001-of-00003.gguf"),
    "a shard damaged": (_damaged, "m-00002-of-00003.gguf at byte"),
    "fewer tensors": (_foreign, "the 3 shards hold"),
    "foreign by architecture": (lambda f: _foreign(f, **{"general.architecture": "llama"}), "of different models"),
    "foreign by name": (lambda f: _keys_named(f), "general.name.* of different models"),
    "foreign by number of tensors": (lambda f: _keys(f, 1, tensors_count=(I32, 5)), "of different models"),
    "foreign by count": (lambda f: _keys(f, 2, count=(U16, 4)), "is 4, but 3 is due in shard 3 of 3"),
    "shards in the wrong order": (lambda f: _keys(f, 1, no=(U16, 2)), "is 2, but 1 is due in shard 2 of 3"),
    "a shard that is none": (lambda f: _keys(f, 1, no=None, count=None), "is missing in a shard"),
    "a shard without a number": (lambda f: _keys(f, 0, no=None), "split.no.*is missing in a shard"),
    "a renamed shard": (
        lambda f: _renamed(f, "model.gguf"),
        "shard 2 of 3, but its name does not end in -00002-of-00003",
    ),
    "a shard under another's name": (lambda f: _renamed(f, name(2, 3)), "says this is shard 2 of 3, but its name"),
    "a tensor in two shards": (_twice, "is in another shard too"),
    "split into 0": (lambda f: _keys(f, 0, count=(U16, 0)), "is 0, but a split model"),
    "number past the count": (lambda f: _keys(f, 0, no=(U16, 3)), "is 3, but the model is split into 3"),
    "count negative": (lambda f: _keys(f, 0, count=(I32, -1)), "is -1, not a whole number"),
    "count as text": (lambda f: _keys(f, 0, count="3"), "is '3', not a whole number"),
    "count a bool": (lambda f: _keys(f, 0, count=True), "is True, not a whole number"),
}


def _keys_named(folder):
    keys, tensors = small_models.parts("bitnet-b1.58", GGMLType.I2_S, 128)
    named = (keys | {"general.name": "one"}, tensors)
    paths = split(folder, model=named)
    other = split(folder / "other", change=lambda i, mine, _: mine.update({"general.name": "two"}), model=named)
    other[1].replace(paths[1])
    return paths[0]


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_belong_together_is_refused(tmp_path, case):
    make, words = REFUSED[case]
    with pytest.raises(ModelFileError, match=words) as caught:
        bitnet.load(make(tmp_path), device="plain")
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    assert str(tmp_path) in str(caught.value.where)


def test_more_than_a_thousand_shards_are_not_looked_for(tmp_path):
    with pytest.raises(ResourceLimitError, match="split into 1025 files"):
        shard_paths(tmp_path / name(0, 1025), {"split.count": 1025, "split.no": 0})
