"""Packed weights are kept and taken back, bit for bit; never those of another file, nor damaged ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bitnet
from bitnet import packed_cache, packed_file, weights
from bitnet.errors import UsageError
from bitnet.gguf import read
from bitnet.kernels.variants import choose
from bitnet.linear import TernaryMatrix
from bitnet.packed_file import PackedFile

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "fixtures" / "models"
IDS = [1, 2, 3, 4, 5]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A cache that takes the smallest models at once."""
    monkeypatch.delenv(packed_cache.VARIABLE, raising=False)
    place = tmp_path / "cache" / "packed"
    monkeypatch.setattr(packed_cache, "folder", lambda: place)
    monkeypatch.setattr(packed_cache, "SMALLEST", 1)
    monkeypatch.setattr(packed_cache, "_SETTLED", -1.0)
    return place


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copy(MODELS / "tiny-relu2.i2_s.gguf", path)
    return path


@pytest.fixture
def writers(monkeypatch):
    """Waits for what is being written."""
    started = []
    start = packed_cache._Writer.start
    monkeypatch.setattr(packed_cache._Writer, "start", lambda self: (started.append(self), start(self)))

    def wait():
        for writer in started:
            writer.join()
        return len(started)

    return wait


def kept(folder):
    return sorted(folder.glob("*.packed"))


def mapped(model):
    """Whether the projections are views of a mapping."""
    matrices = [m for m in model.weights.projections() if isinstance(m, TernaryMatrix)]
    return all(not m.tiles.data.flags.writeable for m in matrices)


@pytest.mark.parametrize("name", ["tiny-relu2.i2_s.gguf", "tiny-silu.tq2_0.gguf"])
def test_a_second_load_maps_what_the_first_packed(folder, writers, name):
    first = bitnet.load(MODELS / name)
    assert writers() == 1
    assert len(kept(folder)) == 1
    second = bitnet.load(MODELS / name)
    assert (mapped(first), mapped(second), writers()) == (False, True, 1)
    assert np.array_equal(first.logits(IDS), second.logits(IDS))
    assert first.weights.digest() == second.weights.digest()
    assert first.notices == second.notices
    assert first.weights.n_bytes == second.weights.n_bytes
    assert first.weights.formats.layout is second.weights.formats.layout


@given(sizes=st.lists(st.integers(0, 40_000), max_size=6))
def test_a_file_is_written_in_pieces_of_whole_huge_pages(sizes):
    parts = [np.arange(n).astype(np.uint8) for n in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_file, "_CHUNK", 16384)
        *pieces, last = [piece.copy() for piece in packed_file._pieces(parts)]
    assert all(piece.size == 16384 for piece in pieces)
    assert last.size < 16384
    written = b"".join(piece.tobytes() for piece in (*pieces, last))
    assert written == b"".join(part.tobytes() + bytes(-part.size % 4096) for part in parts)


def test_each_layout_is_kept_by_itself(folder, writers, model):
    expected = bitnet.load(model, packed_cache=False).weights.digest()
    for isa in ("generic", "generic-base3"):
        bitnet.load(model, isa=isa)
        writers()
        again = bitnet.load(model, isa=isa)
        assert mapped(again)
        assert again.weights.digest() == expected
    assert len(kept(folder)) == 2


def test_a_changed_file_is_never_read_with_the_old_cache(folder, writers, model):
    """Size and time of modification are put back as they were, and the change is where no sample is taken."""
    bitnet.load(model)
    writers()
    before = model.stat()
    info = next(i for i in read(model).tensors.values() if i.name == "blk.0.ffn_down.weight")
    with model.open("r+b") as file:
        file.seek(info.offset + info.n_bytes // 2 - 64)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ (0x40 if old[0] & 0xC0 in (0, 0x40) else 0x80)]))
    time.sleep(0.02)
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = model.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
    changed = bitnet.load(model)
    assert not mapped(changed)
    assert changed.weights.digest() == bitnet.load(model, packed_cache=False).weights.digest()


def test_samples_tell_files_apart_where_times_do_not(folder, monkeypatch, model):
    """A file system without times of change: the digest still sees the beginning, the middle and the end."""
    entry = packed_cache.entry(read(model), "2-bit")
    frozen = model.stat()
    info = read(model).tensors["blk.0.attn_q.weight"]
    with model.open("r+b") as file:
        file.seek(info.offset)
        file.write(b"\x55\x55")
    fake = namedtuple("fake", "st_dev st_ino st_size st_mtime_ns st_ctime_ns st_mode")
    same = fake(*(getattr(frozen, name) for name in fake._fields))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: same)
    monkeypatch.setattr(packed_cache, "identity", lambda _: ())
    gguf = read(model)
    gguf.identities = ((),)
    gguf._check_file = lambda _: None
    assert packed_cache.entry(gguf, "2-bit").key != entry.key


def test_floats_beside_kept_matrices_are_looked_through_once(folder, writers, model, monkeypatch):
    looked = []
    monkeypatch.setattr(weights, "is_finite", lambda matrix: not looked.append(matrix.name))
    bitnet.load(model)
    writers()
    assert "token_embd.weight" in looked
    looked.clear()
    assert mapped(bitnet.load(model))
    assert not looked
    bitnet.load(model, packed_cache=False)
    assert "token_embd.weight" in looked


def test_a_copy_is_another_model(folder, writers, model, tmp_path):
    bitnet.load(model)
    writers()
    copy = shutil.copy(model, tmp_path / "copy.gguf")
    assert not mapped(bitnet.load(copy))


def test_a_file_replaced_after_it_was_opened_is_not_kept_under_the_new_ones_name(folder, model, tmp_path):
    gguf = read(model)
    assert packed_cache.entry(gguf, "2-bit") is not None
    other = shutil.copy(model, tmp_path / "other.gguf")
    Path(other).replace(model)
    assert packed_cache.entry(gguf, "2-bit") is None


def test_a_file_changed_while_it_was_read_is_not_kept(folder, model):
    gguf = read(model)
    entry = packed_cache.entry(gguf, choose().layout)
    weights = bitnet.load(model, packed_cache=False).weights
    model.chmod(0o600)
    os.utime(model, ns=(1, 1))
    assert entry.keep(weights) is None


def test_a_model_that_was_just_written_is_not_kept(folder, writers, monkeypatch, model):
    monkeypatch.setattr(packed_cache, "_SETTLED", 1000.0)
    bitnet.load(model)
    assert writers() == 0


def damage(path, at, value):
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(value)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda p: damage(p, 0, b"x"), id="magic"),
        pytest.param(lambda p: damage(p, 60, b"x"), id="header"),
        pytest.param(lambda p: damage(p, 8, b"\xff" * 8), id="length"),
        pytest.param(lambda p: damage(p, -5000, bytes(64)), id="a hole in a matrix"),
        pytest.param(lambda p: os.truncate(p, p.stat().st_size - 4096), id="cut short"),
        pytest.param(lambda p: os.truncate(p, 0), id="empty"),
        pytest.param(lambda p: p.write_bytes(b"bitnetP1"), id="a magic alone"),
        pytest.param(lambda p: (p.unlink(), p.mkdir()), id="a folder"),
    ],
)
def test_damage_is_found_and_packed_again(folder, writers, model, spoil):
    expected = bitnet.load(model, packed_cache=False).logits(IDS)
    bitnet.load(model)
    writers()
    (path,) = kept(folder)
    spoil(path)
    again = bitnet.load(model)
    writers()
    assert not mapped(again)
    assert np.array_equal(again.logits(IDS), expected)
    if path.is_file():
        assert mapped(bitnet.load(model))


def test_the_check_is_what_finds_a_hole(folder, writers, monkeypatch, model):
    """Without it the wrong weights would be used: the test above tests something."""
    bitnet.load(model)
    writers()
    damage(kept(folder)[0], -5000, bytes(64))
    monkeypatch.setattr(PackedFile, "sound", lambda _: True)
    wrong = bitnet.load(model)
    assert mapped(wrong)
    assert wrong.weights.digest() != bitnet.load(model, packed_cache=False).weights.digest()


def test_it_can_be_switched_off(folder, writers, monkeypatch, model):
    bitnet.load(model, packed_cache=False)
    monkeypatch.setenv(packed_cache.VARIABLE, "0")
    bitnet.load(model)
    assert (writers(), folder.exists()) == (0, False)


def test_small_models_and_numpy_kernels_have_no_need(folder, writers, monkeypatch, model):
    bitnet.load(model, device="plain")
    monkeypatch.setattr(packed_cache, "SMALLEST", 32 << 20)
    bitnet.load(model)
    assert writers() == 0


def test_the_least_recently_used_goes_first(folder, writers, monkeypatch, model, tmp_path):
    paths = [shutil.copy(model, tmp_path / f"{i}.gguf") for i in range(3)]
    for i, path in enumerate(paths[:2]):
        bitnet.load(path)
        writers()
        os.utime(max(kept(folder), key=lambda p: p.stat().st_mtime_ns), (i + 1, i + 1))
    assert mapped(bitnet.load(paths[0]))  # used again: now the other one is older
    size = kept(folder)[0].stat().st_size
    monkeypatch.setenv(packed_cache.VARIABLE, str(2 * size + size // 2))
    bitnet.load(paths[2])
    writers()
    assert len(kept(folder)) == 2
    assert [mapped(bitnet.load(paths[i])) for i in (0, 2, 1)] == [True, True, False]


def test_one_that_is_larger_than_all_may_be_is_not_kept(folder, writers, monkeypatch, model):
    monkeypatch.setenv(packed_cache.VARIABLE, "1k")
    bitnet.load(model)
    assert writers() == 0


@pytest.mark.parametrize("text", ["much", "-1", "0.0"])
def test_a_limit_without_meaning_is_refused(folder, monkeypatch, model, text):
    monkeypatch.setenv(packed_cache.VARIABLE, text)
    with pytest.raises(UsageError, match="or 0 for none"):
        bitnet.load(model)


def test_nothing_is_written_to_a_disk_that_is_nearly_full(folder, writers, monkeypatch, model):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**9))
    bitnet.load(model)
    assert writers() == 1
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_changes_nothing(folder, writers, model):
    folder.parent.write_text("a file stands where the folder should be")
    assert not mapped(bitnet.load(model))
    assert not mapped(bitnet.load(model))
    assert writers() == 2


def test_what_another_process_writes_is_left_to_it(folder, writers, model):
    entry = packed_cache.entry(read(model), choose().layout)
    folder.mkdir(parents=True)
    part = entry.path.with_suffix(".part")
    part.write_bytes(b"half")
    bitnet.load(model)
    writers()
    assert (part.read_bytes(), kept(folder)) == (b"half", [])
    os.utime(part, (1, 1))  # it was given up long ago
    bitnet.load(model)
    writers()
    assert (part.exists(), len(kept(folder))) == (False, 1)


def test_the_end_of_the_process_does_not_wait_for_ever(folder, monkeypatch, model):
    monkeypatch.setattr(packed_cache, "_PATIENCE", 0.0)
    entry = packed_cache.entry(read(model), choose().layout)
    asked = []

    def slow(path, _key, _matrices, _about, stop):
        path.write_bytes(b"half")
        while not stop():
            asked.append(True)
            time.sleep(0.001)
        return False

    monkeypatch.setattr(packed_cache, "write_packed", slow)
    writer = entry.keep(bitnet.load(model, packed_cache=False).weights)
    writer._end()
    assert not writer.is_alive()
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_process_of_one_token_keeps_its_weights(tmp_path, model):
    code = (
        "import sys, bitnet; from bitnet import packed_cache as p; p.SMALLEST, p._SETTLED = 1, -1.0;"
        "m = bitnet.load(sys.argv[1]); print(m.generate([1, 2], max_new_tokens=1).ids, next(m.weights.projections())"
        ".tiles.data.flags.writeable)"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(model)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [line[-1] for line in said] == ["True", "False"]
    assert said[0][:-1] == said[1][:-1]
