"""Speeds: are rates, intervals, bytes and memory what the raw timings and the ledger make them?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from receipts.evidence import Performance
from receipts.interval import median_interval, rates
from receipts.lanes import ENGINE
from receipts.rule import Finding, View, rule

#: Rates are recomputed in double precision from the same numbers; only the order of operations may differ.
RATE_TOLERANCE = 1e-9
#: A phase that shares its caches with what ran before may read faster than memory; so much faster no cache is.
CACHE_FACTOR = 100.0


@rule("performance.rate", "Tokens per second are the median of tokens / seconds, of as many runs as are listed.")
def performance_rate(view: View) -> Iterator[Finding]:
    """Re-derived from the raw timings; a phase without tokens has no rate."""
    for i, row in enumerate(view.receipt.performance):
        path = f"performance[{i}]"
        if row.n != len(row.seconds) or not row.seconds:
            yield f"{path}.n", f"{row.n}, but {len(row.seconds)} timings are listed"
            continue
        if any(second <= 0 for second in row.seconds):
            yield f"{path}.seconds", "something took no time"
            continue
        if row.what in ("decode", "prefill") and row.tokens == 0:
            yield f"{path}.tokens", f"{row.what} of no tokens"
        rate = statistics.median(row.tokens / second for second in row.seconds)
        if not math.isclose(rate, row.tokens_per_second, rel_tol=RATE_TOLERANCE):
            yield f"{path}.tokens_per_second", f"{row.tokens_per_second:g}, but the timings make it {rate:g}"


@rule(
    "performance.subject",
    "What was timed is a model of the receipt, run by the engine or a reference that was there.",
)
def performance_subject(view: View) -> Iterator[Finding]:
    """On at least one thread."""
    there = {ENGINE} | {ref.key for ref in view.receipt.references if ref.obtained != "unavailable"}
    known = view.models()
    ran = {part.model for part in view.receipt.ledger if part.tokens}
    for i, row in enumerate(view.receipt.performance):
        if row.model not in known:
            yield f"performance[{i}].model", f"there is no model {row.model!r}"
        elif row.engine == ENGINE and row.what != "load" and row.model not in ran:
            yield f"performance[{i}].model", f"no ledger says that the engine ran {row.model!r}"
        if row.engine not in there:
            yield f"performance[{i}].engine", f"{row.engine!r} did not run"
        if row.threads == 0:
            yield f"performance[{i}].threads", "no thread ran"


@rule("performance.interval", "The interval of a rate is that of its raw timings.")
def performance_interval(view: View) -> Iterator[Finding]:
    """Phases without tokens have none. A receipt gives all of them, or (an older one) none at all."""
    required = any(row.interval for row in view.receipt.performance)
    for i, row in enumerate(view.receipt.performance):
        speeds = rates(row.tokens, row.seconds) if row.tokens else ()
        expected = median_interval(speeds) if speeds else ()
        if not row.interval and not required:
            continue
        if len(row.interval) != len(expected) or not all(
            math.isclose(a, b, rel_tol=RATE_TOLERANCE) for a, b in zip(row.interval, expected, strict=True)
        ):
            yield f"performance[{i}].interval", f"{row.interval}, but the timings make it {expected}"


@rule("performance.bytes", "Bytes read for a token are those of one forward call in the ledger.")
def performance_bytes(view: View) -> Iterator[Finding]:
    """And no memory feeds them faster than was measured, by more than caches explain."""
    for i, row in enumerate(view.receipt.performance):
        if not row.bytes_per_token:
            continue
        if row.bytes_per_token not in _bytes_of_a_pass(view, row):
            yield f"performance[{i}].bytes_per_token", f"{row.bytes_per_token}, which no ledger of the model says"
        if row.bandwidth_limit and row.bandwidth > CACHE_FACTOR * row.bandwidth_limit:
            yield f"performance[{i}].bandwidth_limit", f"{row.bandwidth:.3g} B/s were read of {row.bandwidth_limit:.3g}"


def _bytes_of_a_pass(view: View, row: Performance) -> set[int]:
    found = set()
    for part in view.receipt.ledger:
        if part.model == row.model and part.passes and row.engine == ENGINE:
            head = [entry for entry in part.entries if entry.role == "head" and entry.calls]
            layers = sum(entry.bytes for entry in part.entries if entry.role == "projection")
            found.add(layers // part.passes + sum(entry.bytes // entry.calls for entry in head))
    return found


@rule("performance.memory", "A process needs memory for the model that it ran, and no more than the machine has.")
def performance_memory(view: View) -> Iterator[Finding]:
    """Weights may be mapped and read in part, so that only the machine's memory bounds it from above."""
    for i, row in enumerate(view.receipt.performance):
        if row.memory_bytes > view.receipt.environment.memory_bytes:
            yield f"performance[{i}].memory_bytes", f"{row.memory_bytes}, but the machine has less"


@rule("performance.threads", "Both sides ran on the reference's threads, and the engine alone on as many every time.")
def performance_threads(view: View) -> Iterator[Finding]:
    """A reference that says on how many it ran, says so in its details."""
    declared = {reference.key: reference.detail.get("threads") for reference in view.receipt.references}
    alone: int | None = None
    for i, row in enumerate(view.receipt.performance):
        said = declared.get(row.engine)
        if said is not None and said != str(row.threads):
            yield f"performance[{i}].threads", f"{row.threads}, but {row.engine!r:.60} says {said:.20}"
        if row.what in ("load", "first_token"):
            alone = row.threads if alone is None else alone
            if row.threads != alone:
                yield f"performance[{i}].threads", f"{row.threads}, but {alone} before"
