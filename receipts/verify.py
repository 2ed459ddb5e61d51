"""Verification: recompute instead of trusting, report everything and not only the first fault.

Level 1 is form: JSON, version, types, schema, digest. Level 2 is consistency: every rule in `receipts.rule.RULES`.
Level 3 is the gate. What is false is invalid, whatever it says about parity; so the gate is asked last, and its
answer counts only on a receipt whose form and consistency hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from os import PathLike
from typing import Any, Literal

import receipts.check_files
import receipts.check_lanes
import receipts.check_ledger
import receipts.check_runs  # noqa: F401  # importing the four enters their rules in the table
from receipts.codec import digest_of
from receipts.errors import MissingReceiptError, ReceiptError
from receipts.gate import gate as demands
from receipts.read import decode, load, read_table
from receipts.record import Receipt, SideFile
from receipts.rule import RULES, View
from receipts.schema import problems
from receipts.tables import Row

Level = Literal["form", "consistency", "gate"]
CheckOutcome = Literal["pass", "fail", "inconclusive"]

#: A broken table breaks every row; a person needs the first few.
MAX_FINDINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, or one of its findings.

    Attributes:
        level: What kind of question it answers.
        name: Of the rule.
        outcome: `inconclusive` where an earlier fault left nothing to check.
        path: Where in the receipt; "" is the whole.
        message: The rule where it holds, else what breaks it.
    """

    level: Level
    name: str
    outcome: CheckOutcome
    path: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a verifier found.

    Attributes:
        file: The receipt's.
        checks: In order of levels; a broken rule has one entry a finding.
        receipt: As read, None if it could not be.
    """

    file: str
    checks: tuple[Check, ...]
    receipt: Receipt | None = None

    @property
    def valid(self) -> bool:
        """Whether form and consistency hold."""
        return all(check.outcome == "pass" for check in self.checks if check.level != "gate")

    @property
    def gate_passed(self) -> bool | None:
        """Whether the gate passes; None if it was not asked or could not be."""
        asked = [check.outcome for check in self.checks if check.level == "gate"]
        return None if not asked or "inconclusive" in asked else all(outcome == "pass" for outcome in asked)

    @property
    def failures(self) -> tuple[Check, ...]:
        """All findings."""
        return tuple(check for check in self.checks if check.outcome == "fail")

    @property
    def exit_code(self) -> int:
        """0 passed, 1 the gate failed, 5 invalid."""
        if not self.valid:
            return 5
        return 1 if self.gate_passed is False else 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for machines."""
        return {
            "file": self.file,
            "valid": self.valid,
            "gate_passed": self.gate_passed,
            "exit_code": self.exit_code,
            "digest": self.receipt.digest if self.receipt else None,
            "checks": [asdict(check) for check in self.checks],
        }


def verify(path: str | PathLike[str], *, gate: bool = True, now: datetime | None = None) -> Report:
    """Checks a receipt at the levels of form, consistency and gate.

    Args:
        path: The receipt; its side files lie beside it.
        gate: Whether to ask the gate.
        now: The verifier's clock, UTC; a receipt from the future is refused.

    Raises:
        MissingReceiptError: There is no such file. Everything else is a finding in the report.
    """
    file = os.fspath(path)
    checks, receipt = _form(file)
    if receipt is None:
        checks += [_left_out("consistency", name) for name in RULES]
        checks += [_left_out("gate", "gate")] if gate else []
        return Report(file=file, checks=tuple(checks))
    view = View(receipt, tuple(_table(path, side) for side in receipt.side_files), now or datetime.now(UTC))
    checks += _consistency(view)
    if gate:
        checks += [
            Check(level="gate", name=demand.name, outcome=demand.outcome, path=demand.path, message=demand.why)
            for demand in demands(receipt)
        ]
    return Report(file=file, checks=tuple(checks), receipt=receipt)


def _table(path: str | PathLike[str], side: SideFile) -> list[Row] | ReceiptError:
    try:
        return read_table(path, side)
    except ReceiptError as error:
        return error


def _form(file: str) -> tuple[list[Check], Receipt | None]:
    """Level 1, and the receipt if there is one to go on with."""
    receipt = None
    try:
        data = load(file)
    except MissingReceiptError:
        raise
    except ReceiptError as error:
        return [_finding("form.json", error)], None
    checks = [Check(level="form", name="form.json", outcome="pass", message="It is one JSON object, within limits.")]
    try:
        receipt = decode(data)
    except ReceiptError as error:
        if error.path == "schema_version":
            return [*checks, _finding("form.version", error)], None
        others = [breach for breach in problems(data) if breach.path != error.path]
        return checks + [_finding("form.fields", error)] + [_finding("form.schema", b) for b in others], None
    checks.append(
        Check(level="form", name="form.fields", outcome="pass", message="Version, fields and types are known here.")
    )
    breaches = problems(data)
    checks += [_finding("form.schema", breach) for breach in breaches] or [
        Check(level="form", name="form.schema", outcome="pass", message="It fits the schema.")
    ]
    digest = digest_of(data)
    checks.append(
        Check(level="form", name="form.digest", outcome="pass", path="digest", message="The digest is its own.")
        if receipt.digest == digest
        else Check(
            level="form",
            name="form.digest",
            outcome="fail",
            path="digest",
            message=f"is {receipt.digest or 'empty'}, but the content makes {digest}",
        )
    )
    return checks, None if breaches else receipt


def _consistency(view: View) -> Iterator[Check]:
    """Level 2: every rule, with each of its findings."""
    for name, rule in RULES.items():
        findings = list(islice(rule.check(view), MAX_FINDINGS))
        for path, message in findings:
            yield Check(level="consistency", name=name, outcome="fail", path=path, message=message)
        if not findings:
            yield Check(level="consistency", name=name, outcome="pass", message=rule.says)


def _finding(name: str, error: ReceiptError) -> Check:
    message = error.reason if error.remedy is None else f"{error.reason}; {error.remedy}"
    return Check(level="form", name=name, outcome="fail", path=error.path, message=message)


def _left_out(level: Level, name: str) -> Check:
    return Check(level=level, name=name, outcome="inconclusive", message="not checked: the form is broken")
