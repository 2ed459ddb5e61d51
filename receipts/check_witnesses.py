"""Two computations of one thing: the engine in each lane against the engine in its case, and against the reference.

Every lane evaluates its cases once more, with a reference beside. The table `runs` keeps the digests of both sides and
the noise that was measured there, the table `candidates` what both give the engine's most likely tokens.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator

from receipts.check_files import RATIO_TOLERANCE, by_lane
from receipts.errors import ReceiptError
from receipts.evidence import Case
from receipts.lanes import Lane
from receipts.rule import Finding, Key, View, key, rule
from receipts.running import WINDOW, running_median
from receipts.tables import Row

#: Logits are float32 and their differences double: two roundings of 6e-8 lie between them.
ROUNDING = 2e-7
#: How the sentence of a rung says that noise made its limit.
_ALLOWED = re.compile(r"limit: (\d{1,9}(?:\.\d{1,9})?) × the noise of")
#: First word of a metric → what noise widens its limit.
_WIDENS = {
    "median": "noise_median",
    "running": "noise_running",
    "largest": "noise_largest",
    "|difference": "noise_nll",
}
_NOISE = ("noise_median", "noise_running", "noise_largest", "noise_margin", "noise_nll")


@rule("tables.witnesses", "Where positions were compared, `runs` and `candidates` have every case of the lane, once.")
def tables_witnesses(view: View) -> Iterator[Finding]:
    """And every case of the receipt was compared in some lane of its model and numerics that compared any."""
    runs, likely, compared = (by_lane(view, name) for name in ("runs", "candidates", "positions"))
    used: dict[object, set[str]] = defaultdict(set)
    whole = not any(isinstance(rows, ReceiptError) for rows in view.tables)
    for i, lane in enumerate(view.receipt.lanes):
        rows = [row["case"] for row in runs.get(lane.name, [])]
        used[key(lane.model, lane.numerics)].update(rows)
        if len(set(rows)) != len(rows):
            yield f"lanes[{i}]", "`runs` has a case of this lane twice"
        wanted = {row["case"] for row in compared.get(lane.name, [])}
        listed = {row["case"] for row in likely.get(lane.name, [])}
        if wanted and whole and not wanted == set(rows) == listed:
            odd = sorted(wanted ^ set(rows) | wanted ^ listed)
            yield f"lanes[{i}]", f"the tables do not have the same cases of this lane: {', '.join(odd)[:80]}"
    for i, case in enumerate(view.receipt.cases):
        names = used.get(key(case.model, case.numerics))
        if names and case.name not in names:
            yield f"cases[{i}].name", f"{case.name!r:.60} was compared in no lane, though others of its model were"


@rule("runs.cases", "A lane that read the same ids computed the same logits as the case, and as many rows.")
def runs_cases(view: View) -> Iterator[Finding]:
    """The reference may have continued otherwise; then its greedy rung says so."""
    cases = _cases(view)
    for i, lane, rows in _lanes(view, "runs"):
        greedy = lane.rung("greedy")
        tied = {tie.case for tie in greedy.near_ties} if greedy is not None else set()
        for row in rows:
            case, path = cases.get((key(lane.model, lane.numerics), row["case"])), f"lanes[{i}]"
            if case is None:
                yield path, f"there is no case {row['case']!r:.60} of this model in these numerics"
                continue
            if row["ids_sha256"] != case.ids_sha256:
                if greedy is not None and greedy.outcome == "pass" and case.name not in tied:
                    yield path, f"the ids of {case.name!r:.60} are not those of the case, and no near-tie says why"
            elif list(case.logits_shape[:1]) != [row["rows"]]:
                yield path, f"{row['rows']} rows of {case.name!r:.60}, but the case has {case.logits_shape[:1]}"
            elif row["ours_sha256"] != case.logits_sha256:
                yield path, f"the logits of {case.name!r:.60} are not those of the case"


@rule("runs.equal", "Two sides with the same logits differ at no position, and with others at one.")
def runs_equal(view: View) -> Iterator[Finding]:
    """Positions are those that both sides evaluated together."""
    differing = {
        (row["lane"], row["case"])
        for rows in by_lane(view, "positions").values()
        for row in rows
        if row["phase"] == "prefill" and row["max_abs"] != 0
    }
    for i, lane, rows in _lanes(view, "runs"):
        for row in rows:
            if row["ours_sha256"] == row["theirs_sha256"] and (lane.name, row["case"]) in differing:
                yield f"lanes[{i}]", f"{row['case']!r:.60} has one digest of logits on both sides, but they differ"


@rule("candidates.logits", "The most likely tokens have the logits of their case, and the reference's lie as near.")
def candidates_logits(view: View) -> Iterator[Finding]:
    """By as much as the table of positions allows: its largest difference there, and the reference's margin."""
    cases = _cases(view)
    at = {
        (row["lane"], row["case"], row["position"]): row
        for rows in by_lane(view, "positions").values()
        for row in rows
        if row["phase"] == "prefill"
    }
    for i, lane, rows in _lanes(view, "candidates"):
        grouped: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            grouped[row["case"]].append(row)
        for name, likely in grouped.items():
            case = cases.get((key(lane.model, lane.numerics), name))
            if case is None:
                continue  # the finding of runs.cases
            path = f"lanes[{i}]"
            said = [(row["position"], row["id"], row["ours"]) for row in likely]
            known = [(top.position, *pair) for top in case.top_k for pair in zip(top.ids, top.logits, strict=False)]
            if said != known or [row["rank"] for row in likely] != list(range(len(likely))):
                yield path, f"the most likely tokens of {name!r:.60} are not those of the case"
            place = at.get((lane.name, name, likely[0]["position"]))
            if place is None and at:
                yield path, f"the last position of {name!r:.60} is not in the table of positions"
            elif place is not None:
                yield from _near(f"{path}: {name}", likely, place)


def _near(path: str, likely: list[Row], place: Row) -> Iterator[Finding]:
    pairs = [(row["ours"], row["theirs"]) for row in likely]
    if any(None in pair for pair in pairs) or place["max_abs"] is None:
        return  # what is not finite has failed already
    for ours, theirs in pairs:
        if abs(ours - theirs) > place["max_abs"] + ROUNDING * max(abs(ours), abs(theirs)):
            yield path, f"a candidate has {ours:g} here and {theirs:g} there, {place['max_abs']:g} apart at most"
    best, *others = (theirs for _, theirs in pairs)
    if place["top1_equal"] and others and place["margin"] is not None:
        margin = best - max(others)
        if margin < place["margin"] - ROUNDING * max(abs(best), abs(max(others))):
            yield path, f"the reference's margin is {place['margin']:g}, but its candidates are {margin:g} apart"


@rule("noise.runs", "A lane's noise, and the limits and floors made of it, are the largest of its cases.")
def noise_runs(view: View) -> Iterator[Finding]:
    """As the sentence of a rung says how its limit was made, so it is made again."""
    for i, lane, rows in _lanes(view, "runs"):
        if any(row[name] is None for row in rows for name in _NOISE):
            continue  # what is not finite widens no limit
        noise = {name: max(row[name] for row in rows) for name in _NOISE}
        path = f"lanes[{i}]"
        if lane.noise_floor is not None and not _same(lane.noise_floor.value, noise["noise_median"]):
            value = lane.noise_floor.value
            yield f"{path}.noise_floor.value", f"{value:g}, but its cases make it {noise['noise_median']:g}"
        for j, rung in enumerate(lane.rungs):
            for k, tie in enumerate(rung.near_ties):
                if not _same(tie.floor, noise["noise_margin"]):
                    where = f"{path}.rungs[{j}].near_ties[{k}].floor"
                    yield where, f"{tie.floor:g}, but its cases make it {noise['noise_margin']:g}"
            widens = _WIDENS.get(rung.metric.partition(" ")[0])
            if widens is None or rung.limit is None:
                continue
            allowed = _ALLOWED.search(rung.why)
            made = float(allowed[1]) * noise[widens] if allowed else rung.limit
            if not _same(rung.limit, made) or (rung.outcome == "pass" and noise[widens] > rung.limit):
                yield f"{path}.rungs[{j}].limit", f"{rung.limit:g}, but the noise of its cases is {noise[widens]:g}"


@rule("noise.positions", "The noise of a case is that of its positions.")
def noise_positions(view: View) -> Iterator[Finding]:
    """Where all of them were compared; else the largest noise may be at another."""
    floors: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for rows in by_lane(view, "positions").values():
        for row in rows:
            if row["floor"] is not None:
                floors[row["lane"], row["case"]].setdefault(row["position"], row["floor"])
    for i, lane, rows in _lanes(view, "runs"):
        for row in rows:
            known, largest = floors[lane.name, row["case"]], row["noise_largest"]
            middle, running = row["noise_median"], row["noise_running"]
            if None in (largest, middle, running) or not known:
                continue
            whole = len(known) == row["rows"]
            worst = max(known.values())
            if worst > largest * (1 + ROUNDING) or (whole and not _same(worst, largest)):
                yield f"lanes[{i}]", f"noise of {row['case']!r:.60}: {largest:g}, but {worst:g} at its positions"
            if whole and middle > statistics.median(known.values()) * (1 + ROUNDING):
                yield f"lanes[{i}]", f"noise of {row['case']!r:.60}: half of its positions have less than {middle:g}"
            if whole and running > running_median([known[at] for at in sorted(known)]) * (1 + ROUNDING):
                yield f"lanes[{i}]", f"noise of {row['case']!r:.60}: no {WINDOW} positions in a row have {running:g}"


@rule("ties.positions", "A near-tie is where the table says that the sides chose differently, by such a margin.")
def ties_positions(view: View) -> Iterator[Finding]:
    """At least the reference's best two apart, and no further than the sides' logits."""
    compared = by_lane(view, "positions")
    for i, lane in enumerate(view.receipt.lanes):
        at: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for row in compared.get(lane.name, []):
            at[row["case"], row["position"]].append(row)
        for j, rung in enumerate(lane.rungs):
            for k, tie in enumerate(rung.near_ties):
                path = f"lanes[{i}].rungs[{j}].near_ties[{k}]"
                rows = at.get((tie.case, tie.position), [])
                if at and not any(_fits(row, tie.margin) for row in rows):
                    yield f"{path}.margin", f"no row of the table has such a tie at {tie.position} of {tie.case!r:.60}"


def _fits(row: Row, margin: float) -> bool:
    """Whether the sides chose differently there, the reference by a margin that their difference allows."""
    if row["top1_equal"] or None in (row["margin"], row["max_abs"]):
        return False
    slack = ROUNDING * max(margin, 1.0)
    return bool(row["margin"] - slack <= margin <= 2 * row["max_abs"] + slack)


def _cases(view: View) -> dict[tuple[Key, str], Case]:
    return {(key(case.model, case.numerics), case.name): case for case in view.receipt.cases}


def _lanes(view: View, table: str) -> Iterator[tuple[int, Lane, list[Row]]]:
    """Lanes that have rows in a table."""
    grouped = by_lane(view, table)
    for i, lane in enumerate(view.receipt.lanes):
        if rows := grouped.get(lane.name):
            yield i, lane, rows


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=RATIO_TOLERANCE)
