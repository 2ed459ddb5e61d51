"""A history with a known change in it: receipts in JSON Lines, the engine slower and larger from the 60th on."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import reports_sample as sample

from receipts import seal

N, CHANGED = 100, 60


def lines(n=N):
    base = sample.receipt()
    data, rng = seal(base).to_dict(), random.Random(5)
    for i in range(n):
        when = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=6 * i)).strftime("%Y-%m-%dT%H:%M:%SZ")
        factor = (0.7 if i >= CHANGED else 1.0) * rng.gauss(1, 0.02)
        data["timestamp"] = when
        data["identity"]["git_commit"] = f"{i // 2:04x}".ljust(40, "0")
        for row in data["performance"]:
            if row["engine"] == "bitnet" and row["tokens"] > 1:
                row["tokens_per_second"] = 400.0 * factor
                row["memory_bytes"] = 1_300_000 if i >= CHANGED else 1_000_000
        yield json.dumps(data)


def write(folder, n=N):
    path = folder / "all.jsonl"
    path.write_text("\n".join([*lines(n), "not json", '{"schema_version": "9.0.0"}']) + "\n", encoding="utf-8")
    return path


def whole():
    """One receipt whose digest is its own."""
    return seal(replace(sample.receipt()))
