"""Receipts in a notebook: tables as frames, pictures as pictures, and a verdict that shows itself.

from reports import notebook

run = notebook.run("ci/inference.json")
run                         # the verdict and the ladder
run.tables.operations       # pandas
run.figure("operations")    # the heat maps
notebook.history("receipts-of-ci.zip").figure("speed")
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from receipts.lanes import RUNGS
from receipts.record import Receipt
from reports import sentences
from reports.frames import Frames, load
from reports.history import KINDS, History, read
from reports.page import visible
from reports.sentences import SYMBOLS, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows of changes that a history shows of itself.
_MOST = 20
_CELL = 'style="text-align:left;padding:.2em .6em"'


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure that shows itself in any notebook, whatever backend is set there.

    Attributes:
        figure: matplotlib's, to be changed or saved.
    """

    figure: Figure

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.figure.savefig(content, format="png", dpi=110)
        return content.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One receipt.

    Attributes:
        receipt: The record.
        tables: Its frames.
    """

    receipt: Receipt
    tables: Frames

    def figure(self, name: str) -> Picture:
        """`ladder`, `operations`, `drift` or `throughput`. Raises `KeyError` with these names for another."""
        from reports.build import pictures

        drawn = pictures(self.receipt, self.tables)
        if name not in drawn:
            raise KeyError(f"{name!r} is none of {', '.join(drawn)}")
        return Picture(drawn[name]())

    def page(self, path: str | PathLike[str]) -> Path:
        """Writes the HTML report of this run."""
        from reports.crossval_page import crossval_page

        target = Path(path)
        target.write_text(crossval_page(self.receipt, self.tables), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        from reports.table import conclusion

        told = "".join(f"<p>{_text(line)}</p>" for line in conclusion(self.receipt))
        loud = [lane for lane in self.receipt.lanes if not sentences.simply_passed(lane)]
        found = "".join(f"<li>{_text(sentences.sentence(lane))}</li>" for lane in loud)
        return f"{told}{_ladder(self.receipt)}<ul>{found}</ul>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trends:
    """Many receipts.

    Attributes:
        receipts, values, changes: Frames, as `reports.history.History` has them.
    """

    history: History

    @property
    def receipts(self) -> pd.DataFrame:
        """One row a receipt."""
        return self.history.receipts

    @property
    def values(self) -> pd.DataFrame:
        """One row a measured value."""
        return self.history.values

    @property
    def changes(self) -> pd.DataFrame:
        """One row a marked change."""
        return self.history.changes

    def figure(self, kind: str) -> Picture:
        """`drift`, `speed` or `memory` over time. Raises `KeyError` with these names for another."""
        from reports.figures.trend import trend
        from reports.history_page import panels

        if kind not in KINDS:
            raise KeyError(f"{kind!r} is none of {', '.join(KINDS)}")
        return Picture(trend(kind, panels(self.history, kind)))

    def _repr_html_(self) -> str:
        lost = int((self.receipts["problem"] != "").sum())
        told = f"{len(self.receipts) - lost} receipts, {lost} not read, {len(self.changes)} changes"
        head = ("since", "commit", "series", "before", "after", "direction")
        rows = [
            (
                str(row["timestamp"])[:16],
                str(row["commit"]),
                f"{row['series']} ({row['unit']})",
                number(row["before"]),
                number(row["after"]),
                "▼ worse" if row["worse"] else "▲ better",
            )
            for row in self.changes.head(_MOST).to_dict("records")
        ]
        return f"<p>{_text(told)}</p>{_table(head, rows) if rows else ''}"


def run(path: str | PathLike[str] = "ci/inference.json") -> Run:
    """A receipt and its side files. Raises `receipts.ReceiptError` for what is none."""
    receipt, tables = load(path)
    return Run(receipt=receipt, tables=tables)


def history(*places: str | PathLike[str], workers: int = 1) -> Trends:
    """Every receipt in files, folders, archives and JSON Lines. Raises `receipts.ReceiptError` for a missing place."""
    return Trends(history=read([Path(place) for place in places], workers=workers))


def _ladder(receipt: Receipt) -> str:
    rows = []
    for lane in receipt.lanes:
        found = {rung.name: rung.outcome for rung in lane.rungs}
        outcomes = [found.get(name, "inconclusive") for name in RUNGS]
        rows.append([lane.name, *(f"{SYMBOLS[outcome]} {outcome}" for outcome in outcomes), sentences.gate(lane)])
    return _table(["lane", *RUNGS, "gate"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th scope='col' {_CELL}>{_text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td {_CELL}>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return escape(visible(text))
