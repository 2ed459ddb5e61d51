"""Texts of receipts on consoles, in logs and in Markdown: what they hold is seen, and does nothing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipt_liars import NOW
from typer.testing import CliRunner

from fixtures.receipts import sample
from receipts import write
from receipts.cli import app
from receipts.errors import ReceiptError
from receipts.formats.github import step_summary, workflow_commands
from receipts.verify import verify
from receipts.visible import visible
from reports.markdown import page, summary
from reports.table import lines

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
EVIL = "\x1b[2J\x1b[8m \u202egnp\x9b1m\x7f\r\n::error::x"
#: As GitHub's runner reads a log: behind spaces, and the older spelling anywhere.
OBEYED = re.compile(r"^\s*::(error|warning|add-mask|set-output|stop-commands)\b|##\[", re.MULTILINE | re.IGNORECASE)


def test_controls_are_written_out():
    assert visible(EVIL) == ("⟨U+001B⟩[2J⟨U+001B⟩[8m ⟨U+202E⟩gnp⟨U+009B⟩1m⟨U+007F⟩⟨U+000D⟩⟨U+000A⟩⟨U+003A⟩:error::x")
    assert visible("a\nb\tc", kept="\n") == "a\nb⟨U+0009⟩c"


@pytest.mark.parametrize(
    "text", ["ffn_act of layer 2", "Ωμέγα 模型 · ≤ 1e-6", "ggml::mul_mat::cpu", "a : b ## c", "×\u00a0y"]
)
def test_other_texts_stay(text):
    assert visible(text) == text


@given(st.text(max_size=40))
def test_nothing_is_hidden_and_twice_is_once(text):
    shown = visible(text)
    assert not HIDDEN.search(shown)
    assert "\n" not in shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    "command", ["::error::x", "::ERROR file=a::x", "::add-mask::1", "##[error]x", "::stop-commands::t"]
)
def test_no_text_commands_a_runner_wherever_it_is_wrapped(command):
    assert not OBEYED.search(visible(f"{'word ' * 27}{command}").replace(" ", "\n"))


def evil(receipt):
    [lane] = receipt.lanes
    lane = replace(
        lane, name=f"lane {EVIL}", rungs=tuple(replace(rung, why=f"{rung.why} {EVIL}") for rung in lane.rungs)
    )
    claims = replace(receipt.claims, does_not=(EVIL, f"{'word ' * 27}::error::wrapped"))
    return replace(receipt, lanes=(lane,), claims=claims, environment=replace(receipt.environment, cpu=EVIL))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evil")
    write(evil(sample.gate_failed()), folder / "r.json")
    write(evil(sample.minimal()), folder / "before.json")
    return folder / "r.json"


COMMANDS = {
    "explain": ("explain",),
    "verify": ("verify",),
    "all checks": ("verify", "--all"),
    "gate": ("gate",),
    "github": ("gate", "--format", "github"),
    "history": ("history",),
    "diff": ("diff", "before.json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_valid_receipt_with_evil_texts_prints_them_harmlessly(name, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert verify(path, gate=False, now=NOW).valid
    printed = CliRunner().invoke(app, [*COMMANDS[name], path.name]).stdout
    assert not HIDDEN.search(printed), printed
    if name != "github":
        assert not OBEYED.search(printed), printed
    assert name == "history" or "⟨U+001B⟩" in printed


def test_annotations_and_pages_hide_nothing(path):
    report = verify(path, now=NOW)
    for text in (workflow_commands(report), step_summary(report), page(report.receipt), summary(report.receipt)):
        assert "⟨U+001B⟩[2J" in text.replace("\\", "")
        assert not HIDDEN.search(text)
    assert not HIDDEN.search("\n".join(lines(report.receipt)))
    assert not OBEYED.search("\n".join(lines(report.receipt)))


def test_an_error_names_what_it_names_harmlessly():
    said = str(ReceiptError(EVIL, path=EVIL, file=EVIL, remedy=EVIL))
    assert not HIDDEN.search(said)
    assert [line[:7] for line in said.split("\n")] == ["⟨U+001B", "  hint:"]
