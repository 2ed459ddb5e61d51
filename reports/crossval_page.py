"""The page of one run: the verdict in words, the ladder, every operation by layer and position, and what it rests on.

Sentences are those of the console and of `report.md`. The tables beside the receipt go into the page as they are; the
script only draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd

from receipts.gate import gate
from receipts.lanes import OUTCOMES, RUNGS, Lane, gate_reason
from receipts.record import Receipt
from receipts.tables import EDGES
from reports import sentences
from reports.frames import Frames, tap_order
from reports.page import render
from reports.sentences import SYMBOLS, number, percent, place

#: Columns of the rows that the script gets, in its order.
_CELL = ("tap", "layer", "ratio", "limit", "outcome", "max_abs_err", "max_abs_ref", "worst_token", "worst_index")
_PROFILE = ("errors", "ours", "theirs")
_POINT = ("position", "phase", "rel_l2", "floor", "top1_equal", "near_tie", "kl", "margin")
_TOKEN = ("id", "text", "ours", "ours_text")


def crossval_page(receipt: Receipt, tables: Frames, repro: Mapping[str, str] | None = None) -> str:
    """The page.

    Args:
        receipt: The run.
        tables: Its frames.
        repro: Lane → folder in which its defect can be reproduced, relative to the page.

    Returns:
        HTML that needs nothing beside it.
    """
    refused = [result for result in gate(receipt) if result.outcome != "pass"]
    return render(
        "crossval.html",
        script="crossval.js",
        title=f"{'Not passed' if refused else 'Passed'}: cross-validation",
        data={"lanes": [_inside(lane, tables) for lane in receipt.lanes], "edges": list(EDGES)},
        passed=not refused,
        symbols=SYMBOLS,
        outcomes=list(OUTCOMES),
        rungs=list(RUNGS),
        tally=sentences.tally(receipt),
        refused=[{"name": result.name, "why": result.why} for result in refused],
        counts=receipt.test_results.to_dict(),
        findings=[_finding(lane, tables, repro or {}) for lane in receipt.lanes if not sentences.simply_passed(lane)],
        lanes=[_lane(lane) for lane in receipt.lanes],
        ties=[_tie(lane, tie, tables) for lane in receipt.lanes for rung in lane.rungs for tie in rung.near_ties],
        receipt=receipt.to_dict(),
        speeds=[_speed(row) for row in receipt.performance],
    )


def ranges(numbers: Sequence[int]) -> str:
    """Positions as people write them: `0–3, 7`."""
    ordered = sorted(set(numbers))
    if not ordered:
        return ""
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1]
    parts = [ordered[a:b] for a, b in zip([0, *breaks], [*breaks, len(ordered)], strict=True)]
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)


def _finding(lane: Lane, tables: Frames, repro: Mapping[str, str]) -> dict[str, Any]:
    """A lane that did not simply pass: its sentence, and each part of it under a name."""
    stop, found, cause = sentences.stopped_at(lane), lane.located, lane.cause
    facts: list[dict[str, Any]] = []

    def say(name: str, text: str, **more: object) -> None:
        facts.append({"name": name, "text": text, **more})

    if stop is not None:
        say("Rung", f"{stop.name} ({stop.outcome}): {stop.why}")
    if found is not None:
        say("First wrong", place(found.tap, found.layer), code=f"blk.{found.layer} {found.tap}" * (found.layer >= 0))
        say("Positions", _positions(lane, tables))
        say("Worst element", _worst(lane, tables))
    if cause is not None and cause.name:
        say("Cause", cause.explanation or cause.name)
        bars = [{"name": cause.name, "share": cause.explained, "text": percent(cause.explained)}]
        if cause.runner_up:
            share = cause.runner_up_explained
            bars.append({"name": cause.runner_up, "share": share, "text": percent(share)})
        say("Explained by replay", "", bars=bars)
    elif found is not None or cause is not None:
        say("Cause", f"unexplained: no known defect reproduces it. {cause.explanation if cause else ''}".strip())
    if cause is not None and cause.caveat:
        say("Place", cause.caveat)
    for vote in lane.votes:
        say(
            f"Vote on {vote.rung}",
            f"the odd one is {vote.odd}" if vote.odd else "no single odd one",
            votes=[{"name": name, "word": word} for name, word in vote.witnesses.items()],
        )
    if lane.name in repro:
        say("Repro", "", link=repro[lane.name])
    elif found is not None and not found.integer:
        say("Repro", "not made yet", code=f'bitnet validate minimise --only "{lane.name}"')
    if declared := lane.known_deviation:
        say("Known deviation", f"{declared.name}, {declared.status}: {declared.reason}")
    say("Gate", sentences.gate(lane))
    said = sentences.sentence(lane).removeprefix(f"{lane.name}: ")
    return {
        "name": lane.name,
        "outcome": lane.outcome,
        "counts": sentences.counts(lane),
        "verdict": sentences.verdict(lane),
        "sentence": said[:1].upper() + said[1:],
        "facts": facts,
    }


def _positions(lane: Lane, tables: Frames) -> str:
    assert lane.located is not None
    wrong, found = lane.located.positions, lane.located
    rows = tables.profiles
    mine = rows[(rows["lane"] == lane.name) & (rows["tap"] == found.tap) & (rows["layer"] == found.layer)]
    lengths = [len(errors) for errors in mine["errors"] if _wrong(errors, found.limit) == list(wrong)]
    if lengths and len(wrong) == lengths[0]:
        return f"all {len(wrong)}"
    return (ranges(wrong) or "not listed") + (f" of {lengths[0]}" if lengths else "")


def _wrong(errors: Sequence[float | None], limit: float) -> list[int]:
    return [i for i, error in enumerate(errors) if error is None or error > limit]


def _worst(lane: Lane, tables: Frames) -> str:
    found = lane.located
    assert found is not None
    rows = tables.operations
    mine = rows[(rows["lane"] == lane.name) & (rows["tap"] == found.tap) & (rows["layer"] == found.layer)]
    case = str(mine[mine["outcome"] == "fail"]["case"].iloc[0]) if (mine["outcome"] == "fail").any() else ""
    text = _token(tables, lane.name, case, found.worst_token)
    token = f"position {found.worst_token}" + (f" (token “{text}”)" if text else "")
    return (
        f"{token}, column {found.worst_index}: differs by {number(found.max_abs_err)} "
        f"where values reach {number(found.max_abs_ref)}; "
        + ("integers must be equal" if found.integer else f"limit {number(found.limit)} of that")
    )


def _token(tables: Frames, lane: str, case: str, position: int) -> str:
    rows = tables.tokens
    mine = rows[(rows["lane"] == lane) & (rows["case"] == case.partition(", ")[0]) & (rows["position"] == position)]
    return str(mine["text"].iloc[0]) if len(mine) else ""


def _tie(lane: Lane, tie: Any, tables: Frames) -> dict[str, Any]:  # noqa: ANN401  # a NearTie
    rows = tables.tokens
    mine = rows[(rows["lane"] == lane.name) & (rows["case"] == tie.case) & (rows["position"] == tie.position + 1)]
    texts = (str(mine["ours_text"].iloc[0]), str(mine["text"].iloc[0])) if len(mine) else ("", "")
    return {
        "lane": lane.name,
        "case": tie.case,
        "position": tie.position,
        "margin": number(tie.margin),
        "floor": number(tie.floor),
        "ours": f"{tie.ours} “{texts[0]}”" if texts[0] else str(tie.ours),
        "theirs": f"{tie.theirs} “{texts[1]}”" if texts[1] else str(tie.theirs),
    }


def _lane(lane: Lane) -> dict[str, Any]:
    met, why = gate_reason(lane)
    found = {rung.name: rung for rung in lane.rungs}
    rungs = []
    for name in RUNGS:
        rung = found.get(name)
        outcome = rung.outcome if rung else "inconclusive"
        rungs.append(
            {
                "name": name,
                "outcome": outcome,
                "symbol": SYMBOLS[outcome],
                "metric": rung.metric if rung else "",
                "measured": number(rung.measured) if rung and rung.measured is not None else "",
                "limit": number(rung.limit) if rung and rung.limit is not None else "",
                "compared": rung.compared if rung else 0,
                "why": rung.why if rung else "absent",
            }
        )
    floor = lane.noise_floor
    return {
        "name": lane.name,
        "model": lane.model,
        "reference": lane.reference,
        "outcome": lane.outcome,
        "remark": sentences.remark(lane),
        "climbed": lane.climbed or "nothing",
        "gate": (("met: " if met else "not met: ") + why) if lane.required else "not required",
        "counts": sentences.counts(lane),
        "numerics": ", ".join(f"{name} {value}" for name, value in lane.numerics.items()),
        "floor": f"{floor.metric} {number(floor.value)} ({floor.how})" if floor else "",
        "rungs": rungs,
    }


def _inside(lane: Lane, tables: Frames) -> dict[str, Any]:
    """What the script draws of a lane: rows as arrays, by case."""
    operations = _of(tables.operations, lane).merge(
        _of(tables.profiles, lane), on=["lane", "case", "tap", "layer"], how="left"
    )
    found = lane.located
    return {
        "name": lane.name,
        "outcome": lane.outcome,
        "floor": _floor(lane),
        "located": [found.tap, found.layer] if found else None,
        "taps": tap_order(operations) if len(operations) else [],
        "operations": _by_case(operations, (*_CELL, *_PROFILE)),
        "positions": _by_case(_of(tables.positions, lane), _POINT),
        "tokens": _by_case(_of(tables.tokens, lane), _TOKEN),
    }


def _of(rows: pd.DataFrame, lane: Lane) -> pd.DataFrame:
    return rows[rows["lane"] == lane.name]


def _floor(lane: Lane) -> float | None:
    """The noise floor, where it is of what the chart shows."""
    metric = "" if lane.noise_floor is None else lane.noise_floor.metric.lower().replace("_", "").replace(" ", "")
    return lane.noise_floor.value if lane.noise_floor and ("rell2" in metric or "relativel2" in metric) else None


def _by_case(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, list[list[Any]]]:
    made: dict[str, list[list[Any]]] = {}
    for case, values in zip(rows["case"], rows[list(columns)].itertuples(index=False), strict=True):
        made.setdefault(str(case), []).append([_json(value) for value in values])
    return made


def _json(value: Any) -> Any:  # noqa: ANN401  # a cell of a frame, as JSON has it
    if isinstance(value, list | str):
        return value
    if value is None or value != value:
        return None
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
    return value


def _speed(row: Any) -> dict[str, Any]:  # noqa: ANN401  # a Performance
    return {
        "model": row.model,
        "what": row.what.replace("_", " "),
        "engine": row.engine,
        "threads": row.threads,
        "rate": f"{row.tokens_per_second:,.1f}" if row.tokens else "–",
        "milliseconds": f"{1000 * median(row.seconds):,.2f}" if row.seconds else "–",
        "runs": row.n,
    }
