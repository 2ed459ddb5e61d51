"""The gate: does a receipt, true or not, show what a policy asks for?

Every lane that the receipt requires passed with its required rungs, or deviates exactly as declared beforehand, proven
again and accepted by the policy; there is one; nothing else that was measured failed. What a policy adds comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Literal

from receipts.baseline import compare
from receipts.lanes import Lane, gate_reason
from receipts.policy import Policy, read_policy
from receipts.record import Receipt

GateOutcome = Literal["pass", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One demand of the gate.

    Attributes:
        name: `gate.lane.<name>`, or another demand's.
        path: Where in the receipt.
        outcome: Whether it is met.
        why: One sentence.
    """

    name: str
    path: str
    outcome: GateOutcome
    why: str


def gate(receipt: Receipt, policy: Policy | None = None, *, now: datetime | None = None) -> tuple[GateResult, ...]:
    """Every demand with its outcome. The gate passes when all of them pass.

    Args:
        receipt: Whose form and consistency hold, or its answers count for nothing.
        policy: `strict` if None.
        now: The verifier's clock, UTC, for what expires.

    Raises:
        SettingError: A baseline of the policy cannot be used.
    """
    policy, now = policy or read_policy("strict"), now or datetime.now(UTC)
    return (
        *_lanes(receipt, policy, now),
        *_measured(receipt),
        *_evidence(receipt, policy, now),
        *_compared(receipt, policy),
    )


def _lanes(receipt: Receipt, policy: Policy, now: datetime) -> Iterator[GateResult]:
    asked: dict[int, list[str]] = {i: [] for i, lane in enumerate(receipt.lanes) if lane.required}
    yield _result(
        "gate.required",
        "lanes",
        met=bool(asked),
        why=f"{len(asked)} of {len(receipt.lanes)} lanes are required"
        if asked
        else "no lane is required, so nothing is shown",
    )
    for demand in policy.lanes:
        fitting = [i for i, lane in enumerate(receipt.lanes) if fnmatchcase(lane.name, demand.match)]
        yield _result(
            f"gate.match.{demand.match}", "lanes", met=bool(fitting), why=f"{len(fitting)} lane(s) have such a name"
        )
        for i in fitting:
            asked.setdefault(i, []).extend(demand.rungs)
    for i, rungs in sorted(asked.items()):
        met, why = _lane(receipt.lanes[i], tuple(rungs), policy, now)
        yield _result(f"gate.lane.{receipt.lanes[i].name}", f"lanes[{i}]", met=met, why=why)
    for i, lane in enumerate(receipt.lanes):
        stale = lane.known_deviation is not None and not lane.deviates_as_declared
        if stale and i not in asked:
            yield _result(f"gate.lane.{lane.name}", f"lanes[{i}].known_deviation", met=False, why=gate_reason(lane)[1])


def _lane(lane: Lane, rungs: tuple[str, ...], policy: Policy, now: datetime) -> tuple[bool, str]:
    met, why = gate_reason(lane)
    if not met:
        return met, why
    if lane.known_deviation is not None:
        allowed = policy.allows(lane.known_deviation.name, lane.name)
        if allowed is None:
            return False, f"the policy {policy.name!r} does not accept the deviation {lane.known_deviation.name!r}"
        if now.date() > allowed.expires:
            return False, f"the deviation {allowed.name!r} was accepted until {allowed.expires}; mend it, or renew it"
        return True, f"{why}; accepted until {allowed.expires}"
    for name in rungs:
        rung = lane.rung(name)
        if rung is None or rung.outcome != "pass":
            return False, f"rung {name} of the policy: {f'{rung.outcome}; {rung.why}' if rung else 'absent'}"
    for rung in lane.rungs:
        ceiling = policy.limits.get(rung.name)
        if ceiling is None or rung.outcome != "pass":
            continue
        for word, value in (("measured", rung.measured), ("judged by a limit of", rung.limit)):
            if value is not None and value > ceiling:
                return False, f"rung {rung.name}: {word} {value:g}, the policy's ceiling is {ceiling:g}"
        if policy.near_ties is not None and len(rung.near_ties) > policy.near_ties * rung.compared:
            return False, f"rung {rung.name}: {len(rung.near_ties)} near-ties among {rung.compared} are too many"
    return True, why


def _measured(receipt: Receipt) -> Iterator[GateResult]:
    yield _result(
        "gate.compute_path",
        "compute_path",
        met=receipt.compute_path == "real",
        why=f"compute_path is {receipt.compute_path!r}",
    )
    failed = [f"{row.kernel} on {row.weight_type}" for row in receipt.accuracy if not row.passed]
    yield _result(
        "gate.accuracy",
        "accuracy",
        met=not failed,
        why=f"over the limit: {', '.join(failed)}"
        if failed
        else f"measured on {len(receipt.accuracy)} weight type(s), all within limits",
    )
    unequal = [row.what for row in receipt.determinism if not row.equal]
    yield _result(
        "gate.determinism",
        "determinism",
        met=not unequal,
        why=f"not the same bits: {', '.join(unequal)}"
        if unequal
        else f"{len(receipt.determinism)} trial(s), all equal",
    )
    yield _result(
        "gate.corrections",
        "corrections",
        met=not receipt.corrections,
        why=f"{len(receipt.corrections)} correction(s) to the model"
        if receipt.corrections
        else "the model is as it is",
    )


def _evidence(receipt: Receipt, policy: Policy, now: datetime) -> Iterator[GateResult]:
    least = policy.evidence
    found = {
        "cases": (len(receipt.cases), least.cases, "cases"),
        "tokens": (sum(part.tokens for part in receipt.ledger), least.tokens, "ledger"),
        "live": (
            len({r.name for r in receipt.references if r.obtained in ("live", "server")}),
            least.live,
            "references",
        ),
        "determinism": (len(receipt.determinism), least.determinism, "determinism"),
        "accuracy": (len(receipt.accuracy), least.accuracy, "accuracy"),
    }
    for name, (number, needed, path) in found.items():
        if needed:
            yield _result(
                f"gate.evidence.{name}", path, met=number >= needed, why=f"{number}, at least {needed} needed"
            )
    if least.clean:
        clean = bool(receipt.identity.git_commit) and receipt.identity.git_dirty is False
        yield _result(
            "gate.evidence.clean",
            "identity.git_dirty",
            met=clean,
            why=f"from commit {receipt.identity.git_commit[:12]}" if clean else "not from a checkout without changes",
        )
    if least.age_days is not None:
        age = now - datetime.fromisoformat(receipt.timestamp).astimezone(UTC)
        yield _result(
            "gate.evidence.age",
            "timestamp",
            met=age <= timedelta(days=least.age_days),
            why=f"{age.total_seconds() / 86400:.1f} days old, at most {least.age_days:g} allowed",
        )


def _compared(receipt: Receipt, policy: Policy) -> Iterator[GateResult]:
    for row in compare(receipt, policy.baseline):
        yield _result(f"gate.baseline.{row.name}", row.path, met=row.held, why=row.why)


def _result(name: str, path: str, *, met: bool, why: str) -> GateResult:
    return GateResult(name=name, path=path, outcome="pass" if met else "fail", why=why)
