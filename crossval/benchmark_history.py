"""Ratios of earlier runs, by machine and model: a line of JSON a run, and a gate against their median.

A speed by itself says little on a machine that others use; the ratio to a peer of the same run says more, so that is
what is kept and compared. What a gate found slower is entered with that said, and counts in no later median: a
regression does not make itself the measure.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from bitnet.errors import UsageError
from crossval.benchmark import Head, Row, ratios
from crossval.benchmark_document import machine

#: Earlier runs of the same thing, from which a median means something.
ENOUGH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate found, a line each.

    Attributes:
        slower: Ratios too far below the median of earlier ones.
        unjudged: Ratios without enough earlier ones, and why there is nothing else.
    """

    slower: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()


class History:
    """A file of ratios; made with the first entry.

    Raises:
        UsageError: The file is no history.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        raw = path.read_bytes() if path.exists() else b""
        self._ended = not raw or raw.endswith(b"\n")
        self._entries = [self._entry(number, line) for number, line in enumerate(raw.splitlines(), start=1)]

    def enter(self, model: str, rows: Sequence[Row], gate: float | None, head: Head = "screened") -> Verdict:
        """Append the ratios of a run, judged by those of earlier ones.

        Args:
            model: Name of the model's file.
            rows: Of all engines.
            gate: Share below the median that is too far; None asks for nothing.
            head: How ours read its output head; the two are compared apart.
        """
        here = machine()
        full = ", full head" if head == "full" else ""
        found = {f"{task.name}, {task.threads} thread(s){full}": r.value for task, r in ratios(rows, "bitnet").items()}
        slower: dict[str, str] = {}
        unjudged = []
        if gate is not None:
            earlier = [e for e in self._entries if (e["machine"], e["model"]) == (here, model)]
            for name, ratio in found.items():
                before = [e["ratios"][name] for e in earlier if name in e["ratios"] and name not in e.get("slower", ())]
                if len(before) < ENOUGH:
                    unjudged.append(f"{name}: {len(before)} of {ENOUGH} earlier runs, not judged")
                elif not ratio >= (1 - gate) * statistics.median(before):  # NaN is no pass
                    slower[name] = f"{name}: {ratio:.2f} times the peer, {statistics.median(before):.2f} before"
            if not found:
                unjudged.append("no task has a peer, nothing judged")
        marks = {"slower": list(slower)} if slower else {}
        entry = {"when": datetime.now(UTC).isoformat(), "machine": here, "model": model, "ratios": found, **marks}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("" if self._ended else "\n") + json.dumps(entry) + "\n")
        self._entries.append(entry)
        self._ended = True
        return Verdict(slower=tuple(slower.values()), unjudged=tuple(unjudged))

    def _entry(self, number: int, line: bytes) -> Mapping[str, Any]:
        try:
            entry = json.loads(line)
            found, slower = entry["ratios"].items(), entry.get("slower", [])
            entry["machine"], entry["model"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._refuse(number, str(error))
        for name, ratio in found:
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
                self._refuse(number, f"the ratio of {name!r} is {ratio!r}")
        if not isinstance(slower, list):
            self._refuse(number, f"slower is {slower!r}")
        return entry  # type: ignore[no-any-return]  # it has the methods of a dict

    def _refuse(self, number: int, why: str) -> NoReturn:
        raise UsageError(
            f"line {number} is no entry of a history: {why}", where=self._path, remedy="remove the line, or the file"
        )
