"""What ends the programs: an output that is full, one whose reader has left, and what the system refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from receipts.program import run

ROOT = Path(__file__).parents[1]
PROGRAMS = ("receipts", "reports", "crossval")


def called(program, stdout, unbuffered):
    return subprocess.run(
        [sys.executable, "-m", program, "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_output_is_told_and_is_no_traceback(program, unbuffered):
    with Path("/dev/full").open("w") as full:
        done = called(program, full, unbuffered)
    assert (done.returncode, done.stderr) == (6, f"{program}: the disk is full\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_reader_that_leaves_is_told_nothing(program, unbuffered):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = called(program, pipe, unbuffered)
    assert (done.returncode in (0, 1), done.stderr) == (True, "")  # the parser, if it is what meets it, leaves with 1


def test_what_the_system_refuses_names_its_file(capfd, monkeypatch):
    monkeypatch.setattr("receipts.program.os.dup2", lambda *_: None)  # the output of the tests goes on

    def refused():
        raise PermissionError(13, "Permission denied", "a\x1bfile")

    with pytest.raises(SystemExit) as ended:
        run("receipts", refused)
    assert (ended.value.code, capfd.readouterr().err) == (2, "receipts: a⟨U+001B⟩file: Permission denied\n")


def test_a_code_is_passed_on():
    with pytest.raises(SystemExit) as ended:
        run("receipts", lambda: sys.exit(5))
    assert ended.value.code == 5
