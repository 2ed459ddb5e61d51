"""The history as a folder: one page to look around in, and a picture of each kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.errors import ReportError
from reports.figures.trend import Key
from reports.history import KINDS, MORE_IS_BETTER, History, points
from reports.page import render
from reports.sentences import number

#: Series in the page, those that changed first.
MOST_SERIES = 300
#: Rows of a table in the page.
MOST_ROWS = 200


def write_history(history: History, out: str | PathLike[str]) -> tuple[Path, list[Path]]:
    """Writes `history.html` and a picture of each kind, PNG and SVG; the page last.

    Returns:
        The page, and the pictures.

    Raises:
        ReportError: The folder cannot be written.
    """
    from reports.figures.canvas import save
    from reports.figures.trend import trend

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".history-") as beside:
            made: list[Path] = []
            for kind in KINDS:
                made += save(trend(kind, panels(history, kind)), Path(beside) / kind)
            page = Path(beside) / "history.html"
            page.write_text(history_page(history), encoding="utf-8")
            for file in (*made, page):
                file.replace(folder / file.name)
    except OSError as error:
        raise ReportError(
            f"cannot be written ({error.strerror})",
            where=error.filename or folder,
            remedy="name a folder that this user may write to",
        ) from None
    return folder / "history.html", [folder / file.name for file in made]


def panels(history: History, kind: str = "") -> list[tuple[Key, pd.DataFrame, pd.DataFrame]]:
    """Every series (of a kind) with its values and changes: those that changed first, then those with most values."""
    found = []
    changed = dict(tuple(history.changes.groupby(["kind", "series", "unit", "machine"])))
    for key, values in history.series():
        if kind in ("", key[0]):
            found.append((key, values, changed.get(key, history.changes.iloc[:0])))
    return sorted(found, key=lambda panel: (-len(panel[2]), -len(panel[1]), panel[0]))


def history_page(history: History) -> str:
    """The page: what changed, in words and numbers, and every series to look at."""
    good = history.receipts[history.receipts["problem"] == ""]
    bad = history.receipts[history.receipts["problem"] != ""]
    shown = panels(history)
    times = good["timestamp"]
    worse = history.changes[history.changes["worse"].astype(bool)]
    return render(
        "history.html",
        script="history.js",
        title="History of receipts",
        data={"series": [_series(*panel) for panel in shown[:MOST_SERIES]]},
        n=len(good),
        first=str(times.min())[:10] if len(good) else "",
        last=str(times.max())[:10] if len(good) else "",
        commits=good["commit"].nunique(),
        machines=good["machine"].nunique(),
        failed=int((good["parity"] == "failed").sum()),
        n_changes=len(history.changes),
        n_worse=len(worse),
        left_out=max(0, len(shown) - MOST_SERIES),
        n_series=len(shown),
        changes=[_change(row) for row in history.changes.head(MOST_ROWS).to_dict("records")],
        unreadable=[
            {name: row[name] for name in ("file", "problem")} for row in bad.head(MOST_ROWS).to_dict("records")
        ],
        n_unreadable=len(bad),
    )


def _change(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "series": row["series"],
        "unit": row["unit"],
        "machine": row["machine"],
        "day": str(row["timestamp"])[:16],
        "commit": row["commit"] or "–",
        "before": number(row["before"]),
        "after": number(row["after"]),
        "factor": number(row["factor"]),
        "worse": bool(row["worse"]),
    }


def _series(key: Key, values: pd.DataFrame, marks: pd.DataFrame) -> dict[str, Any]:
    kind, series, unit, machine = key
    shown = points(values)
    columns = (
        shown["timestamp"].to_numpy().astype("datetime64[ms]").astype("int64").tolist(),
        *(np.vectorize(_short)(shown[name].to_numpy()).tolist() for name in ("value", "low", "high")),
        shown["commit"],
        shown["n"].tolist(),
    )
    return {
        "kind": kind,
        "series": series,
        "unit": unit,
        "machine": machine,
        "better": "more" if unit in MORE_IS_BETTER else "less",
        "n": len(values),
        "points": [list(point) for point in zip(*columns, strict=True)],
        "changes": [
            {
                "time": int(row["timestamp"].value // 10**6),
                "commit": row["commit"],
                "before": _short(row["before"]),
                "after": _short(row["after"]),
                "worse": bool(row["worse"]),
            }
            for row in marks.sort_values("timestamp").to_dict("records")
        ],
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def default_workers() -> int:
    """As many processes as this one may use, at most eight."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)
