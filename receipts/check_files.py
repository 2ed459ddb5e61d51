"""Side tables against their hashes and against the lanes they belong to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from receipts.errors import ReceiptError
from receipts.lanes import OUTCOMES
from receipts.rule import Finding, View, rule
from receipts.tables import Row

#: Ratios may have been formed in float32, whose relative rounding is 6e-8; a few such roundings.
RATIO_TOLERANCE = 1e-6


@rule("side_files.content", "Side files are beside the receipt, are those whose hash is listed, and hold a table.")
def side_files_content(view: View) -> Iterator[Finding]:
    """One a table."""
    seen: set[str] = set()
    for i, side in enumerate(view.receipt.side_files):
        if side.table in seen:
            yield f"side_files[{i}].table", f"a second table {side.table!r}"
        seen.add(side.table)
        if isinstance(error := view.tables[i], ReceiptError):
            yield f"side_files[{i}]", error.reason if "[" not in error.path else f"{error.reason} in {error.path!r}"


@rule("side_files.lanes", "Rows belong to lanes of the receipt.")
def side_files_lanes(view: View) -> Iterator[Finding]:
    """Rows of another run are no evidence for this one."""
    lanes = {lane.name for lane in view.receipt.lanes}
    for i, table, rows in tables(view):
        for name in sorted({row["lane"] for row in rows} - lanes):
            yield f"side_files[{i}]", f"{table} has rows of a lane {name!r} that the receipt lacks"


@rule(
    "side_files.operations",
    "An operation passes as its ratio and limit say, and a passed rung has none that fails.",
)
def side_files_operations(view: View) -> Iterator[Finding]:
    """Ratio = max_abs_err / max_abs_ref, re-derived."""
    failed: dict[str, str] = {}
    for i, table, rows in tables(view):
        if table != "operations":
            continue
        for j, row in enumerate(rows):
            path = f"side_files[{i}]: operations[{j}]"
            yield from _operation(path, row)
            if row["outcome"] == "fail":
                failed.setdefault(row["lane"], f"{row['tap']} of layer {row['layer']}")
    for k, lane in enumerate(view.receipt.lanes):
        rung = lane.rung("operations")
        if rung is not None and rung.outcome == "pass" and lane.name in failed:
            yield f"lanes[{k}].rungs", f"operations passed, but the table has {failed[lane.name]} as failed"


def _operation(path: str, row: Row) -> Iterator[Finding]:
    error, size, ratio, limit = row["max_abs_err"], row["max_abs_ref"], row["ratio"], row["limit"]
    if row["outcome"] not in OUTCOMES:
        yield f"{path}.outcome", f"{row['outcome']!r:.40} is no outcome"
    if any(value is not None and value < 0 for value in (error, size, ratio, limit)):
        yield path, "a magnitude is negative"
        return
    # The table writes the ratio of an error on an all-zero reference as null: it is not finite.
    if error is not None and size and (ratio is None or not math.isclose(ratio, error / size, rel_tol=RATIO_TOLERANCE)):
        yield f"{path}.ratio", f"{ratio}, but {error:g} / {size:g} is {error / size:g}"
    if row["outcome"] != "pass":
        return
    if row["compared"] == 0:
        yield f"{path}.compared", "passed, but nothing was compared"
    if error is None or (limit is not None and error and (ratio is None or ratio > limit)):
        yield f"{path}.outcome", f"passed with {ratio} against a limit of {limit}"


def tables(view: View) -> Iterator[tuple[int, str, list[Row]]]:
    """Tables that can be read; those that cannot are `side_files.content`'s finding."""
    for i, side in enumerate(view.receipt.side_files):
        if not isinstance(rows := view.tables[i], ReceiptError):
            yield i, side.table, rows


def by_lane(view: View, table: str) -> dict[str, list[Row]]:
    """Rows of a table, by the lane that they belong to."""
    known = view.grouped.get(table)
    if known is None:
        known = view.grouped[table] = {}
        for _, name, rows in tables(view):
            if name == table:
                for row in rows:
                    known.setdefault(row["lane"], []).append(row)
    return known
