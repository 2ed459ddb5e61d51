"""A benchmark document as a picture: decode speed against what reading the weights allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.errors import ReportError

_REMEDY = "give what `bitnet benchmark run --out FILE` wrote"
_SCHEMA = "urn:bitnet-crossval:benchmark-1"


def read(path: Path) -> dict[str, Any]:
    """A document that `bitnet benchmark` wrote. Raises `ReportError` for anything else."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot be read as JSON: {error}", where=path, remedy=_REMEDY) from None
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        raise ReportError("is no benchmark", where=path, remedy=_REMEDY)
    if not any(_drawable(row) for row in document.get("rows", [])):
        raise ReportError(
            "has no decode whose bytes are known, so there is nothing to draw", where=path, remedy=_REMEDY
        )
    return document


def draw(document: Mapping[str, Any], out: Path) -> None:
    """Write the picture, PNG or SVG by its name.

    Across: bytes of weights a token, logarithmic. Up: tokens a second. The lines are the limits of so many threads, the
    points what was measured, with their intervals.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    rows = [row for row in document["rows"] if _drawable(row)]
    bandwidth = {b["threads"]: b["bytes_per_second"] for b in document["bandwidth"]}
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    sizes = [row["weight_bytes"] for row in rows]
    ends = [min(sizes) / 1.6, max(sizes) * 1.6]
    shades = {n: f"C{i}" for i, n in enumerate(sorted(bandwidth))}
    for n, rate in sorted(bandwidth.items()):
        label = f"{n} thread{'s' if n > 1 else ''}: {rate / 1e9:.1f} GB/s"
        axes.plot([s / 1e6 for s in ends], [rate / s for s in ends], color=shades[n], label=label)
    markers = dict(zip(sorted({row["engine"] for row in rows}), "osD^vP*X", strict=False))
    seen = set()
    for row in rows:
        low, high = row["interval"]
        middle = row["tokens_per_second"]
        engine = row["engine"]
        axes.errorbar(
            row["weight_bytes"] / 1e6,
            middle,
            yerr=[[middle - low], [high - middle]],
            color=shades.get(row["threads"], "0.4"),
            marker=markers.get(engine, "."),
            linestyle="none",
            capsize=3,
            label=None if engine in seen else engine,
        )
        seen.add(engine)
        share = row["share_of_bandwidth"]
        if share is not None:
            axes.annotate(f" {share:.0%}", (row["weight_bytes"] / 1e6, middle), fontsize=8, va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        for set_formatter in (axis.set_major_formatter, axis.set_minor_formatter):
            set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("weights read for a token, MB")
    axes.set_ylabel("decode, tokens/s")
    axes.set_title(f"{document['model']['file']} on {document['machine']['cpu']}", fontsize=10)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _drawable(row: Mapping[str, Any]) -> bool:
    return row.get("what") == "decode" and bool(row.get("weight_bytes")) and row.get("batch") == 1
