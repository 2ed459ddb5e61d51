"""Records a live reference: one lane is climbed as usual, and every answer the reference gives is kept in a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from crossval.plan import LARGE_MODEL
from crossval.run import Options, Run, Say, one_of
from receipts.record import Lane
from reference.recording import Recorder
from reference.runner import ReferenceUnavailableError, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of it.

    Attributes:
        lane: The lane that was climbed.
        n_requests: Computations in the file.
        n_bytes: Size of the file.
    """

    lane: Lane
    n_requests: int
    n_bytes: int


def record(options: Options, out: Path, say: Say) -> Recorded:
    """Climb the one lane that `options.only` names, and write what its reference answered.

    A lane that fails is recorded too: what the reference computed is what a recording is for.

    Raises:
        UsageError: No lane, or more than one, has that name.
        ReferenceUnavailableError: The reference answered nothing.
    """
    this = Run(options, say)
    plan = one_of(this.plan(), options.only)
    kept: list[Recorder] = []

    def recorded() -> Runner:
        kept.append(Recorder(plan.open(), weights=plan.subject.n_weights <= LARGE_MODEL))
        return kept[-1]

    lane = this.climb(replace(plan, open=recorded))
    if not kept or not kept[0].answered:
        raise ReferenceUnavailableError(f"{plan.name}: {lane.rungs[0].why}", remedy="make that reference run here")
    n_requests = kept[0].save(out)
    return Recorded(lane=lane, n_requests=n_requests, n_bytes=out.stat().st_size)
