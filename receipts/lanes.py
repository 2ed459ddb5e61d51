"""What a comparison found: one lane is an engine against a reference on a model, climbing eight rungs.

`climb`, `lane_outcome` and `blamed` are the only definitions of how far a lane came, how it ended and whose fault
that is. The comparison calls them when it writes, and the verifier calls them again when it doubts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from receipts.codec import SPARSE, Amount, Count, Index, Name, Record, Share, Token

RungName = Literal["identity", "tokens", "weights", "operations", "logits", "decode", "greedy", "quality"]
Outcome = Literal["pass", "fail", "error", "unsupported", "inconclusive"]
Side = Literal["engine", "reference"]

#: The engine's name where a reference's key could stand.
ENGINE = "bitnet"
#: The ladder, in order; each rung gates the next.
RUNGS: tuple[RungName, ...] = get_args(RungName)
#: Metric of an operations rung on which the engine contradicts itself, so that nothing was compared with a reference.
UNWATCHED = "positions whose logits differ when operations are watched"
#: Every way a check can end. Only the first counts as a pass.
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearTie(Record):
    """Two engines chose different tokens where the margin was inside the noise.

    Attributes:
        case: Name of the case.
        position: Position whose logits were compared.
        margin: Logit of the best token minus the second best, the reference's.
        floor: Noise in that margin; a near-tie has margin ≤ floor.
        ours: Token id the engine chose.
        theirs: Token id the reference chose.
    """

    case: Name
    position: Count
    margin: Amount
    floor: Amount
    ours: Token
    theirs: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung(Record):
    """One rung of one lane.

    Attributes:
        name: Which rung.
        outcome: How it ended. `pass` needs something compared and, where both are given, measured ≤ limit.
        why: One sentence that a person reads.
        metric: What was measured, in the field's terms (`max_abs_err / max_abs_ref`); "" if nothing was.
        measured: Its worst value. None if nothing was measured or it was not finite (which is a `fail`).
        limit: What was allowed.
        compared: How many things were compared (ids, tensors, operations, positions).
        near_ties: Differences that noise explains.
    """

    name: RungName
    outcome: Outcome
    why: str
    metric: str = ""
    measured: float | None = None
    limit: float | None = None
    compared: Count = 0
    near_ties: tuple[NearTie, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor(Record):
    """How far one engine differs from itself, measured in the same run.

    Attributes:
        metric: What was measured.
        value: Its value.
        how: Between which two computations.
    """

    metric: Name
    value: Amount
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Located(Record):
    """The first operation that is wrong on the reference's own inputs.

    Attributes:
        tap: Name of the operation's output.
        layer: Layer, −1 outside the layers.
        positions: Token positions where it is wrong.
        max_abs_err: Largest absolute difference.
        max_abs_ref: Largest absolute value of the reference; more where the data amplify float32 rounding.
        limit: Allowed max_abs_err / max_abs_ref (for integer operations: 0).
        worst_token: Position of the worst element.
        worst_index: Column of the worst element.
        integer: Whether the operation is exact, so that any difference is an error.
    """

    tap: Name
    layer: Index
    max_abs_err: Amount
    max_abs_ref: Amount
    limit: Amount
    positions: tuple[Count, ...] = ()
    worst_token: Count = 0
    worst_index: Count = 0
    integer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause(Record):
    """The defect that, put into the oracle, reproduces the odd engine.

    Attributes:
        name: Of the hypothesis (`activation=silu`); "" when none fits (unexplained).
        explained: Share of the difference that it removes, at most 1.
        runner_up: The next best hypothesis; "" if there is none.
        runner_up_explained: Its share.
        explanation: One sentence that a person reads.
        evidence: Whether wrong operations were seen, or logits alone, from which the place is inferred.
        touches: With logits alone, the taps that the hypothesis changes.
    """

    name: str
    explained: Share
    runner_up: str = ""
    runner_up_explained: Share = 0.0
    explanation: str = ""
    evidence: Literal["operations", "logits"] = field(default="operations", metadata=SPARSE)
    touches: tuple[Name, ...] = field(default=(), metadata=SPARSE)

    @property
    def caveat(self) -> str:
        """What was not observed; "" where the wrong operation was."""
        if self.evidence == "operations":
            return ""
        said = "inferred from logits alone: no operation was observed"
        return f"{said}, the hypothesis touches {', '.join(self.touches)}" if self.touches else said


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDeviation(Record):
    """A declared fault of a reference, proven again in this run, or stale.

    Attributes:
        name: Of the declaration.
        reason: Why it is accepted.
        status: `proven` if this run located and explained it; `stale` if not, which fails the gate.
    """

    name: Name
    reason: str
    status: Literal["proven", "stale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote(Record):
    """Who agrees on one rung. Witnesses of one family or one library count once.

    Attributes:
        rung: Which rung.
        witnesses: `bitnet` or a reference's key → whether it agrees with the majority.
        odd: The one that differs from all the others, if there is exactly one.
    """

    rung: RungName
    witnesses: Mapping[str, Literal["agrees", "differs", "absent"]]
    odd: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane(Record):
    """An engine against one reference on one model.

    Attributes:
        name: Unique in the receipt.
        model: Name of the model.
        reference: Key of the reference.
        numerics: The engine's, as declared.
        required: Whether the gate needs this lane.
        required_rungs: Rungs that must pass for the gate.
        outcome: As `lane_outcome` says.
        climbed: As `climb` says.
        rungs: All eight, in order.
        noise_floor: Of this lane.
        located: First wrong operation, if there is one.
        blame: Which side is wrong, if that was shown.
        cause: Why, if that was found.
        known_deviation: Declared beforehand, if so.
        votes: By rung.
    """

    name: Name
    model: Name
    reference: Name
    outcome: Outcome
    rungs: tuple[Rung, ...]
    numerics: Mapping[str, str] = field(default_factory=dict)
    required: bool = False
    required_rungs: tuple[RungName, ...] = ()
    climbed: RungName | None = None
    noise_floor: NoiseFloor | None = None
    located: Located | None = None
    blame: Side | None = None
    cause: Cause | None = None
    known_deviation: KnownDeviation | None = None
    votes: tuple[Vote, ...] = ()

    def rung(self, name: str) -> Rung | None:
        """The rung of that name, or None."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    @property
    def deviates_as_declared(self) -> bool:
        """Whether a known deviation was proven in this run."""
        return self.known_deviation is not None and self.known_deviation.status == "proven"


def gate_reason(lane: Lane) -> tuple[bool, str]:
    """Whether a lane meets what a gate asks of a required lane, and why in one sentence.

    It passed with every required rung; or, where a deviation was declared, exactly that was proven again. A
    declaration that was not found again is stale and fails, so that none outlives its fault.
    """
    declared = lane.known_deviation
    if declared is not None:
        if lane.deviates_as_declared:
            return True, f"deviates as declared, proven again: {declared.reason}"
        if lane.outcome in ("pass", "fail"):
            return False, f"the known deviation {declared.name!r} was not found again; remove it if it is mended"
        return False, f"the lane ended as {lane.outcome}, so the known deviation {declared.name!r} is not proven"
    for name in lane.required_rungs:
        rung = lane.rung(name)
        if rung is None or rung.outcome != "pass":
            return False, f"required rung {name}: {f'{rung.outcome}; {rung.why}' if rung else 'absent'}"
    if lane.outcome != "pass":
        return False, f"the lane ended as {lane.outcome}"
    return True, f"climbed to {lane.climbed or 'nothing'}"


def climb(rungs: Sequence[Rung], required_rungs: Collection[str] = ()) -> RungName | None:
    """The last rung passed on the way up; None if the first was not.

    The way ends at the first rung that did not pass. Only a rung that the reference cannot offer
    (`unsupported`) and that is not required is stepped over.
    """
    top: RungName | None = None
    for rung in rungs:
        if rung.outcome == "pass":
            top = rung.name
        elif rung.outcome != "unsupported" or rung.name in required_rungs:
            break
    return top


def blamed(rungs: Sequence[Rung], votes: Sequence[Vote], reference: str) -> Side | None:
    """Whom the first vote with an odd one names; nobody where no rung failed, or another witness is odd.

    An engine that contradicts itself needs no vote.
    """
    if any(rung.outcome == "fail" and rung.metric == UNWATCHED for rung in rungs):
        return "engine"
    failed = any(rung.outcome == "fail" for rung in rungs)
    odd = next((vote.odd for vote in votes if vote.odd), None) if failed else None
    return "reference" if odd == reference else "engine" if odd == ENGINE else None


def lane_outcome(rungs: Sequence[Rung], required_rungs: Collection[str] = ()) -> Outcome:
    """How a lane ended.

    Any failed rung fails the lane, else any error is an error. A required rung that is unsupported,
    inconclusive or absent makes the lane so. A lane in which nothing passed did not pass.
    """
    outcomes = {rung.outcome for rung in rungs}
    needed = {rung.outcome for rung in rungs if rung.name in required_rungs}
    if not set(required_rungs) <= {rung.name for rung in rungs}:
        needed.add("inconclusive")
    if "pass" not in outcomes:
        needed |= outcomes or {"inconclusive"}
    if "fail" in outcomes:
        return "fail"
    if "error" in outcomes:
        return "error"
    if "unsupported" in needed:
        return "unsupported"
    return "inconclusive" if "inconclusive" in needed else "pass"
