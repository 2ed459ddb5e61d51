"""Speed against llama.cpp on the same weights: the two sides alternate, medians are quoted, and the ratio counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from bitnet.api import default_threads
from crossval import evidence
from crossval.engine import EngineRunner
from crossval.plan import TIMEOUT, Subject, lanes, shipped_subjects, user_subject
from receipts.record import Performance
from reference.process import ProcessRunner
from reference.runner import ReferenceUnavailableError


def compare(models: Sequence[Path], fixtures: Path, copies: Path, *, repeats: int, n_threads: int | None) -> Table:
    """A table of tokens per second, one row a model and phase.

    Args:
        models: Files; empty for the shipped ones.
        fixtures: Folder of shipped models.
        copies: Folder for transcoded copies.
        repeats: Timed runs of each side.
        n_threads: Of both sides; default: as the engine's.

    Raises:
        ReferenceUnavailableError: llama.cpp cannot run here, or reads none of the models.
    """
    threads = n_threads or default_threads()
    table = Table(
        title=f"tokens per second, median of {repeats} alternating runs, {threads} thread(s)",
        caption=f"prefill of {evidence.TIMED_PREFILL} tokens, decode of {evidence.TIMED_DECODE}",
    )
    for column in ("model", "phase", "bitnet", "llama.cpp TQ2_0", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "phase") else "right")
    subjects = [user_subject(path, fixtures) for path in models] or shipped_subjects(fixtures)
    measured = 0
    for subject in subjects:
        rows = _measure(subject, copies, repeats, threads)
        measured += bool(rows)
        for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
            ratio = ours.tokens_per_second / theirs.tokens_per_second
            rates = (f"{row.tokens_per_second:,.0f}" for row in (ours, theirs))
            table.add_row(subject.name, ours.what, *rates, f"{ratio:.2f}")
    if not measured:
        raise ReferenceUnavailableError("llama.cpp reads none of these models, so there is nothing to compare with")
    return table


def _measure(subject: Subject, copies: Path, repeats: int, threads: int) -> list[Performance]:
    """Engine and reference in turn, prefill then decode; empty where llama.cpp cannot read the model."""
    plans = [p for p in lanes([subject], copies, shipped=True) if "TQ2_0" in p.reference and not p.impossible]
    if not plans:
        return []
    file = str(plans[0].reference_file)
    peer = ProcessRunner("reference.llama_cpp:LlamaCpp", {"model": file, "n_threads": threads}, timeout=TIMEOUT)
    with peer:
        engine = EngineRunner(subject.path, n_threads=threads)
        rows = evidence.speed(subject.name, engine, peer, "llama.cpp", (1, 2, 3, 4), repeats=repeats)
    by = {(row.engine, row.what): row for row in rows}
    return [by[who, what] for what in ("prefill", "decode") for who in ("bitnet", "llama.cpp")]
