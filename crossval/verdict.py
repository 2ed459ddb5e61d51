"""What follows from the lanes of a run: its exit code, what it claims, and what became of a declared deviation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crossval.lane import Row
from crossval.plan import Deviation
from receipts import record as r
from receipts.lanes import lane_outcome

#: A cause counts as proven for a declared deviation from this share of the difference on.
DEVIATION_EXPLAINED = 0.99


def exit_code(receipt: r.Receipt) -> int:
    """What the gate would say of a run: 0, 1 where something is wrong, 4 where something could not be judged.

    Wrong are a required lane that failed, a declared deviation that was not found again, a kernel over its limit and
    a result that changed between trials.
    """
    required = [lane for lane in receipt.lanes if lane.required]
    open_lanes = [lane for lane in required if lane.outcome != "pass" and not lane.deviates_as_declared]
    wrong = (
        any(lane.outcome == "fail" for lane in open_lanes)
        or any(lane.known_deviation is not None and not lane.deviates_as_declared for lane in receipt.lanes)
        or not all(kernel.passed for kernel in receipt.accuracy)
        or not all(trial.equal for trial in receipt.determinism)
    )
    if wrong:
        return 1
    return 4 if open_lanes or not required else 0


def claims(lanes: Sequence[r.Lane]) -> r.Claims:
    """What the lanes support, and what they leave open."""
    passed = [lane for lane in lanes if lane.required and lane.outcome == "pass"]
    proven = [lane for lane in lanes if lane.deviates_as_declared]
    supports = [
        f"{lane.name}: every required rung up to {lane.climbed} held, on the cases listed" for lane in passed
    ] + [f"{lane.name}: the reference deviates as declared ({lane.cause.name})" for lane in proven if lane.cause]
    does_not = [
        "nothing is shown of other models, other prompts, longer contexts or other machines",
        "agreement is not quality: a model can be wrong in every engine alike",
        "a recorded reference shows what was recorded, not what its build computes today",
    ]
    open_lanes = [lane for lane in lanes if lane.outcome != "pass" and not lane.deviates_as_declared]
    does_not += [f"{lane.name}: {lane.outcome}" for lane in open_lanes]
    return r.Claims(supports=tuple(supports), does_not=tuple(does_not))


def deviation(
    declared: Deviation | None,
    required_rungs: tuple[r.RungName, ...],
    operations: Iterable[Row],
    located: r.Located | None,
    blame: str | None,
    cause: r.Cause | None,
    rungs: tuple[r.Rung, ...],
) -> r.KnownDeviation | None:
    """What became of a declaration; None where the reference ended before it could be tried."""
    if declared is None or lane_outcome(rungs, required_rungs) not in ("pass", "fail"):
        return None
    wrong = {row["tap"] for row in operations if row["outcome"] == "fail"}
    proven = (
        wrong == {declared.tap}  # a second fault must not hide behind a declared one
        and located is not None
        and (located.tap, located.layer) == (declared.tap, declared.layer)
        and blame == "reference"
        and cause is not None
        and cause.name == declared.cause
        and cause.explained >= DEVIATION_EXPLAINED
    )
    return r.KnownDeviation(name=declared.name, reason=declared.reason, status="proven" if proven else "stale")
