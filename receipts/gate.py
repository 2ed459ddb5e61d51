"""The gate: does a receipt, true or not, say what a CI job asks for?

Strict, and the only policy so far: every required lane passed with all its required rungs, or deviates
exactly as declared beforehand and proven again; there is one; nothing else that was measured failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from receipts.lanes import gate_reason
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


def gate(receipt: Receipt) -> tuple[GateResult, ...]:
    """Every demand with its outcome. The gate passes when all of them pass."""
    return tuple(_demands(receipt))


def _demands(receipt: Receipt) -> Iterator[GateResult]:
    required = [(i, lane) for i, lane in enumerate(receipt.lanes) if lane.required]
    yield _result(
        "gate.required",
        "lanes",
        met=bool(required),
        why=f"{len(required)} of {len(receipt.lanes)} lanes are required"
        if required
        else "no lane is required, so nothing is shown",
    )
    for i, lane in required:
        met, why = gate_reason(lane)
        yield _result(f"gate.lane.{lane.name}", f"lanes[{i}]", met=met, why=why)
    for i, lane in enumerate(receipt.lanes):
        stale = lane.known_deviation is not None and not lane.deviates_as_declared
        if stale and not lane.required:
            yield _result(f"gate.lane.{lane.name}", f"lanes[{i}].known_deviation", met=False, why=gate_reason(lane)[1])
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


def _result(name: str, path: str, *, met: bool, why: str) -> GateResult:
    return GateResult(name=name, path=path, outcome="pass" if met else "fail", why=why)
