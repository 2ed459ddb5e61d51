"""Why the odd side of a lane is wrong: from its operations where they were seen, from its logits where those are all.

A lane that fails on logits or on single steps, because its reference shows no intermediates or because those that it
shows hold, is put to a vote there, with the contract as the third witness, and what is odd is explained by replaying
hypotheses from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crossval.attribute import BUDGET, Progress, attribute
from crossval.case import ends
from crossval.end_to_end import Evaluation
from crossval.infer import inferred
from crossval.lane import Lane
from crossval.locate import SINGLE_TOKENS, place
from crossval.metrics import Float32, aligned, relative_l2
from crossval.vote import Witness, vote
from receipts import record as r

#: Layers of a large model, from the first wrong one on, in which its cause is searched for.
LAYERS_LARGE = 2

#: Shows a line of progress.
Say = Callable[[str], None]
#: The rungs that compare logits.
_LOGITS = ("logits", "decode")


def engine_is_odd(lane: Lane, blame: str | None) -> bool:
    """Whether it is the engine whose values have to be explained: it is blamed, or it faces the contract itself."""
    return blame == "engine" or lane.reference.info.family == "oracle"


def shown_by_logits(rungs: Sequence[r.Rung]) -> r.RungName | None:
    """The rung of logits on which a lane without a wrong operation fails; None where one was seen, or logits hold."""
    by_name = {rung.name: rung for rung in rungs}
    if "operations" not in by_name or by_name["operations"].outcome not in ("unsupported", "pass"):
        return None
    failed = (name for name in _LOGITS if name in by_name and by_name[name].outcome == "fail")
    return next((name for name in failed if by_name[name].compared), None)  # not where a side refused or fell silent


def put_to_vote(lane: Lane, rungs: Sequence[r.Rung]) -> None:
    """Enter the vote of a lane that fails on logits alone: engine, contract and reference."""
    rung = shown_by_logits(rungs)
    if rung is None or lane.reference.info.family == "oracle":
        return
    ours, theirs = (_evaluations(lane, rung, engine=side) for side in (True, False))
    oracle = [lane.oracle().run(e.request).logits for e in ours]
    closeness = lane.closeness

    def agree(a: Sequence[Float32], b: Sequence[Float32]) -> bool:
        pairs = [(x, aligned(y, x) if lane.normalised else y) for x, y in zip(a, b, strict=True)]
        return closeness.hold([relative_l2(x, y) for x, y in pairs])

    info = lane.reference.info
    witnesses = {
        "bitnet": Witness(family="bitnet", said=[e.logits for e in ours]),
        lane.oracle_key: Witness(family="oracle", said=oracle),
        lane.plan.reference: Witness(
            family=info.family, library_sha256=info.library_sha256, said=[e.logits for e in theirs]
        ),
    }
    lane.votes.append(vote(rung, witnesses, agree))


def cause_of(
    lane: Lane, rungs: Sequence[r.Rung], located: r.Located | None, blame: str | None, say: Say
) -> r.Cause | None:
    """Why the odd side is wrong; None where nothing was looked for, or nothing can be."""
    if located is not None:
        return _of_operations(lane, located, blame, say)
    rung = shown_by_logits(rungs)
    return None if rung is None else _of_logits(lane, rung, blame, say)


def _of_operations(lane: Lane, located: r.Located, blame: str | None, say: Say) -> r.Cause | None:
    if lane.locked is None or lane.locked.lock is None or located.integer:
        return None
    odd = engine_is_odd(lane, blame)
    outputs = lane.engine.run(lane.locked).taps if odd else lane.locked.lock
    progress = _progress(lane, place(located.tap, located.layer), say)
    subject, first = lane.plan.subject, max(located.layer, 0)
    layers = range(first, first + LAYERS_LARGE) if subject.large else None
    return attribute(subject.path, lane.numerics.to_dict(), lane.locked, outputs, layers=layers, progress=progress)


def _of_logits(lane: Lane, rung: str, blame: str | None, say: Say) -> r.Cause | None:
    seen = _evaluations(lane, rung, engine=engine_is_odd(lane, blame))
    return inferred(lane.oracle(), seen, budget=BUDGET, progress=_progress(lane, "logits", say))


def _progress(lane: Lane, what: str, say: Say) -> Progress:
    say(f"{lane.plan.name}: explaining {what}")
    return lambda stage, done, total: say(f"{lane.plan.name}: explaining {what}, {stage} {done}/{total}")


def _evaluations(lane: Lane, rung: str, *, engine: bool) -> list[Evaluation]:
    """What one side computed: prompts in a batch; for the decode rung one of them a token at a time, too.

    Args:
        lane: The lane.
        rung: Which failed.
        engine: Whether the engine is asked, else the reference.
    """
    cases = [lane.forced(case) for case in ends(lane.cases)]
    normalised = lane.normalised and not engine
    seen = [
        Evaluation(
            ids=c.ids[: c.n_prompt],
            logits=(c.ours if engine else c.theirs)[: c.n_prompt],
            floor=c.floor[: c.n_prompt],
            log_probabilities=normalised,
        )
        for c in cases
    ]
    if rung == "decode":
        c = cases[0]
        worst = int(relative_l2(c.ours_single, c.theirs_single).argmax())
        n = max(SINGLE_TOKENS, worst + 1)  # single steps are slow: as many as it takes to see the worst
        single = (c.ours_single if engine else c.theirs_single)[:n]
        n = len(single)
        floor = c.floor[:n]
        seen.append(Evaluation(ids=c.ids[:n], logits=single, n_batch=1, floor=floor, log_probabilities=normalised))
    return seen
