"""The history of many receipts: drift, speed and memory by commit and machine, with the places where they changed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from reports.changes import changes
from reports.collect import Seen, collect

KINDS = ("drift", "speed", "memory")
RECEIPT_COLUMNS = ("file", "problem", "timestamp", "commit", "machine", "parity")
VALUE_COLUMNS = ("receipt", "timestamp", "commit", "machine", "kind", "series", "unit", "value")
CHANGE_COLUMNS = ("kind", "series", "unit", "machine", "timestamp", "commit", "before", "after", "factor", "worse", "p")
#: Points of one series in a picture or page: more cannot be told apart there.
MOST_POINTS = 400
#: Of these more is better; of all others less.
MORE_IS_BETTER = ("tokens/s", "× the peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What many receipts say.

    Attributes:
        receipts: One row each, `RECEIPT_COLUMNS`, oldest first (UTC); what could not be read leads, with its problem.
        values: One row per receipt and measured value, `VALUE_COLUMNS`, oldest first; `receipt` is a row of `receipts`.
        changes: One row per marked change of a series on a machine, `CHANGE_COLUMNS`, newest first; `worse` says
            whether it is one for the worse, `factor` is after ÷ before.
    """

    receipts: pd.DataFrame
    values: pd.DataFrame
    changes: pd.DataFrame

    def series(self) -> Iterator[tuple[tuple[str, str, str, str], pd.DataFrame]]:
        """(kind, series, unit, machine) → its values, oldest first. Only what was measured on one machine compares."""
        for key, rows in self.values.groupby(["kind", "series", "unit", "machine"], sort=True, observed=True):
            kind, series, unit, machine = map(str, key)
            yield (kind, series, unit, machine), rows


def points(values: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """A series as at most so many points: one a value, or the median and the range of so many in a row.

    Returns:
        `timestamp` and `commit` of the first of each, `value`, `low`, `high`, and how many there are (`n`).
    """
    step = max(1, -(-len(values) // most))
    first = values.iloc[::step]
    sizes = values["value"].to_numpy(dtype=float)
    padded = np.full(len(first) * step, np.nan)
    padded[: len(sizes)] = sizes
    rows = padded.reshape(len(first), step)
    return pd.DataFrame(
        {
            "timestamp": first["timestamp"].to_numpy(),
            "commit": first["commit"].astype(str).to_numpy(),
            "value": np.nanmedian(rows, axis=1),
            "low": np.nanmin(rows, axis=1),
            "high": np.nanmax(rows, axis=1),
            "n": np.isfinite(rows).sum(axis=1),
        }
    )


def read(places: Sequence[Path], *, workers: int = 1, verified: bool = False) -> History:
    """The history of all receipts in files, folders, JSON Lines and archives.

    Args:
        places: Where to look.
        workers: Processes that read.
        verified: Whether types and digest of each receipt are checked in full.

    Raises:
        receipts.ReceiptError: A place is missing, damaged or a bomb.
    """
    return history(collect(places, workers=workers, verified=verified))


def history(found: Iterable[Seen]) -> History:
    """The history of receipts that were read already."""
    rows: list[tuple[str, ...]] = []
    keys: dict[tuple[str, str, str], int] = {}
    receipt, series, value = array("q"), array("q"), array("d")
    for i, one in enumerate(found):
        rows.append((one.file, one.problem, one.timestamp, one.commit, one.machine, one.parity))
        for measured in one.values:
            receipt.append(i)
            series.append(keys.setdefault(measured[:3], len(keys)))
            value.append(measured.value)
    receipts = pd.DataFrame(rows, columns=list(RECEIPT_COLUMNS))
    times = pd.to_datetime(receipts["timestamp"], errors="coerce", utc=True, format="ISO8601")
    receipts["timestamp"] = times.dt.tz_localize(None).astype("datetime64[ms]")  # UTC throughout
    lost = receipts["timestamp"].isna() & (receipts["problem"] == "")
    receipts.loc[lost, "problem"] = "its timestamp is no time"
    order = receipts.sort_values(["timestamp", "file"], na_position="first", kind="stable").index.to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    receipts = receipts.loc[order].reset_index(drop=True)
    values = _values(receipts, list(keys), place[np.frombuffer(receipt, np.int64)], series, value)
    made = History(receipts=receipts, values=values, changes=pd.DataFrame(columns=list(CHANGE_COLUMNS)))
    return History(receipts=receipts, values=values, changes=_changes(made))


def _values(
    receipts: pd.DataFrame,
    keys: list[tuple[str, str, str]],
    receipt: np.ndarray[tuple[int], np.dtype[np.int64]],
    series: array[int],
    value: array[float],
) -> pd.DataFrame:
    order = np.argsort(receipt, kind="stable")
    receipt = receipt[order]
    codes = np.frombuffer(series, np.int64)[order]
    values = pd.DataFrame({"receipt": receipt})
    values["timestamp"] = receipts["timestamp"].to_numpy()[receipt]
    for name in ("commit", "machine"):
        values[name] = pd.Categorical(receipts[name]).take(receipt)
    for i, name in enumerate(("kind", "series", "unit")):
        texts = pd.Categorical([key[i] for key in keys])
        values[name] = texts.take(codes) if len(keys) else pd.Categorical([])
    values["value"] = np.frombuffer(value, np.float64)[order]
    return values[values["timestamp"].notna()].reset_index(drop=True)


def _changes(made: History) -> pd.DataFrame:
    rows = []
    for (kind, series, unit, machine), values in made.series():
        for change in changes(values["value"].to_numpy(dtype=float)):
            first = values.iloc[change.at]
            grew = change.after > change.before
            rows.append(
                (
                    *(kind, series, unit, machine, first["timestamp"], str(first["commit"])),
                    *(change.before, change.after, change.after / change.before if change.before else np.inf),
                    *(grew != (unit in MORE_IS_BETTER), change.p),
                )
            )
    table = pd.DataFrame(rows, columns=list(CHANGE_COLUMNS))
    return table.sort_values("timestamp", ascending=False, kind="stable").reset_index(drop=True)
