"""What fuzzing found once is not found again, and random damage to valid files finds nothing new."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_seeds
import fuzz_target
import pytest
from checkpoints import INDEX, SINGLE
from fuzz_damage import damaged
from fuzz_files import CONFIG, RANKS
from fuzz_run import BATCH, FINDINGS, MAX_INPUT
from fuzz_target import TARGETS, Finding, examine
from hypothesis import HealthCheck, given, settings

SEEDS = fuzz_seeds.seeds()
OTHERS = fuzz_seeds.seeds("files")


def test_what_was_found_once():
    """Each is examined again: `examine` raises a `Finding` where it is one still."""
    examined = set()
    for target, kind in (("model", "gguf"), ("files", "files"), ("receipt", "receipt")):
        for path in FINDINGS.glob(f"*.{kind}"):
            examine(path.read_bytes(), target)
            examined.add(path)
    assert examined == {path for path in FINDINGS.iterdir() if path.suffix != ".md"}


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_valid(name):
    whole = {"container", "empty", "byte pairs", "pieces", "three tokens"}
    assert examine(SEEDS[name]) == ("container" if name in whole else "weights")
    assert examine(SEEDS[name], "container") == "container"


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_seeds_are_valid(name):
    whole = {CONFIG, INDEX, SINGLE}
    companion = name.startswith(f"{RANKS} ")  # of ranks, but it is laid beside pieces
    assert examine(OTHERS[name], "files") == ("weights" if name in whole else "nothing" if companion else "file")


def test_the_seeds_of_receipts_reach_every_stage():
    reached = {name: examine(raw, "receipt") for name, raw in fuzz_seeds.seeds("receipt").items()}
    assert set(reached.values()) >= {"nothing", "json", "envelope", "verified"}
    assert all(stage == "verified" for name, stage in reached.items() if name.startswith("valid"))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damaged("receipt"))
def test_damage_to_receipts_gives_a_receipt_or_our_error(raw):
    examine(raw, "receipt")


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damaged("files"))
def test_damage_to_other_files_gives_a_model_or_our_error(raw):
    examine(raw, "files")


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_damage_gives_a_model_or_our_error(raw):
    examine(raw)


@pytest.mark.slow
@settings(max_examples=8_000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_much_damage_gives_a_model_or_our_error(raw):
    examine(raw)


def test_another_error_is_a_finding(monkeypatch):
    def broken(*_):
        raise IndexError("list index out of range")

    monkeypatch.setattr(fuzz_target, "read_config", broken)
    with pytest.raises(IndexError):
        examine(SEEDS["f16"])


def test_slowness_and_hunger_are_findings(monkeypatch):
    monkeypatch.setattr(fuzz_target, "MAX_SECONDS", 0.0)
    with pytest.raises(Finding, match=r"s, at stage weights"):
        examine(SEEDS["f16"])
    monkeypatch.undo()
    monkeypatch.setattr(fuzz_target, "MAX_GROWTH", -1)
    with pytest.raises(Finding, match="MiB, at stage container"):
        examine(SEEDS["empty"])


def test_the_corpus_and_the_dictionary_are_what_libfuzzer_reads(tmp_path):
    for target in TARGETS:
        fuzz_seeds.write_corpus(tmp_path / target, target)
        assert len(list((tmp_path / target).iterdir())) == len(fuzz_seeds.seeds(target)) >= 7
        for line in (tmp_path / "dictionary.txt").read_text().splitlines():
            assert line.startswith('"\\x')
            assert line.endswith('"')
    assert set(BATCH) == set(MAX_INPUT) == set(TARGETS)


def test_the_hypothesis_engine_counts_what_it_ran(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_run.py")), "--engine=hypothesis", "--runs=20"]
    done = subprocess.run([*command, f"--folder={tmp_path}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "executions, 0 findings" in done.stdout
