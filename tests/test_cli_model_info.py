"""`bitnet model info`: from the header, quick for a file of any size."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import published_model
import pytest
from command_line import ROOT, TINY, run, validated


def test_what_people_see():
    done = run("model", "info", TINY)
    assert done.code == 0
    for part in ("bitnet-b1.58: relu2 (declared)", "4 × (8 query heads", "28 I2_S (2.0 MB)", "with chat template"):
        assert part in done.out
    assert "blk.0.attn_q.weight" not in done.out
    assert "blk.0.attn_q.weight" in run("model", "info", TINY, "--tensors").out


def test_every_tensor_and_the_digest():
    document = validated(run("model", "info", TINY, "--tensors", "--sha256", "--format", "json").out)
    assert document["sha256"] == hashlib.sha256(Path(TINY).read_bytes()).hexdigest()
    assert sum(t["n_bytes"] for t in document["tensors"]) == sum(t["n_bytes"] for t in document["types"].values())
    bare = validated(run("model", "info", TINY, "--format", "json").out)
    assert bare["sha256"] is bare["tensors"] is None


def test_the_model_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BITNET_GGUF", TINY)
    assert run("model", "info").code == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="how much memory a process had at most")
def test_a_gigabyte_costs_no_memory(tmp_path):
    path = published_model.write(tmp_path / "2b.gguf")
    program = (
        "import re, sys; from bitnet.cli.main import main; code = main(['model', 'info', sys.argv[1]]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "128256 tokens, splitting rules not declared" in done.stdout
    assert int(done.stderr) < 200_000  # kB: Python, numpy, and a header of seven MB
