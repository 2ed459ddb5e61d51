"""Verification: recompute instead of trusting, report everything and not only the first fault.

Form: JSON, version, types, schema, digest. Consistency: every rule in `receipts.rule.RULES`. Signature: enough trusted
signers vouch for exactly these bytes. Replay: an engine computes some of it again. Gate: the policy is met. What is
false is invalid, whatever it says about parity; so the gate counts only on a receipt for which the rest holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from os import PathLike
from typing import Any, Literal, get_args

import receipts.check_agreement
import receipts.check_files
import receipts.check_lanes
import receipts.check_ledger
import receipts.check_profiles
import receipts.check_rows
import receipts.check_runs
import receipts.check_speed
import receipts.check_subject
import receipts.check_tables
import receipts.check_witnesses  # noqa: F401  # importing them enters their rules in the table
from receipts.codec import digest_of
from receipts.errors import MissingReceiptError, ReceiptError
from receipts.gate import gate as demands
from receipts.policy import Policy, read_policy
from receipts.read import decode, load, read_table
from receipts.record import Receipt, SideFile
from receipts.replay import CASES, Runner, draw_nonce
from receipts.replay import replay as recompute
from receipts.rule import RULES, View
from receipts.schema import problems
from receipts.sign import check_signature
from receipts.tables import Row
from receipts.trust import Trust

Level = Literal["form", "consistency", "signature", "replay", "gate"]
LEVELS: tuple[Level, ...] = get_args(Level)
CheckOutcome = Literal["pass", "fail", "inconclusive"]

#: A broken table breaks every row; a person needs the first few.
MAX_FINDINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, or one of its findings.

    Attributes:
        level: What kind of question it answers.
        name: Of the rule.
        outcome: `inconclusive` where an earlier fault left nothing to check, or what it takes is not here.
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
        policy: Name of the gate's policy; "" if it was not asked.
        nonce: Of the replay; "" without one.
    """

    file: str
    checks: tuple[Check, ...]
    receipt: Receipt | None = None
    policy: str = ""
    nonce: str = ""

    @property
    def valid(self) -> bool:
        """Whether nothing that was checked is false. What could not be recomputed is not false."""
        return not any(check.outcome == "fail" for check in self.checks if check.level != "gate")

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
        """0 passed, 1 the gate failed, 4 a part could not be replayed, 5 invalid."""
        if not self.valid:
            return 5
        if self.gate_passed is False:
            return 1
        return 4 if any(c.level == "replay" and c.outcome == "inconclusive" for c in self.checks) else 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for machines."""
        return {
            "file": self.file,
            "valid": self.valid,
            "gate_passed": self.gate_passed,
            "exit_code": self.exit_code,
            "digest": self.receipt.digest if self.receipt else None,
            "policy": self.policy,
            "nonce": self.nonce,
            "checks": [asdict(check) for check in self.checks],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """What is computed again.

    Attributes:
        runner: The engine.
        nonce: The verifier's; a fresh one unless given.
        k: Number of cases, None for all.
    """

    runner: Runner
    nonce: str = field(default_factory=draw_nonce)
    k: int | None = CASES


def verify(
    path: str | PathLike[str],
    *,
    gate: bool = True,
    policy: Policy | None = None,
    trust: Trust | None = None,
    replay: ReplayRequest | None = None,
    now: datetime | None = None,
) -> Report:
    """Checks a receipt at the levels that are asked for; form and consistency always are.

    Args:
        path: The receipt; its side files lie beside it.
        gate: Whether to ask the gate.
        policy: Of the gate; `strict` if None.
        trust: Whose signature is required; None requires none.
        replay: What is computed again; None is nothing.
        now: The verifier's clock, UTC; a receipt from the future is refused.

    Raises:
        MissingReceiptError: There is no such file. Everything else that is wrong with it is in the report.
        SettingError: A policy's baseline or a key cannot be used.
    """
    file = os.fspath(path)
    now = now or datetime.now(UTC)
    policy = policy or (read_policy("strict") if gate else None)
    asked: list[Level] = ["consistency", *(["signature"] if trust else []), *(["replay"] if replay else [])]  # type: ignore[list-item]  # three literals
    checks, receipt = _form(file)
    name, nonce = policy.name if gate and policy else "", replay.nonce if replay else ""
    if receipt is None:
        checks += [_left_out("consistency", name) for name in RULES]
        checks += [_left_out(level, level) for level in asked[1:]]
        checks += [_left_out("gate", "gate")] if gate else []
        return Report(file=file, checks=tuple(checks), policy=name, nonce=nonce)
    view = View(receipt, tuple(_table(path, side) for side in receipt.side_files), now)
    checks += _consistency(view)
    if trust is not None:
        checks += _signature(path, receipt, trust)
    if replay is not None:
        checks += _replay(receipt, replay, sound=all(check.outcome == "pass" for check in checks))
    if gate:
        checks += [
            Check(level="gate", name=demand.name, outcome=demand.outcome, path=demand.path, message=demand.why)
            for demand in demands(receipt, policy, now=now)
        ]
    return Report(file=file, checks=tuple(checks), receipt=receipt, policy=name, nonce=nonce)


def _signature(path: str | PathLike[str], receipt: Receipt, trust: Trust) -> Iterator[Check]:
    """Unknown keys and keys past their time are told, but only too few good signatures are a fault."""
    for verdict in check_signature(path, receipt, trust):
        decides = not verdict.name.startswith("signature.key.")
        outcome: CheckOutcome = "pass" if verdict.held else "fail" if decides else "inconclusive"
        yield Check(level="signature", name=verdict.name, outcome=outcome, path=verdict.path, message=verdict.why)


def _replay(receipt: Receipt, request: ReplayRequest, *, sound: bool) -> Iterator[Check]:
    """Nothing is computed for a receipt that is false already: its numbers would be a stranger's wishes."""
    if not sound:
        yield _left_out("replay", "replay")
        return
    for row in recompute(receipt, request.runner, request.nonce, k=request.k):
        outcome: CheckOutcome = row.outcome  # type: ignore[assignment]  # three literals
        yield Check(level="replay", name=row.name, outcome=outcome, path=row.path, message=row.why)


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
    try:
        digest = digest_of(data)
    except ReceiptError as error:  # a number that has no canonical form
        return [*checks, _finding("form.digest", error)], None
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
    return Check(level=level, name=name, outcome="inconclusive", message="not checked: something before it is broken")
