"""The report folder: the page for a browser, the same as Markdown, and its pictures, each file whole or as it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import receipts
from receipts.read import MAX_RECEIPT_BYTES, contents, parse
from receipts.record import Receipt
from reports import markdown, sentences
from reports.crossval_page import crossval_page
from reports.errors import ReportError
from reports.frames import Frames, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPaths:
    """What was written.

    Attributes:
        folder: The report folder.
        page: `report.md`.
        html: `report.html`, which needs nothing beside it.
        pictures: Name → PNG; an SVG of the same name lies beside each.
    """

    folder: Path
    page: Path
    html: Path
    pictures: dict[str, Path]


def write_report(
    receipt_path: str | PathLike[str], out: str | PathLike[str], *, repro: str | PathLike[str] = "build/repro"
) -> ReportPaths:
    """Writes the report of a receipt.

    Everything is made beside the folder's files first and moved into place at the end, the page last, so that a
    page never names a picture of another run for longer than the moves take.

    Args:
        receipt_path: The receipt; its side files lie beside it.
        out: The report folder, made if it is missing. Other files in it are left alone.
        repro: Folder of the reproductions that were made; those of this receipt's lanes are linked.

    Returns:
        Paths of what was written.

    Raises:
        receipts.ReceiptError: The receipt or a side file is missing, damaged or not what it says it is.
        ReportError: The folder cannot be written.
    """
    receipt, tables = load(receipt_path)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".report-") as beside:
            made = _make(receipt, tables, Path(beside), reproductions(receipt, Path(repro), folder))
            for file in made:
                file.replace(folder / file.name)
    except OSError as error:
        raise ReportError(
            f"cannot be written ({error.strerror})",
            where=error.filename or folder,
            remedy="name a folder that this user may write to",
        ) from None
    names = pictures(receipt, tables)
    return ReportPaths(
        folder=folder,
        page=folder / "report.md",
        html=folder / "report.html",
        pictures={name: folder / f"{name}.png" for name in names},
    )


def pictures(receipt: Receipt, tables: Frames) -> dict[str, Callable[[], Figure]]:
    """Name → a function that draws it, in the order of the page."""
    from reports import figures  # matplotlib takes a second to import, and a table alone needs none of it

    remarks = {lane.name: sentences.remark(lane) for lane in receipt.lanes}
    return {
        "ladder": lambda: figures.ladder(tables.lanes, tables.rungs, remarks),
        "operations": lambda: figures.operations(tables.operations),
        "drift": lambda: figures.drift(tables.positions, tables.lanes),
        "throughput": lambda: figures.throughput(tables.performance),
    }


def reproductions(receipt: Receipt, folder: Path, seen_from: Path) -> dict[str, str]:
    """Lane → the folder that shows its defect, as a path relative to another folder.

    A reproduction is a folder with a `case.json` whose title names the lane.
    """
    found: dict[str, str] = {}
    names = sorted((lane.name for lane in receipt.lanes if lane.located), key=len)
    for case in sorted(folder.glob("*/case.json")):
        try:
            record = parse(contents(case, MAX_RECEIPT_BYTES), str(case))
        except receipts.ReceiptError:
            continue  # not one of ours
        title = record.get("title") if isinstance(record, dict) else None
        for name in names:
            if isinstance(title, str) and name in title:  # of two names, the longer one comes last and stays
                found[name] = os.path.relpath(case.parent, seen_from).replace(os.sep, "/") + "/"
    return found


def _make(receipt: Receipt, tables: Frames, folder: Path, repro: Mapping[str, str]) -> list[Path]:
    from reports.figures.canvas import save

    made = []
    drawn = pictures(receipt, tables)
    for name, draw in drawn.items():
        made += save(draw(), folder / name)
    page = folder / "report.md"
    page.write_text(markdown.page(receipt, {name: f"{name}.png" for name in drawn}), encoding="utf-8")
    html = folder / "report.html"
    html.write_text(crossval_page(receipt, tables, repro), encoding="utf-8")
    return [*made, page, html]
