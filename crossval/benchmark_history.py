"""Ratios of earlier runs, by machine and model: a line of JSON a run, and a gate against their median.

A speed by itself says little on a machine that others use; the ratio to a peer of the same run says more, so that is
what is kept and compared.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitnet.errors import UsageError
from crossval.benchmark import Head, Row, ratios
from crossval.benchmark_document import machine

#: Earlier runs of the same thing, from which a median means something.
_ENOUGH = 3


def enter(path: Path, model: str, rows: Sequence[Row], gate: float | None, head: Head = "screened") -> list[str]:
    """Append the ratios of a run, and say which are too far below those of earlier ones.

    Args:
        path: The file; made if there is none.
        model: Name of the model's file.
        rows: Of all engines.
        gate: Share below the median that is too far; None asks for nothing.
        head: How ours read its output head; the two are compared apart.

    Raises:
        UsageError: The file is no history.
    """
    here = machine()
    all_of_it = ", full head" if head == "full" else ""
    found = {f"{task.name}, {task.threads} thread(s){all_of_it}": r.value for task, r in ratios(rows, "bitnet").items()}
    slower = []
    if gate is not None:
        earlier = [e for e in _read(path) if e["machine"] == here and e["model"] == model]
        for name, ratio in found.items():
            before = [e["ratios"][name] for e in earlier if name in e["ratios"]]
            if len(before) >= _ENOUGH and ratio < (1 - gate) * statistics.median(before):
                slower.append(f"{name}: {ratio:.2f} times the peer, {statistics.median(before):.2f} before")
    entry = {"when": datetime.now(UTC).isoformat(), "machine": here, "model": model, "ratios": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return slower


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            entry["machine"], entry["model"], entry["ratios"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"line {number} is no entry of a history: {error}", where=path, remedy="remove the line, or the file"
            ) from None
        entries.append(entry)
    return entries
