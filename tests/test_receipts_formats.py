"""Forms of a report: each is what its readers expect, and no text in a receipt breaks out of it."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipt_liars import NOW

from fixtures.receipts.build import HERE
from receipts.formats import FORMATS
from receipts.formats.github import MAX_ANNOTATIONS, step_summary, workflow_commands
from receipts.formats.junit import junit
from receipts.formats.sarif import sarif
from receipts.formats.verdict import verdict
from receipts.verify import Check, Report, verify

GOOD = verify(HERE / "valid" / "full.json", now=NOW)
GATED = verify(HERE / "valid" / "gate-failed.json", now=NOW)
BAD = verify(HERE / "invalid" / "ledger-layer-skipped.json", now=NOW)
BROKEN = verify(HERE / "invalid" / "cut-short.json", now=NOW)
ALL = [GOOD, GATED, BAD, BROKEN]


@pytest.mark.parametrize("report", ALL, ids=["good", "gated", "bad", "broken"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_every_report(form, report):
    assert FORMATS[form](report).endswith("\n")


def test_junit_counts():
    suites = ET.fromstring(junit(BAD))
    assert int(suites.get("failures")) == len(BAD.failures)
    [failure] = suites.findall(".//testcase/failure")
    assert failure.get("type") == "ledger.rows"
    assert "ledger[0].entries" in failure.text
    assert int(ET.fromstring(junit(BROKEN)).get("skipped")) > 10
    assert int(ET.fromstring(junit(GOOD)).get("tests")) == len(GOOD.checks)


def test_annotations_are_one_line_each():
    lines = workflow_commands(GATED).splitlines()
    assert lines[-1].startswith("::error file=")
    assert "gate failed" in lines[-1]
    assert workflow_commands(GOOD).splitlines()[-1].startswith("::notice ")
    many = replace(BAD, checks=tuple(replace(BAD.failures[0], path=str(i)) for i in range(50)))
    assert len(workflow_commands(many).splitlines()) == MAX_ANNOTATIONS + 2


def test_the_summary_is_a_page():
    text = step_summary(GATED)
    assert "Valid, but the gate failed." in text
    assert "| gate | " in text
    assert "required rung greedy" in text


def test_sarif_has_findings_and_models():
    log = json.loads(sarif(BAD))
    assert log["version"] == "2.1.0"
    [result] = log["runs"][0]["results"]
    assert result["ruleId"] == "ledger.rows"
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert rules[result["ruleIndex"]]["id"] == "ledger.rows"
    assert [r["ruleId"] for r in json.loads(sarif(GOOD))["runs"][0]["results"]] == ["model.operation"]


def test_verdicts():
    assert "Nothing in it can be relied on" in verdict(BAD)
    assert verdict(GOOD) == "Valid, and the gate passed."


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_no_text_breaks_out(text):
    check = Check(level="gate", name=f"gate.{text}", outcome="fail", path=text, message=text)
    report = Report(file=text, checks=(check,), receipt=None, policy=text)
    assert len(ET.fromstring(junit(report)).findall(".//testcase")) == 1
    commands = workflow_commands(report).rstrip("\n").split("\n")
    assert len(commands) == 2
    assert all(command.startswith("::error ") for command in commands)
    assert "\r" not in workflow_commands(report)
    json.loads(sarif(report))
    rows = [line for line in step_summary(report).split("\n") if line.startswith("| ❌")]
    assert len(rows) == 1
    assert "<" not in rows[0]
