"""What the README gives to others' CI: it parses, and every command in it works, here and from the wheel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fixtures.receipts.build import HERE

ROOT = Path(__file__).parents[1]
INSTALL = "python -m pip install bitnet-crossval"


def documents():
    """The YAML blocks of the README."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def github():
    """The job for a clean container."""
    [job] = [
        job for d in documents() if isinstance(d, dict) for job in d.get("jobs", {}).values() if "container" in job
    ]
    return job


def gitlab():
    [job] = [job for d in documents() if isinstance(d, dict) for job in d.values() if "image" in job]
    return job


def hooks():
    return yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))


def commands():
    """Every shell line of the two jobs, once each."""
    return list(dict.fromkeys([step["run"] for step in github()["steps"] if "run" in step] + gitlab()["script"]))


def test_the_jobs_run_in_a_clean_container_from_a_released_wheel():
    assert github()["container"] == gitlab()["image"]
    assert github()["container"].startswith("python:3.")
    assert github()["steps"][0]["uses"].startswith("actions/checkout@")
    assert commands()[0] == INSTALL
    assert not any("nox" in line or "pip install ." in line for line in commands())
    assert gitlab()["artifacts"]["when"] == "always"
    assert gitlab()["artifacts"]["reports"]["junit"] == "receipt.xml"


def test_the_hook_is_one(tmp_path):
    [hook] = hooks()
    assert {"id", "name", "entry", "language", "files"} <= hook.keys()
    assert re.search(hook["files"], "ci/inference.json")
    assert not re.search(hook["files"], "schemas/inference-1.schema.json")
    readme = [d for d in documents() if isinstance(d, dict) and "repos" in d]
    assert [h["id"] for d in readme for repo in d["repos"] for h in repo["hooks"]] == [hook["id"]]
    for name in ("good", "other", "bad"):
        shutil.copytree(HERE / "valid", tmp_path / name)
        (tmp_path / name / "full.json").rename(tmp_path / name / "inference.json")
    good = [str(tmp_path / name / "inference.json") for name in ("good", "other")]
    assert hooked(hook, tmp_path, *good).returncode == 0
    bad = tmp_path / "bad" / "inference.json"
    bad.write_text(bad.read_text("utf-8").replace('"outcome": "pass"', '"outcome": "fail"', 1))
    done = hooked(hook, tmp_path, *good, str(bad))
    assert done.returncode == 5
    assert "form.digest" in done.stdout


def hooked(hook, folder, *names):
    """As pre-commit runs it: the entry split as by a shell, the files appended."""
    return shell(shlex.join([*shlex.split(hook["entry"]), *names]), folder, folder)


def shell(line, folder, programs):
    """A line, with the `python` that holds the wheel alone, or that of these tests and the packages of this tree."""
    alone = os.environ.get("WHEEL_PYTHON")
    program = programs / "python"
    program.write_text(f'#!/bin/sh\nexec "{alone or sys.executable}" "$@"\n')
    program.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("BITNET_")}
    environment |= {"PATH": f"{programs}:/usr/bin:/bin"} | ({} if alone else {"PYTHONPATH": str(ROOT)})
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_every_command_works(tmp_path):
    """In the order given, beside a model; nothing of this tree lies there."""
    shutil.copy(ROOT / "fixtures" / "models" / "tiny-silu.i2_s.gguf", tmp_path / "model.gguf")
    programs = tmp_path / "bin"
    programs.mkdir()
    for line in commands()[1:]:
        done = shell(line, tmp_path, programs)
        assert done.returncode == 0, (line, done.stdout + done.stderr)
    assert (tmp_path / "receipt.xml").read_text("utf-8").startswith("<?xml")
