"""Every setting with its value and where it comes from."""

from __future__ import annotations

import re

import pytest
from command_line import ROOT, run

from bitnet.settings import settings

NAMES = (
    *("BITNET_GGUF", "BITNET_TOKENIZER", "BITNET_DEVICE", "BITNET_ISA", "BITNET_NUM_THREADS", "BITNET_SEED"),
    *(
        "BITNET_DETERMINISTIC",
        "BITNET_OFFLINE",
        "BITNET_CPP_DIR",
        "BITNET_MEMORY_LIMIT",
        "BITNET_BATCH_SIZE",
        "BITNET_PACKED_CACHE",
        "HF_HOME",
        "HF_TOKEN",
    ),
)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in (*NAMES, "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


def by_name(flags=None):
    return {s.name: s for s in settings(flags)}


def test_every_variable_is_there_with_its_default():
    found = by_name()
    assert tuple(found) == NAMES
    assert {s.origin for s in found.values()} == {"default"}
    assert found["BITNET_DEVICE"].value == "cpu"
    assert int(found["BITNET_NUM_THREADS"].value) >= 1
    assert found["BITNET_GGUF"].value is None
    assert all(s.fault is None for s in found.values())


def test_every_variable_that_the_code_reads_is_there():
    read = {
        name
        for path in (ROOT / "bitnet").rglob("*.py")
        for name in re.findall(r'"(BITNET_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert read <= set(NAMES)


def test_a_flag_beats_a_variable_which_beats_a_default(monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "3")
    assert (by_name()["BITNET_NUM_THREADS"].value, by_name()["BITNET_NUM_THREADS"].origin) == ("3", "variable")
    found = by_name({"BITNET_NUM_THREADS": 2})["BITNET_NUM_THREADS"]
    assert (found.value, found.origin) == ("2", "flag")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BITNET_NUM_THREADS", "many"),
        ("BITNET_OFFLINE", "perhaps"),
        ("BITNET_MEMORY_LIMIT", "lots"),
        ("BITNET_BATCH_SIZE", "0"),
        ("BITNET_PACKED_CACHE", "much"),
        ("BITNET_DEVICE", "abacus"),
    ],
)
def test_a_value_without_meaning_is_shown_with_the_reason(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    found = by_name()[name]
    assert found.value == value
    assert found.fault
    done = run("system", "info")
    assert done.code == 0
    assert value in done.out
    assert run("system", "doctor").code == 1


def test_a_secret_is_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert by_name()["HF_TOKEN"].value == "set, not shown"
    for form in ("human", "json"):
        done = run("system", "info", "--format", form)
        assert "verysecret" not in done.out + done.err


def test_homes(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert by_name()["HF_HOME"].value == str(tmp_path)
