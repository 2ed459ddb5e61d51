"""A result is there whole, or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.errors import ResourceLimitError, UsageError
from bitnet.staging import staged


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_done(tmp_path):
    with staged(tmp_path / "a.gguf") as made:
        made.write_text("whole")
        assert not (tmp_path / "a.gguf").exists()
    assert (tmp_path / "a.gguf").read_text() == "whole"
    assert names(tmp_path) == ["a.gguf"]


def test_a_folder_likewise_and_folders_on_the_way_are_made(tmp_path):
    with staged(tmp_path / "new" / "model") as made:
        made.mkdir()
        (made / "config.json").write_text("{}")
    assert names(tmp_path / "new" / "model") == ["config.json"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_fault_leaves_nothing_and_what_was_there(tmp_path, fault):
    (tmp_path / "a").write_text("old")

    def half():
        with staged(tmp_path / "a", force=True) as made:
            made.write_text("half")
            raise fault

    with pytest.raises(fault):
        half()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_exists_is_replaced_only_by_force(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(UsageError, match="exists already"), staged(tmp_path / "a"):
        pass
    with staged(tmp_path / "a", force=True) as made:
        made.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_checkpoint_is_replaced_whole_and_another_folder_never(tmp_path):
    old = tmp_path / "model"
    old.mkdir()
    (old / "config.json").write_text("old")
    (old / "shard").write_text("old")
    with staged(old, force=True) as made:
        made.mkdir()
        (made / "config.json").write_text("new")
    assert names(old) == ["config.json"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters").write_text("mine")
    with pytest.raises(UsageError, match="holds no checkpoint"), staged(home, force=True):
        pass
    assert names(home) == ["letters"]


def test_a_disk_without_room(tmp_path):
    with pytest.raises(ResourceLimitError, match="are free"), staged(tmp_path / "a", n_bytes=1 << 60):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"), staged(tmp_path / "a"):
        pass


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_makes_is_not(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / f".a[1].{int(gone.stdout)}.partial"
    alive = tmp_path / f".a[1].{os.getppid()}.partial"
    other = tmp_path / f".a1.{int(gone.stdout)}.partial"
    for folder in (dead, alive, other):
        folder.mkdir()
    with staged(tmp_path / "a[1]") as made:
        made.write_text("x")
    assert names(tmp_path) == sorted([alive.name, other.name, "a[1]"])


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = tmp_path / f".m.{int(gone.stdout)}.partial"
    (left / "replaced").mkdir(parents=True)
    (left / "replaced" / "config.json").write_text("old")
    with pytest.raises(UsageError, match="exists already"), staged(tmp_path / "m"):
        pass
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "config.json").read_text() == "old"


def test_a_name_that_cannot_be_taken_leaves_what_was_there(tmp_path, monkeypatch):
    old = tmp_path / "m"
    old.mkdir()
    (old / "config.json").write_text("old")
    replace = Path.replace

    def failing(self, target):
        if Path(target) == old and self.name == "m":
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UsageError, match="cannot be replaced"), staged(old, force=True) as made:
        made.mkdir()
    assert names(tmp_path) == ["m"]
    assert names(old) == ["config.json"]
