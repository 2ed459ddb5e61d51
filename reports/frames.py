"""A receipt as tables: one frame for each thing that a picture or a page shows.

Nothing is computed here that a receipt does not say; rows keep the receipt's order, which is the order in
which a person thinks (models, then lanes, then rungs, then operations along the graph).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import receipts
from receipts.record import Lane, Receipt
from receipts.tables import COLUMNS

RUNG_COLUMNS = ("lane", "rung", "outcome", "metric", "measured", "limit", "compared", "near_ties", "why")
LANE_COLUMNS = ("lane", "model", "reference", "required", "outcome", "climbed", "floor_metric", "floor", "floor_how")
OPERATION_COLUMNS = tuple(COLUMNS["operations"])
#: Side tables that become frames; the others are the verifier's.
FRAMED = ("operations", "positions", "profiles", "tokens")
POSITION_COLUMNS = (*COLUMNS["positions"], "near_tie")
PROFILE_COLUMNS = tuple(COLUMNS["profiles"])
TOKEN_COLUMNS = tuple(COLUMNS["tokens"])
PERFORMANCE_COLUMNS = ("model", "what", "engine", "threads", "tokens", "run", "seconds", "tokens_per_second", "median")
CASE_COLUMNS = ("case", "model", "prompt_tokens", "generated_tokens", "logits_sha256")
_NUMBERS = ("ratio", "limit", "max_abs_err", "max_abs_ref", "rel_l2", "max_abs", "kl", "margin", "floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """The tables of one receipt.

    Attributes:
        rungs: One row per lane and rung, `RUNG_COLUMNS`; numbers that were not measured are NaN.
        lanes: One row per lane, `LANE_COLUMNS`.
        operations: One row per lane, case, tap and layer (−1 outside the layers), `OPERATION_COLUMNS`.
        positions: One row per lane, case and position, `POSITION_COLUMNS`; `near_tie` is where the two engines
            chose different tokens and noise explains it; `floor` is how far an engine differs from itself there,
            relative L2.
        profiles: One row per row of `operations`, `PROFILE_COLUMNS`: its errors by position, and histograms.
        tokens: One row per lane, case and position, `TOKEN_COLUMNS`: what both sides evaluated.
        performance: One row per timed run, `PERFORMANCE_COLUMNS`; `median` repeats in all runs of a measurement.
        cases: One row per case, `CASE_COLUMNS`.
    """

    rungs: pd.DataFrame
    lanes: pd.DataFrame
    operations: pd.DataFrame
    positions: pd.DataFrame
    profiles: pd.DataFrame
    tokens: pd.DataFrame
    performance: pd.DataFrame
    cases: pd.DataFrame


def load(path: str | PathLike[str]) -> tuple[Receipt, Frames]:
    """Reads a receipt and its side files.

    Args:
        path: The receipt.

    Returns:
        The receipt and its tables.

    Raises:
        receipts.ReceiptError: It, or a side file, is missing, damaged or not what it says it is.
    """
    path = Path(path)
    receipt = receipts.read(path)
    tables: dict[str, list[Mapping[str, Any]]] = {name: [] for name in FRAMED}
    for side_file in receipt.side_files:
        if side_file.table in FRAMED:
            tables[side_file.table].extend(receipts.read_table(path, side_file))
    return receipt, frames(receipt, **tables)


def frames(
    receipt: Receipt,
    *,
    operations: Sequence[Mapping[str, Any]] = (),
    positions: Sequence[Mapping[str, Any]] = (),
    profiles: Sequence[Mapping[str, Any]] = (),
    tokens: Sequence[Mapping[str, Any]] = (),
) -> Frames:
    """The tables of a receipt whose side files were read already.

    Args:
        receipt: The receipt.
        operations: Rows of its side file of that name.
        positions: Likewise.
        profiles: Likewise.
        tokens: Likewise.
    """
    return Frames(
        rungs=_frame([row for lane in receipt.lanes for row in _rungs(lane)], RUNG_COLUMNS),
        lanes=_frame([_lane(lane) for lane in receipt.lanes], LANE_COLUMNS),
        operations=_frame(operations, OPERATION_COLUMNS),
        positions=_frame(_with_near_ties(receipt, positions), POSITION_COLUMNS),
        profiles=_frame(profiles, PROFILE_COLUMNS),
        tokens=_frame(tokens, TOKEN_COLUMNS),
        performance=_frame(_runs(receipt), PERFORMANCE_COLUMNS),
        cases=_frame(_cases(receipt), CASE_COLUMNS),
    )


def worst(rungs: pd.DataFrame) -> pd.Series | None:
    """The row that came nearest to its limit, or went furthest beyond it; None if nothing has a limit.

    A limit of 0 (things that must be equal) is passed by any difference at all.
    """
    measured = rungs.dropna(subset=["measured", "limit"])
    if measured.empty:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(measured["measured"].to_numpy() / measured["limit"].to_numpy(), nan=0.0, posinf=np.inf)
    return measured.iloc[int(np.argmax(share))]


def tap_order(operations: pd.DataFrame) -> list[str]:
    """Taps along the graph, as the rows of all lanes together show it.

    A reference lacks some taps. The lane with the most of them gives the order; what only others have goes in
    behind its predecessor there.
    """
    sequences = [list(dict.fromkeys(rows["tap"])) for _, rows in operations.groupby("lane", sort=False)]
    order: list[str] = []
    for taps in sorted(sequences, key=len, reverse=True):
        for before, tap in zip(["", *taps], taps, strict=False):
            if tap not in order:
                order.insert(order.index(before) + 1 if before else 0, tap)
    return order


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(columns))
    for name in {*_NUMBERS, "measured", "seconds", "tokens_per_second", "median"} & set(columns):
        frame[name] = pd.to_numeric(frame[name])  # a column of None alone would stay of type object
    return frame


def _rungs(lane: Lane) -> list[dict[str, Any]]:
    return [
        {
            "lane": lane.name,
            "rung": rung.name,
            "outcome": rung.outcome,
            "metric": rung.metric,
            "measured": rung.measured,
            "limit": rung.limit,
            "compared": rung.compared,
            "near_ties": len(rung.near_ties),
            "why": rung.why,
        }
        for rung in lane.rungs
    ]


def _lane(lane: Lane) -> dict[str, Any]:
    floor = lane.noise_floor
    return {
        "lane": lane.name,
        "model": lane.model,
        "reference": lane.reference,
        "required": lane.required,
        "outcome": lane.outcome,
        "climbed": lane.climbed or "",
        "floor_metric": floor.metric if floor else "",
        "floor": floor.value if floor else None,
        "floor_how": floor.how if floor else "",
    }


def _with_near_ties(receipt: Receipt, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ties = {
        (lane.name, tie.case, tie.position) for lane in receipt.lanes for rung in lane.rungs for tie in rung.near_ties
    }
    return [{**row, "near_tie": (row["lane"], row["case"], row["position"]) in ties} for row in rows]


def _runs(receipt: Receipt) -> list[dict[str, Any]]:
    return [
        {
            "model": timing.model,
            "what": timing.what,
            "engine": timing.engine,
            "threads": timing.threads,
            "tokens": timing.tokens,
            "run": run,
            "seconds": seconds,
            "tokens_per_second": timing.tokens / seconds if seconds > 0 else None,
            "median": timing.tokens_per_second,
        }
        for timing in receipt.performance
        for run, seconds in enumerate(timing.seconds)
    ]


def _cases(receipt: Receipt) -> list[dict[str, Any]]:
    return [
        {
            "case": case.name,
            "model": case.model,
            "prompt_tokens": len(case.prompt_ids),
            "generated_tokens": len(case.generated_ids),
            "logits_sha256": case.logits_sha256,
        }
        for case in receipt.cases
    ]
