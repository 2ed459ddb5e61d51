"""Receipts of before as a yardstick: has it become slower, or drifted, on the same kind of machine?

Seconds say as much about the machine's other work as about the engine. So speed is the ratio to a peer that was timed
in the same run, turn by turn, and it has regressed only if its whole interval lies below what the baseline's interval
allows: a noisy machine widens the intervals, and fails nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from receipts.errors import ReceiptError, SettingError
from receipts.interval import median_interval
from receipts.lanes import ENGINE
from receipts.policy import BaselineRules
from receipts.read import read
from receipts.record import Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One thing compared with a baseline.

    Attributes:
        name: `machine`, `speed.<model>.<phase>`, `drift.<lane>`, `bits.<model>`.
        held: Whether it is as good as before.
        path: In the receipt.
        why: One sentence.
    """

    name: str
    held: bool
    path: str
    why: str


def machine_kind(receipt: Receipt) -> str:
    """What decides which timings can be compared: architecture, CPU model, cores."""
    environment = receipt.environment
    return f"{environment.machine} · {environment.cpu} · {environment.cores} cores"


def compare(receipt: Receipt, rules: BaselineRules) -> Iterator[Comparison]:
    """Everything that the rules ask for. Raises `SettingError` for a baseline that cannot be read."""
    if not rules.files:
        return
    baselines = [_read(path) for path in rules.files]
    kind = machine_kind(receipt)
    fitting = [baseline for baseline in baselines if machine_kind(baseline) == kind]
    yield Comparison(
        name="machine",
        held=bool(fitting) or rules.missing == "pass",
        path="environment",
        why=f"{len(fitting)} of {len(baselines)} baseline(s) are of this kind of machine: {kind}",
    )
    if not fitting:
        return
    before = max(fitting, key=lambda baseline: baseline.timestamp)
    if rules.speed is not None:
        yield from _speed(receipt, before, rules.speed)
    if rules.drift is not None:
        yield from _drift(receipt, before, rules.drift)
    if rules.bits:
        yield from _bits(receipt, before)


def _read(path: Path) -> Receipt:
    from receipts.verify import verify  # the gate is a part of verifying

    try:
        report = verify(path, gate=False)
    except ReceiptError as error:
        raise SettingError(f"the baseline {error.reason}", file=str(path), remedy=error.remedy) from None
    if not report.valid:
        first = report.failures[0]
        raise SettingError(f"the baseline is invalid: {first.name}, {first.message}", path=first.path, file=str(path))
    return read(path)


Ratio = tuple[str, str, str]


def ratios(receipt: Receipt) -> dict[Ratio, tuple[float, ...]]:
    """(model, phase, peer) → the engine's speed over the peer's, repetition by repetition."""
    ours = {(row.model, row.what): row for row in receipt.performance if row.engine == ENGINE}
    found: dict[Ratio, tuple[float, ...]] = {}
    for peer in receipt.performance:
        row = ours.get((peer.model, peer.what))
        if peer.engine == ENGINE or row is None or not row.tokens or row.threads != peer.threads:
            continue
        if len(row.seconds) == len(peer.seconds) and all(s > 0 for s in (*row.seconds, *peer.seconds)):
            scale = row.tokens / peer.tokens if peer.tokens else 0.0
            found[row.model, row.what, peer.engine] = tuple(
                scale * theirs / mine for mine, theirs in zip(row.seconds, peer.seconds, strict=True)
            )
    return found


def _speed(receipt: Receipt, before: Receipt, share: float) -> Iterator[Comparison]:
    now, then = ratios(receipt), ratios(before)
    for key in sorted(then):
        name = f"speed.{key[0]}.{key[1]}"
        if key not in now:
            yield Comparison(name=name, held=False, path="performance", why=f"not measured against {key[2]} any more")
            continue
        low, high = median_interval(now[key])
        least = share * median_interval(then[key])[0]
        yield Comparison(
            name=name,
            held=high >= least,
            path="performance",
            why=f"{low:.2f} to {high:.2f} × {key[2]}, at least {least:.2f} expected",
        )


def _drift(receipt: Receipt, before: Receipt, growth: float) -> Iterator[Comparison]:
    """A lane that passed before passes, and no measured difference has grown beyond a multiple."""
    places = {lane.name: i for i, lane in enumerate(receipt.lanes)}
    for old in before.lanes:
        i = places.get(old.name)
        if i is None:
            yield Comparison(name=f"drift.{old.name}", held=False, path="lanes", why="the lane is gone")
            continue
        lane, worse = receipt.lanes[i], []
        for rung in old.rungs:
            new = lane.rung(rung.name)
            if rung.outcome != "pass":
                continue
            if new is None or new.outcome != "pass":
                worse.append(f"{rung.name} passed before")
            elif None not in (rung.measured, new.measured) and new.measured > growth * rung.measured:  # type: ignore[operator]  # neither is None
                worse.append(f"{rung.name} {new.measured:.3g}, {rung.measured:.3g} before")
        why = "; ".join(worse) or f"no measured difference grew beyond {growth:g} ×"
        yield Comparison(name=f"drift.{old.name}", held=not worse, path=f"lanes[{i}]", why=why)


def _bits(receipt: Receipt, before: Receipt) -> Iterator[Comparison]:
    def logits(of: Receipt) -> dict[object, str]:
        sha = {model.name: model.sha256 for model in of.models}
        return {
            (
                sha.get(c.model),
                frozenset(c.numerics.items()),
                c.prompt_ids,
                c.generated_ids,
                c.logits_shape,
            ): c.logits_sha256
            for c in of.cases
        }

    now, then = logits(receipt), logits(before)
    common = now.keys() & then.keys()
    changed = sum(now[key] != then[key] for key in common)
    yield Comparison(
        name="bits",
        held=bool(common) and not changed,
        path="cases",
        why=f"{changed} of {len(common)} cases with the same model, numerics and ids have other logits",
    )
