"""What every command has: help that comes at once, and examples in it that work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from command_line import ROOT, commands, leaves, run
from hub_server import serve

ALL = [words for words, _ in commands()]
NAMES = (
    {("model", n) for n in ("info", "list", "download", "verify", "compat", "compare", "convert")}
    | {("infer", n) for n in ("run", "batch", "chat")}
    | {("system", n) for n in ("info", "devices", "doctor")}
)


def help_of(words):
    done = run(*words, "--help")
    assert done.code == 0
    return done.out


def examples(words):
    """The commands at the end of a help text."""
    text = help_of(words)
    assert "Example:\n" in text, words
    return [line.strip() for line in text.rpartition("Example:\n")[2].splitlines() if line.strip()]


def test_the_commands_are_these():
    assert {words for words, _ in leaves()} == NAMES


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_ends_with_an_example(words):
    assert examples(words)
    assert len(help_of(words)) > 100


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_comes_at_once(words):
    """By what it imports, which does not depend on the machine: 250 modules take 0.12 to 0.17 s of an idle one."""
    heavy = ("numpy", "numba", "rich", "tokenizers", "huggingface_hub", "jinja2", "gguf", "httpx", "platformdirs")
    shown = f"import sys; from bitnet.cli.main import main; main({[*words, '--help']})"
    program = f"{shown}; print(len(sys.modules), [m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    number, _, loaded = done.stderr.partition(" ")
    assert loaded.strip() == "[]"
    assert int(number) <= 300


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The root of a repository, where examples may write, and a `bitnet` to call."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "fixtures" / "models", root / "fixtures" / "models")
    program = root / "bin" / "bitnet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bitnet "$@"\n')
    program.chmod(0o755)
    return root


@pytest.fixture
def environment(workplace, tmp_path):
    """Where the examples that need the network find a server here, and nothing of the user's is touched."""
    with serve() as hub:
        hub.files = {"ggml-model-i2_s.gguf": (ROOT / "fixtures/models/tiny-relu2.i2_s.gguf").read_bytes()}
        drop = {"BITNET_GGUF", "BITNET_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"}
        yield {k: v for k, v in os.environ.items() if k not in drop} | {
            "PATH": f"{workplace / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "no_proxy": "127.0.0.1",
        }


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_examples_work(words, workplace, environment):
    for line in examples(words):
        assert re.search(r"\bbitnet\b|prompts\.jsonl", line)
        done = subprocess.run(
            ["bash", "-c", line],  # as a user would
            cwd=workplace,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    for made in (*workplace.glob("tiny*"), *workplace.glob("*.jsonl")):
        shutil.rmtree(made) if made.is_dir() else made.unlink()
