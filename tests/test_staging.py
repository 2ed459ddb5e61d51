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


def checkpoint(folder, text="old"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_text(text)


def refused(match, target, *, folder, force=True):
    """Refused before anything is made, and nothing beside it is left."""
    before = names(target.parent)
    with pytest.raises(UsageError, match=match) as caught, staged(target, folder=folder, force=force):
        pytest.fail("it was not refused")
    assert caught.value.where == str(target)
    assert names(target.parent) == before


def test_a_file_appears_when_it_is_done(tmp_path):
    with staged(tmp_path / "a.gguf", folder=False) as made:
        made.write_text("whole")
        assert not (tmp_path / "a.gguf").exists()
    assert (tmp_path / "a.gguf").read_text() == "whole"
    assert names(tmp_path) == ["a.gguf"]


def test_a_folder_likewise_and_folders_on_the_way_are_made(tmp_path):
    with staged(tmp_path / "new" / "model", folder=True) as made:
        made.mkdir()
        (made / "config.json").write_text("{}")
    assert names(tmp_path / "new" / "model") == ["config.json"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_fault_leaves_nothing_and_what_was_there(tmp_path, fault):
    (tmp_path / "a").write_text("old")

    def half():
        with staged(tmp_path / "a", folder=False, force=True) as made:
            made.write_text("half")
            raise fault

    with pytest.raises(fault):
        half()
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_exists_is_replaced_only_by_force(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(UsageError, match="exists already"), staged(tmp_path / "a", folder=False):
        pass
    with staged(tmp_path / "a", folder=False, force=True) as made:
        made.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_checkpoint_is_replaced_whole_and_another_folder_never(tmp_path):
    old = tmp_path / "model"
    checkpoint(old)
    (old / "model-00001-of-00002.safetensors").write_text("old")
    with staged(old, folder=True, force=True) as made:
        made.mkdir()
        (made / "config.json").write_text("new")
    assert names(old) == ["config.json"]
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text("mine")
    refused("holds no checkpoint", home, folder=True)
    assert names(home) == ["config.json"]


@pytest.mark.parametrize("name", ["notes.txt", ".git", "original"])
@pytest.mark.parametrize("force", [True, False])
def test_a_checkpoint_with_something_of_its_owner_in_it_is_not_replaced(tmp_path, name, force):
    old = tmp_path / "model"
    checkpoint(old)
    (old / name).write_text("mine") if "." in name[1:] else (old / name).mkdir()
    refused(f"holds more than a checkpoint, so it is not replaced: {name}", old, folder=True, force=force)
    assert name in names(old)


@pytest.mark.parametrize("force", [True, False])
def test_a_file_and_a_folder_never_replace_each_other(tmp_path, force):
    (tmp_path / "app").mkdir()
    (tmp_path / "a.gguf").write_text("old")
    refused("is a folder, and what is made is a file", tmp_path / "app", folder=False, force=force)
    refused("is a file, and what is made is a folder", tmp_path / "a.gguf", folder=True, force=force)


@pytest.mark.parametrize("folder", [True, False])
def test_a_pipe_is_not_replaced_nor_a_link_to_one(tmp_path, folder):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        refused("is a device, a pipe or a socket", tmp_path / name, folder=folder)


def test_a_folder_that_holds_nothing_is_replaced_by_force(tmp_path):
    (tmp_path / "m").mkdir()
    refused("exists already", tmp_path / "m", folder=True, force=False)
    with staged(tmp_path / "m", folder=True, force=True) as made:
        made.mkdir()
        (made / "config.json").write_text("new")
    assert names(tmp_path / "m") == ["config.json"]


def test_what_came_while_it_was_made_stays(tmp_path):
    checkpoint(tmp_path / "m")

    def convert(target, meanwhile, *, folder):
        with staged(target, folder=folder, force=folder) as made:
            made.mkdir() if folder else made.write_text("new")
            meanwhile.write_text("mine")

    with pytest.raises(UsageError, match="holds more than a checkpoint"):
        convert(tmp_path / "m", tmp_path / "m" / "notes.txt", folder=True)
    assert names(tmp_path / "m") == ["config.json", "model.safetensors", "notes.txt"]
    with pytest.raises(UsageError, match="exists already"):
        convert(tmp_path / "a", tmp_path / "a", folder=False)
    assert (tmp_path / "a").read_text() == "mine"
    assert names(tmp_path) == ["a", "m"]


def test_a_link_to_a_file_is_replaced_and_a_link_to_a_folder_stands_for_it(tmp_path):
    (tmp_path / "blob").write_text("old")
    (tmp_path / "a.gguf").symlink_to("blob")
    with staged(tmp_path / "a.gguf", folder=False, force=True) as made:
        made.write_text("new")
    assert ((tmp_path / "blob").read_text(), (tmp_path / "a.gguf").read_text()) == ("old", "new")
    checkpoint(tmp_path / "m")
    (tmp_path / "latest").symlink_to("m")
    with staged(tmp_path / "latest", folder=True, force=True) as made:
        made.mkdir()
        (made / "config.json").write_text("new")
    assert (tmp_path / "latest").is_symlink()
    assert names(tmp_path / "m") == ["config.json"]
    (tmp_path / "round").symlink_to("round")
    refused("cannot be written|cannot be followed", tmp_path / "round", folder=False)


def test_names_that_are_paths_alone_and_names_as_long_as_they_can_be(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    for name in (".", "../sub", f"{tmp_path}/sub/../sub"):
        with pytest.raises(UsageError, match="is a folder, and"), staged(Path(name), folder=False):
            pass
        with (
            pytest.raises(UsageError, match="this program was started in"),
            staged(Path(name), folder=True, force=True),
        ):
            pass
    with pytest.raises(UsageError, match="holds no checkpoint"), staged(Path(".."), folder=True, force=True):
        pass
    longest = "ä" * 127
    for _ in range(2):
        with staged(Path(longest), folder=False, force=True) as made:
            made.write_text("whole")
    with (
        pytest.raises(UsageError, match="cannot be written: File name too long"),
        staged(Path("x" * 256), folder=False),
    ):
        pass
    assert names(tmp_path / "sub") == [longest]


def test_an_error_names_the_target_and_not_the_place_it_is_made_in(tmp_path):
    with pytest.raises(UsageError) as caught, staged(tmp_path / "a", folder=False) as made:
        raise UsageError("is wrong", where=f"{made} (key)")
    assert caught.value.where == f"{tmp_path / 'a'} (key)"


def test_a_disk_without_room(tmp_path):
    with pytest.raises(ResourceLimitError, match="are free"), staged(tmp_path / "a", folder=False, n_bytes=1 << 60):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"), staged(tmp_path / "a", folder=False):
        pass


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_makes_is_not(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / f".a[1].{int(gone.stdout)}.partial"
    alive = tmp_path / f".a[1].{os.getppid()}.partial"
    other = tmp_path / f".a1.{int(gone.stdout)}.partial"
    for folder in (dead, alive, other):
        folder.mkdir()
    with staged(tmp_path / "a[1]", folder=False) as made:
        made.write_text("x")
    assert names(tmp_path) == sorted([alive.name, other.name, "a[1]"])


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = tmp_path / f".m.{int(gone.stdout)}.partial"
    checkpoint(left / "replaced")
    with pytest.raises(UsageError, match="exists already"), staged(tmp_path / "m", folder=True):
        pass
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "config.json").read_text() == "old"


def test_a_name_that_cannot_be_taken_leaves_what_was_there(tmp_path, monkeypatch):
    old = tmp_path / "m"
    checkpoint(old)
    replace = Path.replace

    def failing(self, target):
        if Path(target) == old and self.name == "made":
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UsageError, match="cannot be replaced"), staged(old, folder=True, force=True) as made:
        made.mkdir()
    assert names(tmp_path) == ["m"]
    assert names(old) == ["config.json", "model.safetensors"]
