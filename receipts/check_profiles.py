"""The tables that people look into: errors by position with histograms, and the tokens both sides evaluated.

What they add to a verdict is little, so what they say twice is checked all the more: a picture that shows other errors
than the ones judged would mislead with a good receipt behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby

from receipts.check_files import tables
from receipts.evidence import Case
from receipts.lanes import Lane
from receipts.rule import Finding, View, rule
from receipts.tables import BINS, Row

#: Errors by position are written with three digits, which moves them by half a per cent at most.
ROUNDING = 6e-3


@rule("tables.profiles", "Errors by position are those of the operations, each once, and histograms count the values.")
def tables_profiles(view: View) -> Iterator[Finding]:
    """Either every operation has a profile or none has."""
    operations = {_operation(row): row for _, table, rows in tables(view) if table == "operations" for row in rows}
    for i, table, rows in tables(view):
        if table != "profiles":
            continue
        unseen = dict(operations)
        for j, row in enumerate(rows):
            path = f"side_files[{i}]: profiles[{j}]"
            judged = unseen.pop(_operation(row), None)
            if judged is None:
                yield path, f"no operation, or a second profile of one: {row['tap']} of layer {row['layer']}"
            else:
                yield from _profile(path, row, judged)
        if unseen:
            yield f"side_files[{i}]", f"{len(unseen)} of {len(operations)} operations have no profile"


def _operation(row: Row) -> tuple[str, str, str, int]:
    return row["lane"], row["case"], row["tap"], row["layer"]


def _profile(path: str, row: Row, judged: Row) -> Iterator[Finding]:
    errors: list[float | None] = row["errors"]
    infinite = None in errors
    if not errors or judged["compared"] % len(errors):
        yield f"{path}.errors", f"{len(errors)} positions, but {judged['compared']} values were compared"
        return
    if any(error is not None and error < 0 for error in errors):
        yield f"{path}.errors", "a magnitude is negative"
    if infinite != (judged["ratio"] is None):
        yield (
            f"{path}.errors",
            f"finite everywhere: {not infinite}, but the operation's ratio is {judged['ratio']}",
        )
    elif not infinite:
        largest = max(error for error in errors if error is not None)
        if not math.isclose(largest, judged["ratio"], rel_tol=ROUNDING):
            yield f"{path}.errors", f"at most {largest:g}, but the operation's is {judged['ratio']:g}"
        worst = judged["worst_token"]
        if worst is not None and (worst >= len(errors) or errors[worst] != largest):
            yield f"{path}.errors", f"the largest is not at position {worst}, where the operation has its worst value"
    for side in ("ours", "theirs"):
        counts: list[int] = row[side]
        total, compared = sum(counts), judged["compared"]
        whole = total == compared or (infinite and total < compared)
        if len(counts) != BINS or min(counts, default=0) < 0 or not whole:
            yield f"{path}.{side}", f"{len(counts)} bins hold {total} of {compared} values"
    if judged["max_abs_ref"] and not any(row["theirs"][k] for k in (0, -1) if row["theirs"]):
        yield f"{path}.theirs", "the largest value of the reference is in neither of the outermost bins"


@rule("tables.tokens", "Tokens are the prompt and a continuation, and other choices are near-ties or fail the rung.")
def tables_tokens(view: View) -> Iterator[Finding]:
    """Up to its first other choice the engine chose what the case says it generated, or the greedy rung counts it."""
    lanes = {lane.name: lane for lane in view.receipt.lanes}
    for i, table, rows in tables(view):
        if table != "tokens":
            continue
        at, seen = 0, set[tuple[str, str]]()
        odd: dict[str, int] = {}
        for key, group in groupby(rows, key=lambda row: (row["lane"], row["case"])):
            mine = list(group)
            path, at = f"side_files[{i}]: tokens[{at}]", at + len(mine)
            if key in seen:
                yield path, f"case {key[1]!r:.60} is listed twice"
            seen.add(key)
            lane = lanes.get(key[0])
            case = None if lane is None else _case(view, lane, key[1])
            if lane is not None and case is not None:  # else another rule's finding
                yield from _tokens(path, mine, lane, case)
                odd[lane.name] = odd.get(lane.name, 0) + _odd(mine, case)
        yield from _failed(view, odd)


def _case(view: View, lane: Lane, name: str) -> Case | None:
    fitting = [case for case in view.receipt.cases if (case.model, case.name) == (lane.model, name)]
    return next((case for case in fitting if case.numerics == lane.numerics), None)


def _tokens(path: str, rows: list[Row], lane: Lane, case: Case) -> Iterator[Finding]:
    n = len(case.prompt_ids)
    if [row["position"] for row in rows] != list(range(len(rows))):
        yield path, "positions do not count from 0"
    if tuple(row["id"] for row in rows[:n]) != case.prompt_ids or any(row["ours"] is not None for row in rows[:n]):
        yield path, f"the first {n} are not the prompt"
    chosen = [row["ours"] for row in rows[n:]]
    if chosen and (None in chosen or len(chosen) != len(case.generated_ids)):
        yield path, f"{len(chosen)} choices for {len(case.generated_ids)} generated tokens"
        return
    greedy = lane.rung("greedy")
    other = {row["position"]: (row["ours"], row["id"]) for row in rows[n:] if row["ours"] != row["id"]}
    common = min(other, default=len(rows)) - n + 1
    failed = greedy is not None and greedy.outcome == "fail"
    if chosen and not failed and tuple(chosen[:common]) != case.generated_ids[:common]:
        yield path, "the engine's choices are not what the case says that it generated"
    if greedy is not None and greedy.outcome == "pass" and chosen:
        ties = {tie.position + 1: (tie.ours, tie.theirs) for tie in greedy.near_ties if tie.case == case.name}
        if ties != other:
            yield path, f"other choices at {sorted(other)}, near-ties at {sorted(ties)}"
    texts: dict[int, str] = {}
    for row in rows:
        for token, text in ((row["id"], row["text"]), (row["ours"], row["ours_text"])):
            if token is not None and texts.setdefault(token, text) != text:
                yield path, f"token {token} is written in two ways"


def _odd(rows: list[Row], case: Case) -> int:
    """Steps at which the engine chose otherwise than the reference, or than it did itself on the same ids."""
    given, chosen = ([row[name] for row in rows[len(case.prompt_ids) :]] for name in ("id", "ours"))
    free = case.generated_ids
    ends = next((i for i, (a, b) in enumerate(zip(free, given, strict=False)) if a != b), len(free))
    steps = enumerate(zip(free, given, chosen, strict=False))
    return sum(ours != theirs or (step <= ends and own != ours) for step, (own, theirs, ours) in steps)


def _failed(view: View, odd: Mapping[str, int]) -> Iterator[Finding]:
    """A greedy rung that failed counts each odd step that is no near-tie."""
    for i, lane in enumerate(view.receipt.lanes):
        for j, rung in enumerate(lane.rungs):
            if rung.name != "greedy" or rung.outcome != "fail" or lane.name not in odd or rung.measured is None:
                continue
            if rung.measured != odd[lane.name] - len(rung.near_ties):
                yield (
                    f"lanes[{i}].rungs[{j}].measured",
                    f"{rung.measured:g}, but the table has {odd[lane.name]}, of them {len(rung.near_ties)} near-ties",
                )
