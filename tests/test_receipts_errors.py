"""A receipt's error says what, where in the record, in which file, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from receipts.errors import MissingReceiptError, ReceiptError, ReceiptLimitError


def test_message_carries_the_path():
    assert (
        str(ReceiptError("nothing was compared", path="lanes[2].rungs")) == "nothing was compared in 'lanes[2].rungs'"
    )


def test_message_carries_file_and_remedy():
    error = ReceiptError("is empty", path="lanes", remedy="run it").inside("ci/inference.json")
    assert str(error) == "ci/inference.json: is empty in 'lanes'\n  hint: run it"


def test_exit_codes_are_the_designs():
    assert ReceiptError("").exit_code == 5
    assert ReceiptLimitError("").exit_code == 5
    assert MissingReceiptError("").exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("program", ["receipts", "reports", "crossval"])
def test_a_full_output_is_told_and_is_no_traceback(program):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", program, "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (6, f"{program}: the disk is full\n")
