"""A receipt that one checkout made is computed again in another, to the bit; with one weight another, it is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.gguf import read

ROOT = Path(__file__).parents[1]
MODEL = Path("fixtures") / "models" / "tiny-silu.i2_s.gguf"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no checkout"),
]


@pytest.fixture(scope="module")
def clones(tmp_path_factory):
    """Two of them: one that has made a receipt, and one that has made nothing."""
    folder = tmp_path_factory.mktemp("clones")
    made = []
    for name in ("here", "there"):
        command = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder / name)]
        subprocess.run(command, check=True, timeout=120)
        made.append(folder / name)
    done = python(
        made[0], "-m", "crossval", "run", "--model", str(MODEL), "--only", "oracle", "--no-measure", "--no-hf"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(made[0] / "ci", made[1] / "ci")
    return made


def python(clone, *words):
    """Python in a clone, of which it imports the packages."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BITNET_")} | {"PYTHONPATH": str(clone)}
    return subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment, capture_output=True, text=True, timeout=280
    )


def replayed(clone):
    """All cases computed again: exit code, and what was said."""
    done = python(clone, "-m", "crossval", "replay", "--cases", "0")
    return done.returncode, re.sub(r"\s*[│┃]\s*", " ", done.stdout) + done.stderr


def test_a_fresh_clone_computes_the_same(clones):
    code, told = replayed(clones[1])
    assert code == 0, told
    assert told.count("replay.case") == told.count("computed again, equal in every") - 2  # a model, and its tokenizer


def test_one_weight_bit_is_noticed(clones):
    path = clones[1] / MODEL
    before = path.read_bytes()
    tensor = read(path).tensors["blk.1.ffn_down.weight"]
    raw = bytearray(before)
    raw[tensor.offset + tensor.n_bytes // 2] ^= 0b01
    path.write_bytes(raw)
    try:
        code, told = replayed(clones[1])
    finally:
        path.write_bytes(before)
    assert code == 5, told
    assert "replay.model" in told
    assert replayed(clones[1])[0] == 0
