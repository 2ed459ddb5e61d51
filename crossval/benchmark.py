"""Speed: what was measured, with whom it alternated, and how far it is from what the machine's memory allows.

A row is one engine doing one thing (decode at a position, prefill of a length) with one number of threads. Peers
alternate within a repetition, so that a slow minute of the machine slows all of them; medians are quoted, with a
bootstrap interval, and ratios are of medians of the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

What = Literal["decode", "prefill"]
#: How our output head is read: by its proven bounds, or all of it.
Head = Literal["screened", "full"]

SCHEMA = "urn:bitnet-crossval:benchmark-1"
_RESAMPLES = 2000
_COVERAGE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to time.

    Attributes:
        what: Decode `tokens` one at a time after a prompt of `position` tokens, or prefill a prompt of `tokens`.
        batch: Sequences decoded together.
    """

    what: What
    tokens: int
    position: int = 0
    threads: int
    batch: int = 1

    @property
    def n_ctx(self) -> int:
        """Tokens of a context that each sequence takes; what decoding begins with and the last token, too."""
        return self.tokens if self.what == "prefill" else max(self.position, 1) + self.tokens + 1

    @property
    def name(self) -> str:
        """As a person says it."""
        at = f" at {self.position}" if self.what == "decode" and self.position else ""
        many = f", {self.batch} sequences" if self.batch > 1 else ""
        return f"{self.what} {self.tokens}{at}{many}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine on one task.

    Attributes:
        engine: Who.
        seconds: Of each repetition.
        weight_bytes: Read from memory for one step of decoding, or None where it is not known.
        memory: Bytes a second that as many threads read just before each repetition; empty where that was not measured.
    """

    engine: str
    task: Task
    seconds: tuple[float, ...]
    weight_bytes: int | None = None
    memory: tuple[float, ...] = ()

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens a second of each repetition, of all sequences together."""
        return tuple(self.task.tokens * self.task.batch / s for s in self.seconds)

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)

    @property
    def interval(self) -> tuple[float, float]:
        """A bootstrap interval of the median (95 %), the same each time it is asked for."""
        rng = np.random.default_rng(0)
        drawn = np.median(rng.choice(self.rates, (_RESAMPLES, len(self.rates))), axis=1)
        low, high = np.quantile(drawn, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
        return float(low), float(high)

    @property
    def share(self) -> float | None:
        """How much of the speed that memory allows a decode step reaches; None for what is not bound by memory.

        The median over repetitions, each against what memory gave just before: on a shared machine that changes.
        """
        if not self.memory or self.weight_bytes is None or self.task.what != "decode" or self.task.batch > 1:
            return None
        pairs = zip(self.rates, self.memory, strict=True)
        return statistics.median(rate * self.weight_bytes / limit for rate, limit in pairs)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "engine": self.engine,
            **asdict(self.task),
            "seconds": list(self.seconds),
            "tokens_per_second": self.rate,
            "interval": list(self.interval),
            "weight_bytes": self.weight_bytes,
            "memory_bytes_per_second": list(self.memory),
            "share_of_bandwidth": self.share,
        }


class Engine(Protocol):
    """What can be timed."""

    @property
    def name(self) -> str:
        """Who."""
        ...

    def seconds(self, task: Task) -> float:
        """Do it once; the wall time of the thing itself."""
        ...

    def weight_bytes(self, task: Task) -> int | None:
        """Bytes of weights that one step reads."""
        ...


def alternate(
    engines: Sequence[Engine],
    tasks: Sequence[Task],
    repeats: int,
    say: Callable[[int, int, str], None] = lambda *_: None,
    memory: Callable[[int], float] | None = None,
) -> list[Row]:
    """Time every engine on every task, in turn, after one round to warm up.

    Args:
        engines: In the order they take their turns.
        tasks: One after the other.
        repeats: Timed rounds of each task.
        say: Told rounds done, rounds in all, and what comes.
        memory: Bytes a second that so many threads can read, measured before each repetition of decoding.
    """
    rows = []
    total, done = len(tasks) * (repeats + 1) * len(engines), 0
    for task in tasks:
        seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
        read: dict[str, list[float]] = {engine.name: [] for engine in engines}
        for round_ in range(repeats + 1):
            for engine in engines:
                say(done, total, f"{task.name}, {task.threads} thread(s): {engine.name}")
                if round_ and memory is not None and task.what == "decode":
                    read[engine.name].append(memory(task.threads))
                took = engine.seconds(task)
                if round_:
                    seconds[engine.name].append(took)
                done += 1
        rows += [
            Row(
                engine=e.name,
                task=task,
                seconds=tuple(seconds[e.name]),
                weight_bytes=e.weight_bytes(task),
                memory=tuple(read[e.name]),
            )
            for e in engines
        ]
    return rows


def bandwidth(rows: Sequence[Row]) -> dict[int, float]:
    """The median of what so many threads read from memory, by threads."""
    read: dict[int, list[float]] = {}
    for row in rows:
        read.setdefault(row.task.threads, []).extend(row.memory)
    return {n: statistics.median(rates) for n, rates in sorted(read.items()) if rates}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Our speed over the best of the others', of one task.

    Attributes:
        peer: Who that is.
        value: Of the medians.
        interval: By bootstrap (95 %), both medians drawn anew, the same each time it is asked for.
    """

    peer: str
    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.interval[0]:.2f}–{self.interval[1]:.2f})"


def ratio(ours: Row, other: Row) -> Ratio:
    """Of two rows."""
    rng = np.random.default_rng(0)
    drawn = [np.median(rng.choice(row.rates, (_RESAMPLES, len(row.rates))), axis=1) for row in (ours, other)]
    low, high = np.quantile(drawn[0] / drawn[1], [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return Ratio(peer=other.engine, value=ours.rate / other.rate, interval=(float(low), float(high)))


def ratios(rows: Sequence[Row], ours: str) -> dict[Task, Ratio]:
    """Our median over the best median of the others, for each task that others did too, in the order of the rows."""
    found = {}
    for mine in rows:
        others = [row for row in rows if row.task == mine.task and row.engine != ours]
        if mine.engine == ours and others:
            found[mine.task] = ratio(mine, max(others, key=lambda row: row.rate))
    return found


def slowdowns(rows: Sequence[Row], ours: str) -> dict[Task, Ratio]:
    """Our decoding after a long text over that after the shortest, for each position beyond that."""
    mine = sorted((r for r in rows if r.engine == ours and r.task.what == "decode"), key=lambda r: r.task.position)
    found: dict[Task, Ratio] = {}
    for row in mine:
        first = next(r for r in mine if replace(r.task, position=0) == replace(row.task, position=0))
        if first.task.position < row.task.position:
            found[row.task] = replace(ratio(row, first), peer=first.task.name)
    return found
