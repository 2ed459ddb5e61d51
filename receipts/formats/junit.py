"""A report as JUnit XML, which every CI system shows: a suite for each level, a case for each check."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

from receipts.verify import LEVELS, Check, Report

#: Characters that XML 1.0 cannot hold in any spelling.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """The document. What could not be concluded is `skipped`, which no CI system counts as passed."""
    suites = []
    for level in LEVELS:
        rows = [check for check in report.checks if check.level == level]
        if rows:
            cases = "".join(_case(report, check) for check in rows)
            suites.append(
                f"  <testsuite name={_attribute(f'receipt.{level}')} {_counts(rows)}>\n{cases}  </testsuite>\n"
            )
    head = f"<testsuites name={_attribute(report.file)} {_counts(list(report.checks))}>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}\n{"".join(suites)}</testsuites>\n'


def _counts(rows: list[Check]) -> str:
    outcomes = [check.outcome for check in rows]
    return (
        f'tests="{len(rows)}" failures="{outcomes.count("fail")}" errors="0" skipped="{outcomes.count("inconclusive")}"'
    )


def _case(report: Report, check: Check) -> str:
    name = f"{check.name} ({check.path})" if check.path else check.name
    head = f"    <testcase classname={_attribute(f'receipt.{check.level}')} name={_attribute(name)}"
    if check.outcome == "pass":
        return f"{head}/>\n"
    message = _attribute(check.message)
    if check.outcome == "inconclusive":
        return f"{head}><skipped message={message}/></testcase>\n"
    place = f"{report.file}: {check.path}: {check.message}" if check.path else f"{report.file}: {check.message}"
    told = f"<failure type={_attribute(check.name)} message={message}>{escape(_clean(place))}</failure>"
    return f"{head}>{told}</testcase>\n"


def _attribute(text: str) -> str:
    return quoteattr(_clean(text))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
