"""Two receipts side by side: what changed between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from receipts.baseline import machine_kind, ratios
from receipts.codec import Record
from receipts.interval import median_interval
from receipts.record import Receipt
from receipts.replay import differences


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference.

    Attributes:
        part: Of the receipt.
        what: Which entry and field.
        before: Its value in the first receipt; "" where it had none.
        after: In the second.
        decides: Whether it is about what was found, and not only about where, when and how fast.
    """

    part: str
    what: str
    before: str
    after: str
    decides: bool = True


def diff(a: Receipt, b: Receipt) -> tuple[Change, ...]:
    """Everything that changed, results first."""
    return (
        *_entries("lanes", _lanes(a), _lanes(b)),
        *_entries("models", {m.name: m for m in a.models}, {m.name: m for m in b.models}),
        *_entries("cases", _cases(a), _cases(b)),
        *_entries("references", {r.key: r for r in a.references}, {r.key: r for r in b.references}),
        *_fields("kernels", ", ".join(a.kernels), ", ".join(b.kernels), decides=True),
        *_speed(a, b),
        *_fields("machine", machine_kind(a), machine_kind(b)),
        *_fields("commit", a.identity.git_commit, b.identity.git_commit),
        *_fields("package", a.identity.package_version, b.identity.package_version),
    )


def _fields(part: str, before: str, after: str, *, decides: bool = False) -> Iterator[Change]:
    if before != after:
        yield Change(part=part, what="", before=before, after=after, decides=decides)


def _lanes(receipt: Receipt) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for lane in receipt.lanes:
        found[lane.name] = lane
    return found


def _cases(receipt: Receipt) -> dict[str, Record]:
    return {
        " · ".join((case.model, case.name, *(f"{k}={v}" for k, v in sorted(case.numerics.items())))): case
        for case in receipt.cases
    }


def _entries(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in before.keys() - after.keys():
        yield Change(part=part, what=name, before="there", after="")
    for name, new in after.items():
        if name not in before:
            yield Change(part=part, what=name, before="", after="there")
            continue
        for path, old, value in differences(before[name], new):
            decides = not path.endswith((".why", ".detail", ".how"))
            yield Change(part=part, what=f"{name} {path}", before=_told(old), after=_told(value), decides=decides)


def _speed(a: Receipt, b: Receipt) -> Iterator[Change]:
    """Ratios to a peer whose intervals do not overlap."""
    then, now = ratios(a), ratios(b)
    for key in sorted(then.keys() & now.keys()):
        old, new = median_interval(then[key]), median_interval(now[key])
        if old[1] < new[0] or new[1] < old[0]:
            told = [f"{low:.2f} to {high:.2f} × {key[2]}" for low, high in (old, new)]
            yield Change(part="speed", what=f"{key[0]} {key[1]}", before=told[0], after=told[1], decides=False)


def _told(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
