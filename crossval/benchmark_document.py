"""A benchmark as one JSON document (`schemas/benchmark-1.schema.json`), and as a table."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnet import __version__
from bitnet.cli.output import table
from bitnet.kernels.variants import choose
from crossval.benchmark import SCHEMA, Head, Ratio, Row, Task, bandwidth, ratios, slowdowns
from crossval.environment import cpu_name


def document(model: Path, rows: Sequence[Row], head: Head) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        model: The file.
        rows: Of all engines.
        head: How ours read its output head.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "machine": machine(),
        "model": {"file": model.name, "bytes": model.stat().st_size},
        "head": head,
        "bandwidth": [{"threads": n, "bytes_per_second": rate} for n, rate in bandwidth(rows).items()],
        "rows": [row.to_dict() for row in rows],
        "ratios": [_entry(task, found) for task, found in ratios(rows, "bitnet").items()],
        "slowdowns": [_entry(task, found) for task, found in slowdowns(rows, "bitnet").items()],
    }


def _entry(task: Task, found: Ratio) -> dict[str, Any]:
    return {
        "task": task.name,
        "threads": task.threads,
        "peer": found.peer,
        "ratio": found.value,
        "interval": list(found.interval),
    }


def machine() -> dict[str, Any]:
    """What a speed belongs to."""
    return {"cpu": cpu_name(), "arch": platform.machine(), "isa": choose().id}


def show(rows: Sequence[Row], head: Head) -> None:
    """The table: medians, intervals, shares of what memory allows, ratios."""
    found = ratios(rows, "bitnet")
    shown = []
    for row in rows:
        low, high = row.interval
        share = row.share
        ratio = found.get(row.task) if row.engine == "bitnet" else None
        shown.append(
            (
                row.task.name,
                str(row.task.threads),
                row.engine,
                f"{row.rate:,.1f}",
                f"{low:,.1f}–{high:,.1f}",
                "" if share is None else f"{share:.0%}",
                "" if ratio is None else str(ratio),
            )
        )
    columns = ("what", "threads", "engine", "tokens/s", "95 %", "of memory", "ratio")
    table(columns, shown, right=(1, 3, 4, 5, 6))
    for n, rate in bandwidth(rows).items():
        print(f"memory, {n} thread(s): {rate / 1e9:.1f} GB/s, the median of what was read before each repetition")
    mine = "bitnet" if head == "screened" else "bitnet, full head"
    lines = [f"{task.name}, {task.threads} thread(s): {r} × {r.peer}" for task, r in found.items()]
    lines += [f"{t.name}, {t.threads} thread(s): {r} × {r.peer}" for t, r in slowdowns(rows, "bitnet").items()]
    if lines:
        print(f"{mine}: {'; '.join(lines)}")
