"""A report for GitHub Actions: an annotation for each finding, and a summary of the step in Markdown."""

from __future__ import annotations

import re

from receipts.formats.verdict import verdict
from receipts.verify import LEVELS, Check, Report
from receipts.visible import visible

#: GitHub shows ten annotations a step and kind; the rest is in the summary.
MAX_ANNOTATIONS = 10
#: Rows of the summary's table; a page longer than this is read by nobody, and GitHub cuts it at 1 MiB.
MAX_ROWS = 200


def workflow_commands(report: Report) -> str:
    """Workflow commands, one a line: what failed as errors, what is open as warnings, and the verdict."""
    lines = []
    for word, outcome in (("error", "fail"), ("warning", "inconclusive")):
        rows = [check for check in report.checks if check.outcome == outcome]
        lines += [_command(word, report.file, check.name, _told(check)) for check in rows[:MAX_ANNOTATIONS]]
        if len(rows) > MAX_ANNOTATIONS:
            lines.append(_command(word, report.file, "more", f"{len(rows) - MAX_ANNOTATIONS} more; see the summary"))
    word = "notice" if report.exit_code == 0 else "error"
    return "\n".join([*lines, _command(word, report.file, "receipt", verdict(report))]) + "\n"


def step_summary(report: Report) -> str:
    """Markdown for `$GITHUB_STEP_SUMMARY`."""
    sign = {"pass": "✅", "fail": "❌", "inconclusive": "➖"}
    lines = [f"### {'✅' if report.exit_code == 0 else '❌'} Receipt `{_cell(report.file)}`", "", verdict(report), ""]
    if report.policy:
        lines += [f"Policy: `{_cell(report.policy)}`", ""]
    lines += ["| level | checks | passed | failed | open |", "| --- | ---: | ---: | ---: | ---: |"]
    for level in LEVELS:
        outcomes = [check.outcome for check in report.checks if check.level == level]
        if outcomes:
            counts = " | ".join(str(outcomes.count(word)) for word in ("pass", "fail", "inconclusive"))
            lines.append(f"| {level} | {len(outcomes)} | {counts} |")
    shown = [check for check in report.checks if check.outcome != "pass" or check.level == "gate"]
    if shown:
        lines += ["", "| | check | where | what |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {sign[check.outcome]} | {_cell(check.name)} | {_cell(check.path)} | {_cell(check.message)} |"
            for check in shown[:MAX_ROWS]
        ]
        if len(shown) > MAX_ROWS:
            lines.append(f"| | … | | {len(shown) - MAX_ROWS} more |")
    return "\n".join(lines) + "\n"


def _told(check: Check) -> str:
    return f"{check.path}: {check.message}" if check.path else check.message


def _command(word: str, file: str, title: str, message: str) -> str:
    """One workflow command; what a receipt says can neither end it nor start another."""
    return f"::{word} file={_property(file)},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    text = visible(text, kept="\r\n")
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text as text in a Markdown table: no markup, no HTML, one line."""
    flat = re.sub(r"\s+", " ", visible(text, kept="\t\r\n")).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", flat)
