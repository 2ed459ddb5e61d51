"""Runs the liars of one module's rules past the verifier."""

from __future__ import annotations

from datetime import UTC, datetime

from fixtures.receipts.build import HERE
from fixtures.receipts.holes import HOLES
from receipts.rule import RULES
from receipts.verify import verify

#: The verifier's clock in tests; the receipts were written before it.
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def liars(module):
    """Holes whose first rule is defined in a module of `receipts`."""
    names = {name for name, rule in RULES.items() if rule.check.__module__ == f"receipts.{module}"}
    return [hole for hole in HOLES if hole.rules.split()[0] in names]


def check_liar(hole):
    """The file named for the hole is refused by exactly its rules, and the first points at the right place."""
    report = verify(HERE / "invalid" / f"{hole.name}.json", now=NOW)
    findings = [check for check in report.failures if check.level != "gate"]
    assert {check.name for check in findings} == set(hole.rules.split()), findings
    first = next(check for check in findings if check.name == hole.rules.split()[0])
    assert first.path == hole.path, findings
    assert first.message
    assert report.exit_code == 5
