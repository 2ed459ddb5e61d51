"""Whether what differs is a rounding that fell otherwise: each side of a lane against further honest computations.

The few perturbations that measure the noise may all miss a rounding that is rarely flipped; where it is early in a long
prompt it moves all that follows. Of 396 honest engines on models of two to four layers 20 were called wrong for it. A
computation that flips the same rounding reproduces an honest side to float32, and never one that is wrong. So before a
lane fails by a limit that noise can widen, further ones are made, and 48 reproduced every one of those engines.
"""

from __future__ import annotations

import numpy as np

from crossval import envelope
from crossval.lane import Forced, Lane
from crossval.metrics import Float32, Float64, aligned, relative_l2
from crossval.noise import FURTHER, jittered
from reference.runner import Request


def settle(lane: Lane) -> bool:
    """Enter further noise of a lane whose every case is reproduced on both sides; whether there was any.

    Not of a large model: many layers flip so much that no perturbation misses it, and each takes minutes. Nor where
    more differs than flipped roundings move.
    """
    close, cases = lane.closeness, [lane.forced(case) for case in lane.cases]
    apart = {c.case.name: relative_l2(c.ours, c.theirs) for c in cases}
    if lane.plan.subject.large or not all(close.largest.holds(float(rows.max())) for rows in apart.values()):
        return False
    further: list[tuple[Forced, Float32]] = []
    for forced in sorted(cases, key=lambda c: -apart[c.case.name].mean()):  # the worst tells the soonest
        lane.progress(f"{forced.case.name}: against further computations of the contract")
        parts, computed = _reproduced(lane, forced)
        if not all(close.hold([part]) for part in parts if len(part)):
            return False
        further += [(forced, logits) for logits in computed]
    for forced, logits in further:
        lane.include(forced, logits)
    return bool(further)


def _reproduced(lane: Lane, forced: Forced) -> tuple[list[Float64], list[Float32]]:
    """How far both sides of a case are from honest computations, the nearest of each, and those computations.

    Returns:
        Relative L2 by position, the larger of both sides: of the prompt, its continuation, and single tokens.
        Logits [len(ids), n_vocab] of computations other than the contract's that were the nearest.
    """
    oracle, request = lane.oracle(), Request(ids=forced.ids)
    unflipped = envelope.logits_median(lane.numerics.activation, 0.0, lane.told)
    sides = (
        (forced.ours, False),
        (forced.theirs, lane.normalised),
        (forced.ours_single, False),
        (forced.theirs_single, lane.normalised),
    )

    def distances(computed: Float32) -> list[Float64]:
        pairs = ((side, computed[: len(side)], normalised) for side, normalised in sides)
        return [relative_l2(aligned(side, made) if normalised else side, made) for side, made, normalised in pairs]

    nearest = distances(oracle.run(request).logits)
    by: list[Float32 | None] = [None] * len(sides)
    for seed in FURTHER:
        if all(unflipped.holds(float(rows.max())) for rows in nearest):
            break
        computed = jittered(oracle, seed).run(request).logits
        for i, rows in enumerate(distances(computed)):
            if _decades(rows) < _decades(nearest[i]):
                nearest[i], by[i] = rows, computed
    ours, theirs, ours_single, theirs_single = nearest
    whole, single = np.maximum(ours, theirs), np.maximum(ours_single, theirs_single)
    used = {id(logits): logits for logits in by if logits is not None}
    return [whole[: forced.n_prompt], whole[forced.n_prompt :], single], list(used.values())


def _decades(rows: Float64) -> float:
    """Mean logarithm of distances: one far position must not hide that the others are reproduced."""
    return float(np.log10(np.maximum(rows, np.finfo(np.float32).eps)).mean())
