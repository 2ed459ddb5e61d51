"""Where and when: nothing about a user, nothing of another project."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime

import pytest

from crossval.environment import command, environment, git_state, now


def test_now_is_utc():
    assert now().endswith("Z")
    assert datetime.fromisoformat(now()).utcoffset().total_seconds() == 0


def test_this_machine():
    here = environment()
    assert here.cores >= 1
    assert here.memory_bytes > 1 << 28
    assert here.cpu
    assert {"numpy", "numba"} <= set(here.packages)


def test_variables_are_listed_without_folders_and_secrets_not_at_all(monkeypatch):
    monkeypatch.setenv("BITNET_GGUF", "/home/somebody/secret place/model.gguf")
    monkeypatch.setenv("BITNET_NUM_THREADS", "2")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("BITNET_SEED", "")
    found = environment().variables
    assert found["BITNET_GGUF"] == "model.gguf"
    assert found["BITNET_NUM_THREADS"] == "2"
    assert "BITNET_SEED" not in found
    assert "somebody" not in str(environment())
    assert "hf_abcdef" not in str(environment())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "python -m crossval run"),
        (["run", "--model", "/home/me/a b.gguf"], "python -m crossval run --model 'a b.gguf'"),
        (["run", "--model=/home/me/m.gguf"], "python -m crossval run --model=m.gguf"),
        (["run", "--receipt", "ci/inference.json"], "python -m crossval run --receipt inference.json"),
        (["run", "--threads=2", "--no-measure"], "python -m crossval run --threads=2 --no-measure"),
    ],
)
def test_what_was_typed_without_folders(monkeypatch, arguments, told):
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    assert command() == told


@pytest.fixture
def checkout(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("1")
    git("init", "-q")
    git("add", "package")
    git("commit", "-q", "-m", "one")
    return tmp_path


def test_a_checkout_and_its_changes(checkout):
    commit, dirty = git_state(checkout / "package")
    assert len(commit) == 40
    assert dirty is False
    (checkout / "package" / "code.py").write_text("2")
    assert git_state(checkout / "package") == (commit, True)


def test_an_environment_inside_somebody_elses_checkout_is_not_part_of_it(checkout):
    installed = checkout / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("1")
    assert git_state(installed) == ("", None)


def test_outside_a_checkout_and_without_git(tmp_path, monkeypatch):
    assert git_state(tmp_path) == ("", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == ("", None)
