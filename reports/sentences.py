"""What a lane's record says, in plain sentences: what is wrong, where, whose fault, why, and what the gate makes of it.

The console, the page and the ladder picture all say it with these words.
"""

from __future__ import annotations

import math
import re
import sys

from receipts.lanes import Lane, Rung, gate_reason
from receipts.record import Receipt

#: Outcome → the symbol beside its word, and what stands for it where the encoding has no such letters.
SYMBOLS = {"pass": "✓", "fail": "✗", "error": "!", "unsupported": "–", "inconclusive": "?"}
ASCII_SYMBOLS = {"pass": "+", "fail": "x", "error": "!", "unsupported": "-", "inconclusive": "?"}

_IN_WORDS = {
    "fail": "fails",
    "error": "ended in an error",
    "unsupported": "could not be compared",
    "inconclusive": "is inconclusive",
}


def number(value: float | None) -> str:
    """Two significant digits, as a person writes them; a dash for nothing."""
    if value is None or value != value:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= sys.float_info.max:  # the largest double stands for infinity where JSON has none
        return "∞"
    if 0.01 <= abs(value) < 1000:
        return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def percent(share: float) -> str:
    """A share in per cent; never rounded up to all of it."""
    value = math.floor(round(share * 1000, 6)) / 10
    return f"{value:.1f}".removesuffix(".0") + "%"


def times(ratio: float) -> str:
    """A ratio of two speeds."""
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def place(tap: str, layer: int) -> str:
    """Where in the graph."""
    return tap if layer < 0 else f"{tap} of layer {layer}"


def counts(lane: Lane) -> bool:
    """Whether the gate is content with this lane. A stale declaration never is, even of a lane that is not required."""
    if not lane.required and lane.known_deviation is None:
        return True
    return gate_reason(lane)[0]


def gate(lane: Lane) -> str:
    """What the gate makes of the lane, in a word or two."""
    if lane.known_deviation is not None:
        return "known deviation, proven" if lane.deviates_as_declared else "known deviation is stale"
    if not lane.required:
        return "not required"
    return "counts as passed" if counts(lane) else "fails the gate"


def verdict(lane: Lane) -> str:
    """The lane in a few words: what was found."""
    if lane.blame == "reference":
        return "reference is wrong" + _cause(lane)
    if lane.blame == "engine":
        return "engine is wrong" + _cause(lane)
    if lane.outcome == "pass":
        passed = sum(rung.outcome == "pass" for rung in lane.rungs)
        return "passed" if passed == len(lane.rungs) else f"passed {passed} of {len(lane.rungs)} rungs"
    stop = stopped_at(lane)
    return lane.outcome if stop is None else f"{lane.outcome} at {stop.name}"


def remark(lane: Lane) -> str:
    """What was found and what the gate makes of it, without what goes without saying."""
    return verdict(lane) if gate(lane) == "counts as passed" else f"{verdict(lane)} · {gate(lane)}"


def stopped_at(lane: Lane) -> Rung | None:
    """The rung that decided how the lane ended: the first that ended like the lane, else the first not passed."""
    not_passed = [rung for rung in lane.rungs if rung.outcome != "pass"]
    return next((rung for rung in not_passed if rung.outcome == lane.outcome), next(iter(not_passed), None))


def near_ties(lane: Lane) -> int:
    """How many different tokens the noise explains."""
    return len({(tie.case, tie.position) for rung in lane.rungs for tie in rung.near_ties})


def tally(receipt: Receipt) -> str:
    """Lanes and near-ties of a receipt, counted."""
    required = [lane for lane in receipt.lanes if lane.required]
    passed = sum(counts(lane) and lane.known_deviation is None for lane in required)
    said = [f"{passed} of {len(required)} required lanes passed"]
    if deviate := sum(lane.deviates_as_declared for lane in required):
        said.append(f"{deviate} deviate{'s' * (deviate == 1)} as declared")
    if more := len(receipt.lanes) - len(required):
        said.append(f"{more} more not required")
    if ties := sum(near_ties(lane) for lane in receipt.lanes):
        said.append(f"{ties} near-tie{'s' * (ties > 1)}")
    return ", ".join(said)


def simply_passed(lane: Lane) -> bool:
    """Whether there is nothing to say about the lane."""
    return lane.outcome == "pass" and lane.known_deviation is None and lane.blame is None and lane.located is None


def sentence(lane: Lane) -> str:
    """What happened in a lane that did not simply pass, its clauses in the order in which a person asks."""
    stop = stopped_at(lane)
    clauses: list[str] = []
    if lane.blame == "reference":
        clauses.append(f"the reference is wrong{_explained(lane)}")
    elif lane.blame == "engine":
        clauses.append(f"the engine is wrong{_explained(lane)}")
    elif stop is None or lane.outcome == "pass":
        clauses.append("passed")
    elif all(rung.outcome == "unsupported" for rung in lane.rungs):
        clauses.append("could not be compared" + _reason(stop))
    else:
        clauses.append(f"the {stop.name} rung {_IN_WORDS[stop.outcome]}{_reason(stop)}")
        if lane.cause is not None and lane.cause.name:
            clauses.append((lane.cause.explanation or lane.cause.name).strip().rstrip("."))
    clauses += _evidence(lane)
    return f"{lane.name}: {'; '.join(clauses)}."


def missing_rungs(lane: Lane) -> list[str]:
    """The rungs of a lane that could not be compared, each reason once."""
    reasons: dict[str, list[str]] = {}
    for rung in lane.rungs:
        if rung.outcome == "unsupported":
            reasons.setdefault(rung.why.strip().rstrip("."), []).append(rung.name)
    return [", ".join(names) + (f" ({why})" if why else "") for why, names in reasons.items()]


def _evidence(lane: Lane) -> list[str]:
    clauses: list[str] = []
    if lane.located is not None:
        found = lane.located
        clauses.append(f"first wrong operation {place(found.tap, found.layer)} ({_size(lane)})")
    cause = lane.cause
    if cause is not None and cause.name:
        next_best = f" (next best {_value(cause.runner_up)}: {percent(cause.runner_up_explained)})"
        clauses.append(
            f"replaying with {_value(cause.name)} explains {percent(cause.explained)} of the difference"
            + (next_best if cause.runner_up else "")
        )
    elif lane.located is not None or cause is not None:
        tried = cause.explanation.strip().rstrip(".").removeprefix("unexplained").lstrip(": ") if cause else ""
        clauses.append("unexplained: no known defect reproduces it" + (f" ({tried})" if tried else ""))
    if cause is not None and cause.caveat:
        clauses.append(cause.caveat)
    if lane.known_deviation is not None:
        clauses.append(
            "declared as a known deviation and proven again in this run"
            if lane.deviates_as_declared
            else f"declared as the known deviation {lane.known_deviation.name!r}, but this run does not show it: "
            "the declaration is stale and fails the gate"
        )
    elif lane.required and not counts(lane):
        clauses.append("this lane is required")
    return clauses


def _size(lane: Lane) -> str:
    found = lane.located
    if found is None:
        return ""
    at = f"worst at token {found.worst_token}, column {found.worst_index}"
    if found.integer:
        return f"integers differ by up to {number(found.max_abs_err)}, {at}"
    if found.max_abs_ref == 0:
        return f"error {number(found.max_abs_err)} where the reference is 0, {at}"
    return (
        f"error {number(found.max_abs_err / found.max_abs_ref)} × the largest value, limit {number(found.limit)}, {at}"
    )


def _cause(lane: Lane) -> str:
    return f": {lane.cause.name}" if lane.cause is not None and lane.cause.name else ""


def _explained(lane: Lane) -> str:
    if lane.cause is None or not lane.cause.name:
        return ""
    return f": {(lane.cause.explanation or lane.cause.name).strip().rstrip('.')}"


def _value(hypothesis: str) -> str:
    """`activation=silu` is read as "silu"; a number keeps its name."""
    return re.sub(r"\b[a-z_]+=(?=[a-z])", "", hypothesis)


def _reason(rung: Rung) -> str:
    if rung.why.strip():
        return f": {rung.why.strip().rstrip('.')}"
    if rung.measured is not None and rung.limit is not None:
        return f": {rung.metric} {number(rung.measured)}, limit {number(rung.limit)}"
    return ""
