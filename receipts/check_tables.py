"""Rungs against the rows of the side tables: is what a rung sums up what its rows say?"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from receipts.check_files import RATIO_TOLERANCE, by_lane, tables
from receipts.check_ledger import DENSE
from receipts.check_profiles import ROUNDING
from receipts.evidence import Accuracy
from receipts.lanes import Lane, Located, Rung
from receipts.rule import Finding, View, key, rule
from receipts.running import running_median
from receipts.tables import Row

#: Outputs of the seven projections of a layer.
PROJECTION_TAPS = frozenset(("q", "k", "v", "attn_out", "ffn_gate", "ffn_up", "ffn_down"))
_AGREES = re.compile(r"agrees at (\d{1,15}) of \d{1,15} positions")
_OPERATIONS = re.compile(r"^(\d{1,15}) operations on locked inputs")
_PRODUCTS = re.compile(r"(\d{1,15}) ternary (?:× int8 )?products")
#: Rung → phase of its rows in the table of positions.
_PHASES = {"logits": "prefill", "decode": "decode"}


@rule("tables.operations", "The operations rung is the worst row of its lane, and counts its rows and integer sums.")
def tables_operations(view: View) -> Iterator[Finding]:
    """Integer sums have no rows: one a ternary matrix and request whatever the reference shows, or none.

    Values that are not finite have none; a request of which nothing was shown has sums, but no row.
    """
    for path, lane, rung, rows in _rungs(view, "operations", "operations"):
        extra = rung.compared - len(rows)
        sums = _sums(view, lane, rows)
        finite = all(row["ratio"] is not None for row in rows)
        if extra and sums is not None and (extra not in sums if finite else not 0 <= extra <= max(sums)):
            yield (
                f"{path}.compared",
                f"{rung.compared}, but the table has {len(rows)} rows, and a request {sums.step} sums",
            )
        for pattern, count in ((_OPERATIONS, len(rows)), (_PRODUCTS, extra)):
            if (said := pattern.search(rung.why)) and int(said[1]) != count:
                yield f"{path}.why", f"{said[0]!r}, but of {rung.compared} compared {len(rows)} are rows of the table"
        ratios = [row["ratio"] for row in rows]
        if not rung.metric.startswith("max"):
            continue  # unequal integers, which have no rows
        worst = None if None in ratios else max(ratios)
        if None not in (rung.measured, worst) and not math.isclose(rung.measured, worst, rel_tol=RATIO_TOLERANCE):  # type: ignore[arg-type]  # neither is None
            yield f"{path}.measured", f"{rung.measured:g}, but the worst row of the table has {worst:g}"
        limits = {row["limit"] for row in rows}
        if rung.limit is not None and limits != {rung.limit}:
            yield f"{path}.limit", f"{rung.limit:g}, but the rows were judged by {sorted(map(str, limits))}"


def _sums(view: View, lane: Lane, rows: list[Row]) -> range | None:
    """How many integer sums a lane can have; None where no ledger says which of its matrices are ternary.

    The requests are those that have rows, or more: each prompt of the lane, and one of them token by token.
    """
    part = view.ledgers().get(key(lane.model, lane.numerics))
    if part is None or not part.passes:
        return None
    calls = sum(entry.calls for entry in part.entries if entry.role == "projection" and DENSE not in entry.kernel)
    cases = sum((case.model, case.numerics) == (lane.model, lane.numerics) for case in view.receipt.cases)
    one, requests = calls // part.passes, len({row["case"] for row in rows})
    return range(one * requests, one * max(requests, cases + 1) + 1, max(one, 1))


@rule("tables.positions", "The logits and decode rungs are a median or the largest of their rows, and count them.")
def tables_positions(view: View) -> Iterator[Finding]:
    """Which, the metric says."""
    for name, phase in _PHASES.items():
        for path, _, rung, every in _rungs(view, name, "positions"):
            rows = [row for row in every if row["phase"] == phase]
            if rung.compared != len(rows):
                yield f"{path}.compared", f"{rung.compared}, but the table has {len(rows)} positions"
            values = [row["rel_l2"] for row in rows]
            if not values or None in values or rung.measured is None:
                continue
            said, same = _AGREES.search(rung.why), sum(row["top1_equal"] for row in rows)
            if said is not None and int(said[1]) != same:
                yield f"{path}.why", f"{said[0]!r}, but in the table at {same}"
            word = rung.metric.partition(" ")[0]
            if word not in _SUMMED:
                continue
            found = _SUMMED[word](rows)
            if not math.isclose(rung.measured, found, rel_tol=RATIO_TOLERANCE):
                yield f"{path}.measured", f"{rung.measured:g}, but by the table it is {found:g}"


def _in_a_row(rows: list[Row]) -> Iterator[list[float]]:
    """Values of positions of one case that follow each other, in a batch or one at a time."""
    ends = [
        i
        for i, (row, after) in enumerate(pairwise(rows), 1)
        if (after["case"], after["position"]) != (row["case"], row["position"] + 1)
    ]
    for start, end in pairwise((0, *ends, len(rows))):
        yield [row["rel_l2"] for row in rows[start:end]]


#: First word of a metric → how it sums up the rows.
_SUMMED: Mapping[str, Callable[[list[Row]], float]] = {
    "median": lambda rows: statistics.median(row["rel_l2"] for row in rows),
    "running": lambda rows: max(map(running_median, _in_a_row(rows))),
    "largest": lambda rows: max(row["rel_l2"] for row in rows),
}


@rule("tables.accuracy", "A kernel's accuracy is that of the projections which some lane compared with the oracle.")
def tables_accuracy(view: View) -> Iterator[Finding]:
    """With the limit of its rows, and their metric; of mixed types of weights the table does not say which is whose."""
    grouped, models, ledgers = by_lane(view, "operations"), view.models(), view.ledgers()
    families = {reference.key: reference.family for reference in view.receipt.references}
    found: dict[str, list[tuple[list[Row], str]]] = {}
    mixed: set[str] = set()
    for lane in view.receipt.lanes:
        rows = [row for row in grouped.get(lane.name, []) if row["tap"] in PROJECTION_TAPS]
        part = ledgers.get(key(lane.model, lane.numerics))
        if families.get(lane.reference) != "oracle" or lane.model not in models or part is None or not rows:
            continue
        types = {entry.weight_type for entry in part.entries if entry.role == "projection"}
        rung = lane.rung("operations")
        metric = rung.metric if rung is not None and rung.metric.startswith("max") else ""
        if len(types) > 1:
            mixed |= types
        for name in types:
            found.setdefault(name, []).append((rows, metric))
    for i, accuracy in enumerate(view.receipt.accuracy):
        if not found or accuracy.weight_type in mixed:
            continue
        if not any(_accuracy_of(accuracy, rows, metric) for rows, metric in found.get(accuracy.weight_type, [])):
            said = f"{accuracy.measured:g} of {accuracy.limit:g} in {accuracy.compared} values"
            yield f"accuracy[{i}]", f"no lane found {said} by {accuracy.metric!r:.60}"


def _accuracy_of(accuracy: Accuracy, rows: list[Row], metric: str) -> bool:
    """Whether these rows are what a kernel's accuracy sums up; a rung that measured something else names no metric."""
    ratios = [row["ratio"] for row in rows]
    measured = None in ratios or max(ratios) == accuracy.measured
    judged = {row["limit"] for row in rows} == {accuracy.limit} and metric in ("", accuracy.metric)
    return measured and judged and sum(row["compared"] for row in rows) == accuracy.compared


@rule("tables.located", "The located operation is a row of the table that failed, with the same numbers and positions.")
def tables_located(view: View) -> Iterator[Finding]:
    """Of the lane. Integer operations have no row."""
    for i, lane in enumerate(view.receipt.lanes):
        found = lane.located
        rows = [] if found is None else by_lane(view, "operations").get(lane.name, [])
        if found is None or found.integer or not rows:
            continue
        fitting = [
            row for row in rows if (row["tap"], row["layer"], row["outcome"]) == (found.tap, found.layer, "fail")
        ]
        same = [
            row
            for row in fitting
            if row["max_abs_err"] in (None, found.max_abs_err)
            and row["max_abs_ref"] in (None, found.max_abs_ref)
            and row["limit"] == found.limit
            and (row["worst_token"], row["worst_index"]) in ((found.worst_token, found.worst_index), (None, None))
        ]
        if not same:
            yield f"lanes[{i}].located", f"no row of the table says this of {found.tap} of layer {found.layer}"
            continue
        at = {(row["case"], row["tap"], row["layer"]) for row in same}
        profiles = [
            row["errors"]
            for row in by_lane(view, "profiles").get(lane.name, [])
            if (row["case"], row["tap"], row["layer"]) in at
        ]
        if profiles and not any(_wrong_at(errors, found) for errors in profiles):
            yield (
                f"lanes[{i}].located.positions",
                f"{found.positions}, but the errors by position are over the limit elsewhere",
            )


def _wrong_at(errors: list[float | None], found: Located) -> bool:
    """Whether exactly these positions are over the limit, which errors near it may be by rounding."""
    over = {t for t, error in enumerate(errors) if error is None or error > found.limit * (1 + ROUNDING)}
    near = {t for t, error in enumerate(errors) if error is None or error > found.limit * (1 - ROUNDING)}
    return over <= set(found.positions) <= near


@rule("tables.places", "Rows are of cases, layers and positions that exist, and their magnitudes are not negative.")
def tables_places(view: View) -> Iterator[Finding]:
    """A case may be named with a remark behind a comma."""
    lanes = {lane.name: lane for lane in view.receipt.lanes}
    lengths = {
        (key(case.model, case.numerics), case.name): len(case.prompt_ids) + len(case.generated_ids)
        for case in view.receipt.cases
    }
    models = view.models()
    for i, table, rows in tables(view):
        for j, row in enumerate(rows):
            lane, path = lanes.get(row["lane"]), f"side_files[{i}]: {table}[{j}]"
            if lane is None:
                continue  # another rule's finding
            ids = lengths.get((key(lane.model, lane.numerics), row["case"].partition(", ")[0]))
            if ids is None:
                yield (
                    f"{path}.case",
                    f"there is no case {row['case']!r:.60} of model {lane.model!r:.60} in the lane's numerics",
                )
            elif table == "positions" and not 0 <= row["position"] < ids:
                yield f"{path}.position", f"{row['position']} of {ids} ids"
            if table == "operations" and lane.model in models:
                n_layer = models[lane.model].hyper_parameters.n_layer
                if not -1 <= row["layer"] < n_layer:
                    yield f"{path}.layer", f"{row['layer']} of {n_layer}"
            if table == "positions" and any((row[name] or 0) < 0 for name in ("rel_l2", "max_abs", "margin", "floor")):
                yield path, "a magnitude is negative"


def _rungs(view: View, name: str, table: str) -> Iterator[tuple[str, Lane, Rung, list[Row]]]:
    """Rungs that were judged, of lanes that have rows."""
    grouped = by_lane(view, table)
    for i, lane in enumerate(view.receipt.lanes):
        rows = grouped.get(lane.name, [])
        for j, rung in enumerate(lane.rungs):
            if rung.name == name and rung.outcome in ("pass", "fail") and rung.metric and rows:
                yield f"lanes[{i}].rungs[{j}]", lane, rung, rows
