"""A benchmark document as a picture: decode speed against what reading the weights allows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.errors import ReportError

_REMEDY = "give what `bitnet benchmark run --out FILE` wrote"
_SCHEMA_FILE = Path(__file__).resolve().parent.parent / "schemas" / "benchmark-1.schema.json"
_PICTURES = (".png", ".svg")
_SHOWN = 200  # characters of what is wrong


def read(path: Path) -> dict[str, Any]:
    """A document that `bitnet benchmark` wrote. Raises `ReportError` for anything else."""
    from jsonschema import Draft202012Validator  # slow to import, as is what draws

    try:
        document: dict[str, Any] = json.loads(
            path.read_text("utf-8"), parse_constant=_finite, parse_float=_finite, parse_int=_whole
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"cannot be read as JSON: {error}", where=path, remedy=_REMEDY) from None
    schema = json.loads(_SCHEMA_FILE.read_text("utf-8"))
    for breach in Draft202012Validator(schema).iter_errors(document):
        what = f"is no benchmark: {breach.json_path}: {breach.message[:_SHOWN]}"
        raise ReportError(what, where=path, remedy=_REMEDY)
    drawable = [row for row in document["rows"] if _drawable(row)]
    for row in drawable:
        if not row["interval"][0] <= row["tokens_per_second"] <= row["interval"][1]:
            raise ReportError(
                f"is no benchmark: {row['tokens_per_second']} tokens/s lie outside {row['interval']}",
                where=path,
                remedy=_REMEDY,
            )
    if not drawable:
        raise ReportError(
            "has no decode whose bytes are known, so there is nothing to draw", where=path, remedy=_REMEDY
        )
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:_SHOWN]} is no number to draw")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def draw(document: Mapping[str, Any], out: Path) -> None:
    """Write the picture, PNG or SVG by its name.

    Across: bytes of weights a token, logarithmic. Up: tokens a second. The lines are the limits of so many threads, the
    points what was measured, with their intervals.

    Args:
        document: As `read` gives it.
        out: The file; its folder is made.

    Raises:
        ReportError: The name ends like no picture's.
    """
    if out.suffix.lower() not in _PICTURES:
        raise ReportError("is no name of a picture", where=out, remedy="let it end with .png or .svg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from reports.figures.canvas import plain

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
            label=None if engine in seen else plain(engine),
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
    title = f"{document['model']['file']} on {document['machine']['cpu']}"
    axes.set_title(plain(title), fontsize=10, parse_math=False)
    axes.grid(visible=True, which="both", alpha=0.25)
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def _drawable(row: Mapping[str, Any]) -> bool:
    return row.get("what") == "decode" and bool(row.get("weight_bytes")) and row.get("batch") == 1
