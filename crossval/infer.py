"""Causes from logits alone: every hypothesis of the catalogue, then promising pairs, replayed from end to end.

An engine without intermediates shows that it is wrong, not where. Every hypothesis is therefore computed on the same
ids and scored by the share of the logits' difference that it removes, over the noise that the model has against itself
(`crossval.end_to_end`). What is named so is inferred: which operation it touches follows from the hypothesis, and was
not observed. Hypotheses that logits cannot tell apart (the scale of `ffn_gate` and that of `ffn_up`) are told together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossval import guesses
from crossval.attribute import BUDGET, NAMED_FROM, PAIR_COST, Clock, Progress
from crossval.catalogue import BY_NAME, Hypothesis, hypothesis, written
from crossval.end_to_end import FLOOR, MOST, EndToEnd, Evaluation
from crossval.fits import COST_NUMBER, rounded, variant_of
from crossval.metrics import Float32, Float64
from crossval.noise import Noise
from receipts.record import Cause
from reference.oracle import Oracle
from reference.runner import LAYER_TAPS, ReferenceUnavailableError

#: Single hypotheses that pairs are built on, and numbers and tensors whose value is refined.
_PROMISING, _REFINED = 8, 3
#: Decades over float32 noise at which nothing is left to look for: most positions are reproduced, a few roundings flip.
_REPRODUCED = 0.3
#: Share of what can be removed from which on no other kind of hypothesis is tried.
_ENOUGH = 0.98
#: Decades that must lie between the contract and the noise of a hypothesis, or it explains by being noisy: a third.
_LEAST_REACH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """One hypothesis, or a pair, replayed from end to end.

    Attributes:
        hypotheses: One or two.
        removed: Decades by which it comes nearer to the engine than the contract, mean over judged positions.
        score: The same, less the cost of what was measured.
        left: What is left, relative L2 by position.
    """

    hypotheses: tuple[Hypothesis, ...]
    removed: float
    score: float
    left: Float64

    @property
    def name(self) -> str:
        """Of the hypotheses, joined."""
        return " + ".join(h.name for h in self.hypotheses)

    @property
    def names(self) -> frozenset[str]:
        """Of the hypotheses."""
        return frozenset(h.name for h in self.hypotheses)

    @property
    def kinds(self) -> frozenset[tuple[str, str]]:
        """Entries and tensors, whatever their numbers."""
        changes = ((h, h.semantics.get("weights", ())) for h in self.hypotheses)
        return frozenset((h.entry.name, change[0].tensor if change else "") for h, change in changes)

    @property
    def touches(self) -> tuple[str, ...]:
        """Taps that it changes, in graph order."""
        taps = frozenset().union(*(h.entry.taps for h in self.hypotheses))
        return tuple(tap for tap in ("embd", *LAYER_TAPS, "result_norm", "result_output") if tap in taps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """What a search in logits found.

    Attributes:
        decades: How far the contract is from the engine over what can be reached; 0 where nothing is wrong.
        reach: How many of them the best could remove at most: no hypothesis comes nearer than its own noise.
        positions: How many are judged, of how many.
        best: The best explanation, whether or not it is good enough to be named.
        runner_up: The next that logits can tell from it.
        equivalent: Names of hypotheses that logits cannot tell from the best.
        tried: Hypotheses and pairs that were replayed.
        seconds: By the clock of the search.
        complete: False where the budget ended the search.
        above_noise: Whether the difference is larger than what the model shows against itself.
    """

    decades: float
    positions: tuple[int, int]
    reach: float = 0.0
    best: Inferred | None = None
    runner_up: Inferred | None = None
    equivalent: tuple[str, ...] = ()
    tried: int = 0
    seconds: float = 0.0
    complete: bool = True
    above_noise: bool = True

    @property
    def explained(self) -> float:
        """Share of the difference that the best removes, of all that can be."""
        return self._share(self.best)

    @property
    def margin(self) -> float:
        """Share between the best and the next that logits can tell from it."""
        return self.explained - self._share(self.runner_up)

    @property
    def named(self) -> bool:
        """Whether the best explanation counts as the cause."""
        return self.best is not None and self.explained >= NAMED_FROM

    @property
    def evidence(self) -> str:
        """What is wrong, and what was tried, for people."""
        judged, every = self.positions
        size = f"the logits of {judged} of {every} positions differ, by {self.decades:.1f} decades over "
        size += "the noise of the model itself" if self.above_noise else "float32 noise, though within the model's own"
        return size + ("" if self.complete else "; the time ended before every hypothesis was tried")

    @property
    def cause(self) -> Cause:
        """The same as a receipt has it."""
        if self.best is None or not self.named:
            tried = f"the best of {self.tried}, {self.best.name}, explains {self.explained:.1%}" if self.best else ""
            said = tried or f"none of {self.tried} hypotheses explains any of it"
            return Cause(name="", explained=0.0, explanation=f"unexplained: {said}; {self.evidence}", evidence="logits")
        said = " and ".join(h.entry.explanation for h in self.best.hypotheses)
        if self.equivalent:
            more = f" and {len(self.equivalent) - 3} more" if len(self.equivalent) > 3 else ""
            said += f" (or, with the same effect on logits: {', '.join(self.equivalent[:3])}{more})"
        return Cause(
            name=self.best.name,
            explained=self.explained,
            runner_up=self.runner_up.name if self.runner_up else "",
            runner_up_explained=self._share(self.runner_up),
            explanation=said,
            evidence="logits",
            touches=self.best.touches,
        )

    def _share(self, found: Inferred | None) -> float:
        return 0.0 if found is None or not self.reach else min(1.0, max(found.removed, 0.0) / self.reach)


@dataclass
class _Search:
    seen: EndToEnd
    deadline: float
    progress: Progress
    clock: Clock
    tried: int = 0
    complete: bool = True
    known: dict[frozenset[str], Inferred] = field(default_factory=dict)
    own: dict[frozenset[str], float] = field(default_factory=dict)

    def judge(self, *hypotheses: Hypothesis) -> Inferred | None:
        """What hypotheses explain; None where they have no meaning here."""
        names = frozenset(h.name for h in hypotheses)
        if names not in self.known:
            self.tried += 1
            try:
                logits = self.seen.logits(variant_of(self.seen.oracle, *hypotheses))
            except (ReferenceUnavailableError, ValueError):
                return None
            self.known[names] = self._scored(hypotheses, self.seen.left_of(logits))
            self._multiplied(hypotheses, logits)
        return self.known[names]

    def _multiplied(self, hypotheses: tuple[Hypothesis, ...], logits: Sequence[Float32]) -> None:
        """The same with its logits multiplied, which costs no replay."""
        factor = rounded(self.seen.factor(logits))
        if len(hypotheses) > 1 or not 1e-6 < factor < 1e6 or abs(factor - 1.0) < 1e-3:
            return
        scale = hypothesis(BY_NAME["logit_scale"], factor, name=f"logit_scale={factor:.4g}", cost=COST_NUMBER)
        both = (*hypotheses, scale)
        left = self.seen.left_of([x * np.float32(factor) for x in logits])
        self.known.setdefault(frozenset(h.name for h in both), self._scored(both, left))

    def _scored(self, hypotheses: tuple[Hypothesis, ...], left: Float64) -> Inferred:
        removed = self.seen.removed(left)
        cost = sum(h.cost for h in hypotheses) + PAIR_COST * max(len(hypotheses) - 1, 0)
        return Inferred(hypotheses=hypotheses, removed=removed, score=removed - cost, left=left)

    def all_of(self, candidates: Iterable[tuple[Hypothesis, ...]], what: str) -> None:
        """Judge many, for as long as there is time."""
        listed = list(candidates)
        for i, hypotheses in enumerate(listed):
            if self.clock() > self.deadline:
                self.complete = False
                return
            self.progress(what, i, len(listed))
            self.judge(*hypotheses)

    def refine(self, *fields: str) -> None:
        """Better values of the most promising numbers."""
        singles = [e for e in self.ranked(1) if e.hypotheses[0].entry.field in fields and e.score > 0.0]
        for found in singles[:_REFINED]:
            if self.clock() > self.deadline:
                self.complete = False
                return
            [start] = found.hypotheses

            def score(h: Hypothesis) -> float | None:
                judged = self.judge(h)
                return None if judged is None else judged.removed

            self.all_of(((h,) for h in guesses.refined(start, score, self.seen.oracle)), "measured hypotheses")

    def ranked(self, n: int | None = None) -> list[Inferred]:
        """What was judged, of n hypotheses each, best first; of equals the one with less freedom."""
        every = (e for e in self.known.values() if e.hypotheses and (n is None or len(e.hypotheses) == n))
        return sorted(every, key=lambda e: -e.score)

    def reach(self, found: Inferred) -> float:
        """Decades that a hypothesis could remove at most.

        An engine that truncates activations is noisier than the contract (the largest of each token is an integer), so
        the right hypothesis comes no nearer than its own noise.
        """
        if found.names not in self.own:
            variant = variant_of(self.seen.oracle, *found.hypotheses)
            floors = [Noise().measure(variant, e.ids) for e in self.seen.evaluations]
            self.own[found.names] = self.seen.removed(np.clip(np.concatenate(floors), FLOOR, MOST))
        own = self.own[found.names]
        return max(min(self.seen.decades, own) if own >= _LEAST_REACH else self.seen.decades, found.removed)

    def enough(self, *, own: bool = False) -> bool:
        """Whether what was found leaves nothing to look for.

        Args:
            own: Whether the noise of the hypothesis counts, which may be larger than the contract's.
        """
        best = next(iter(self.ranked()), None)
        if best is None or best.score <= 0.0:
            return False
        if best.removed >= self.seen.removed(np.full_like(best.left, FLOOR)) - _REPRODUCED:
            return True
        return best.removed >= _ENOUGH * (self.reach(best) if own else self.seen.decades)


def infer(
    seen: EndToEnd,
    *,
    budget: float = BUDGET,
    progress: Progress = lambda *_: None,
    clock: Clock = time.monotonic,
) -> Inference:
    """Search for the defect, or the two, that reproduce the logits of an engine.

    Args:
        seen: The engine's logits against the contract's.
        budget: Seconds; what was found by then is the answer.
        progress: Told the stage, and how many of its hypotheses are done.
        clock: What the budget is counted in.
    """
    began = clock()
    positions = int(seen.judged.sum()), len(seen.judged)
    if not seen.wrong:
        return Inference(decades=0.0, positions=positions, seconds=clock() - began)
    search = _Search(seen=seen, deadline=began + budget, progress=progress, clock=clock)
    search.judge()  # the contract itself, and with it a factor of the logits
    singles = list(written())
    search.all_of(((h,) for h in singles), "single hypotheses")
    if not search.enough():
        usual = list(guesses.numbers(seen.oracle, seen.first_wrong()))
        search.all_of(((h,) for h in usual), "usual numbers")
        search.refine(*guesses.CONTINUOUS)
        singles += usual
    if not search.enough():
        search.all_of(((h,) for h in guesses.tensors(seen.oracle)), "single tensors")
        search.refine("weights")
    if not search.enough(own=True):
        _pairs(search, singles)
    return _answer(search, seen, positions, clock() - began)


def _pairs(search: _Search, singles: Sequence[Hypothesis]) -> None:
    """A second hypothesis on top of each promising one, until one reproduces the engine."""
    for first in [e for e in search.ranked(1) if e.score > 0.0][:_PROMISING]:
        [a] = first.hypotheses
        search.all_of(((a, b) for b in singles if b.name != a.name), f"pairs with {a.name}")
        if search.enough() or not search.complete:
            return


def _answer(search: _Search, seen: EndToEnd, positions: tuple[int, int], seconds: float) -> Inference:
    found = search.ranked()
    best = found[0] if found and found[0].score > 0.0 else None
    equal: list[Inferred] = []
    after: Inferred | None = None
    known = set() if best is None else {best.kinds}
    for e in found[1:]:
        if best is None or e.kinds in known or best.kinds < e.kinds:
            continue  # the same with another number, or with something that adds nothing
        if not seen.nearer(best.left, e.left):
            equal.append(e)
            known.add(e.kinds)
        elif after is None and not any(other.kinds < e.kinds for other in equal):
            after = e
    return Inference(
        decades=seen.decades,
        positions=positions,
        reach=0.0 if best is None else search.reach(best),
        best=best,
        runner_up=after,
        equivalent=tuple(e.name for e in equal),
        tried=search.tried,
        seconds=seconds,
        complete=search.complete,
        above_noise=seen.above_noise,
    )


def inferred(
    oracle: Oracle,
    evaluations: Sequence[Evaluation],
    *,
    budget: float = BUDGET,
    progress: Progress = lambda *_: None,
) -> Cause | None:
    """Name the defect of an engine from its logits, as a receipt has it; None where they are the contract's.

    Args:
        oracle: The contract, in the odd engine's numerics.
        evaluations: What that engine computed.
        budget: As in `infer`.
        progress: As in `infer`.
    """
    if all(np.isnan(e.logits).all() for e in evaluations):
        said = "unexplained: the values are not numbers, and no hypothesis is"
        return Cause(name="", explained=0.0, explanation=said, evidence="logits")
    found = infer(EndToEnd(oracle, evaluations), budget=budget, progress=progress)
    return found.cause if found.decades > 0.0 else None
