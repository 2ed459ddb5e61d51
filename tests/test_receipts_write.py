"""At every moment the folder holds the old receipt or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.receipts import sample
from fixtures.receipts.changes import LANE, ROWS
from receipts import ReceiptError, digest_of, read, write
from receipts.read import load


def rows_in(folder):
    return {file.name for file in (folder / "rows").iterdir()}


def test_round_trip(tmp_path):
    path = tmp_path / "ci" / "inference.json"
    written = write(sample.full(), path, ROWS)
    assert read(path) == written
    assert [side.table for side in written.side_files] == list(ROWS)


def test_side_files_are_named_by_their_hash(tmp_path):
    written = write(sample.minimal(), tmp_path / "r.json", ROWS)
    for side in written.side_files:
        content = (tmp_path / side.file).read_bytes()
        assert side.file == f"rows/{hashlib.sha256(content).hexdigest()}.json"
        assert (side.bytes, side.rows) == (len(content), len(ROWS[side.table]))


def test_the_digest_is_of_what_was_written(tmp_path):
    written = write(sample.minimal(), tmp_path / "r.json")
    assert written.digest == digest_of(load(tmp_path / "r.json"))


def test_equal_receipts_have_equal_bytes(tmp_path):
    write(sample.full(), tmp_path / "a.json", ROWS)
    write(sample.full(), tmp_path / "b.json", ROWS)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_empty_tables_are_left_out(tmp_path):
    assert write(sample.minimal(), tmp_path / "r.json", {"operations": []}).side_files == ()
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize(
    ("receipt", "tables"),
    [
        (replace(sample.minimal(), timestamp="yesterday"), {}),
        (replace(sample.minimal(), kernels=("",)), {}),
        (sample.minimal(), {"operations": [{}]}),
        (sample.minimal(), {"moods": [{}]}),
    ],
)
def test_what_is_not_a_receipt_replaces_nothing(tmp_path, receipt, tables):
    path = tmp_path / "r.json"
    write(sample.minimal(), path, ROWS)
    before = path.read_bytes(), rows_in(tmp_path)
    with pytest.raises(ReceiptError):
        write(receipt, path, tables)
    assert (path.read_bytes(), rows_in(tmp_path)) == before


@pytest.mark.parametrize("step", range(3))
def test_a_crash_at_any_step_leaves_the_old_receipt_whole(tmp_path, monkeypatch, step):
    path = tmp_path / "r.json"
    old = write(sample.minimal(), path, ROWS)
    new = {"operations": sample.operations(LANE)[:1], "positions": sample.positions(LANE)[:1]}
    calls = []

    def replace_or_die(self, target):
        calls.append(target)
        if len(calls) > step:
            raise OSError(28, "No space left on device", str(target))
        os.rename(self, target)  # noqa: PTH104  # Path.replace is what this stands in for

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(ReceiptError, match="No space left"):
        write(sample.full(), path, new)
    monkeypatch.undo()
    assert read(path) == old
    assert not list(tmp_path.rglob("*.part"))
    assert {Path(side.file).name for side in old.side_files} <= rows_in(tmp_path)


def test_side_files_that_nobody_names_are_removed(tmp_path):
    path = tmp_path / "r.json"
    write(sample.minimal(), path, ROWS)
    new = write(sample.minimal(), path, {"operations": ROWS["operations"][:1]})
    assert rows_in(tmp_path) == {Path(side.file).name for side in new.side_files}


def test_side_files_of_another_receipt_stay(tmp_path):
    other = write(sample.minimal(), tmp_path / "other.json", ROWS)
    write(sample.minimal(), tmp_path / "r.json")
    assert rows_in(tmp_path) == {Path(side.file).name for side in other.side_files}


def test_files_that_are_not_ours_stay(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "notes.json").write_text("{}")
    write(sample.minimal(), tmp_path / "r.json", ROWS)
    assert "notes.json" in rows_in(tmp_path)


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write(sample.minimal(), tmp_path / "r.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o644


def test_a_place_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "ci").write_text("a file where a folder should be")
    with pytest.raises(ReceiptError, match="cannot be written"):
        write(sample.minimal(), tmp_path / "ci" / "r.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    path = tmp_path / "inference.json"
    os.mkfifo(path)
    with pytest.raises(ReceiptError, match="no regular file"):
        write(sample.minimal(), path)
    assert stat.S_ISFIFO(path.stat().st_mode)
