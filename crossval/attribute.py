"""Causes by intervention: every hypothesis of the catalogue, then promising pairs, replayed on captured inputs.

An operation is out of its locked envelope by so many *decades* over float32 noise. A hypothesis explains the decades
that it removes, over all captured operations at once: near relatives (SiLU and GELU share 99 % of a squared
difference) are decades apart, because only the right one comes down to the noise, and what one operation gains by a
wrong hypothesis the others lose. Two defects in different operations add up; two in one operation are searched in
pairs. The answer carries its margin over the runner-up, or says *unexplained* and gives the evidence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from crossval.catalogue import Hypothesis, written
from crossval.fits import proposals, variant_of
from crossval.metrics import Float32
from crossval.replay import Replay
from receipts.record import Cause
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, Request, TapKey

#: Below this share of the decades no cause is named: a tenth is what a second, unknown defect could hide in.
NAMED_FROM = 0.9
#: Seconds a search may take.
BUDGET = 60.0
#: A second defect must explain this many decades more than the first alone.
PAIR_COST = 0.5
#: Single hypotheses that pairs are built on, and pairs at one operation that are judged on all.
_PROMISING, _PAIRS_KEPT = 6, 6

Progress = Callable[[str, int, int], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One hypothesis, or a pair, and what it leaves.

    Attributes:
        hypotheses: One or two.
        explained: Share of all decades that they remove; below 0 where they do harm.
        score: Decades removed, less the cost of what was measured.
        left: Decades that remain, of the operations they touch.
    """

    hypotheses: tuple[Hypothesis, ...]
    explained: float
    score: float
    left: Mapping[TapKey, float]

    @property
    def names(self) -> frozenset[str]:
        """Of the hypotheses."""
        return frozenset(h.name for h in self.hypotheses)

    @property
    def name(self) -> str:
        """Of the hypotheses, joined."""
        return " + ".join(h.name for h in self.hypotheses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What a search found.

    Attributes:
        wrong: Decades by operation, of those that are out of their envelope.
        best: The best explanation, whether or not it is good enough to be named.
        runner_up: The next that can be told from it.
        equivalent: Names of hypotheses that explain exactly as much on this evidence.
        tried: Hypotheses and pairs that were replayed.
        seconds: By the clock of the search.
        complete: False where the budget ended the search.
        evidence: Sentences about what is wrong, for people.
    """

    wrong: Mapping[TapKey, float]
    best: Explanation | None
    runner_up: Explanation | None
    equivalent: tuple[str, ...] = ()
    tried: int = 0
    seconds: float = 0.0
    complete: bool = True
    evidence: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Whether the best explanation counts as the cause."""
        return self.best is not None and self.best.explained >= NAMED_FROM

    @property
    def margin(self) -> float:
        """Share of the decades between the best explanation and the next."""
        after = max(self.runner_up.explained, 0.0) if self.runner_up else 0.0
        return 0.0 if self.best is None else self.best.explained - after

    @property
    def cause(self) -> Cause:
        """The same as a receipt has it."""
        if self.best is None or not self.named:
            best = "nothing explains any of it"
            if self.best is not None:
                share = f"{max(self.best.explained, 0.0):.1%}"
                best = f"the best of {self.tried}, {self.best.name}, explains {share}"
            return Cause(name="", explained=0.0, explanation=f"unexplained: {'; '.join((best, *self.evidence))}")
        said = " and ".join(h.entry.explanation for h in self.best.hypotheses)
        if self.equivalent:
            said += f" (or, with the same effect here: {', '.join(self.equivalent[:3])})"
        return Cause(
            name=self.best.name,
            explained=min(self.best.explained, 1.0),
            runner_up=self.runner_up.name if self.runner_up else "",
            runner_up_explained=max(self.runner_up.explained, 0.0) if self.runner_up else 0.0,
            explanation=said,
        )


@dataclass
class _Search:
    replay: Replay
    deadline: float
    progress: Progress
    clock: Clock
    tried: int = 0
    complete: bool = True
    contract: dict[TapKey, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        made: dict[TapKey, Float32] = {}
        oracle = self.replay.oracle
        for key in self.replay.keys:
            if key[0] not in oracle.absent:
                self.contract[key] = self.replay.decades(key, self.replay.operation(key, oracle, made))
        self.total = sum(self.contract.values())
        self.wrong = [key for key, d in self.contract.items() if d > 0.0]

    def judge(self, *hypotheses: Hypothesis, on: Sequence[TapKey] | None = None) -> Explanation | None:
        """What hypotheses explain, over all they touch or some of it; None where they have no meaning here."""
        try:
            variant = variant_of(self.replay.oracle, *hypotheses)
            taps = frozenset().union(*(h.entry.taps for h in hypotheses))
            touched = [key for key in self.replay.touched(taps, variant) if key in self.contract]
            keys = touched if on is None else [key for key in on if key in touched]
            made: dict[TapKey, Float32] = {}
            left = {key: self.replay.decades(key, self.replay.operation(key, variant, made), variant) for key in keys}
        except (ReferenceUnavailableError, ValueError):
            return None
        removed = sum(self.contract[key] - after for key, after in left.items())
        cost = sum(h.cost for h in hypotheses) + PAIR_COST * (len(hypotheses) - 1)
        share = removed / self.total if self.total else 0.0
        return Explanation(hypotheses=hypotheses, explained=share, score=removed - cost, left=left)

    def screened(self, *hypotheses: Hypothesis, given: Mapping[TapKey, float] | None = None) -> Explanation | None:
        """Judged on one operation of each kind first; None where that shows no gain over what is known."""
        known = self.contract if given is None else given
        taps = frozenset().union(*(h.entry.taps for h in hypotheses))
        first: dict[str, TapKey] = {}
        for key in (*(k for k in self.wrong if known[k] > 0.0), *self.contract):
            first.setdefault(key[0], key)
        on = [key for tap, key in first.items() if tap in taps or len(self.contract) < len(self.replay.inputs) // 2]
        self.tried += 1
        quick = self.judge(*hypotheses, on=on or None)
        if quick is None or not quick.left:
            return quick if quick is not None and on == [] else None
        gain = sum(known[key] - after for key, after in quick.left.items())
        return self.judge(*hypotheses) if gain > 0.0 else None

    def out_of_time(self) -> bool:
        if self.clock() > self.deadline:
            self.complete = False
        return not self.complete

    def all_of(self, candidates: Iterable[tuple[Hypothesis, ...]], what: str) -> list[Explanation]:
        """Those of many that explain something, best first."""
        listed = list(candidates)
        found = []
        for i, hypotheses in enumerate(listed):
            if self.out_of_time():
                break
            self.progress(what, i, len(listed))
            explanation = self.screened(*hypotheses)
            if explanation is not None:
                found.append(explanation)
        return sorted(found, key=lambda e: -e.score)


def explain(
    replay: Replay,
    *,
    budget: float = BUDGET,
    progress: Progress = lambda *_: None,
    clock: Clock = time.monotonic,
) -> Attribution:
    """Search for the defect, or the two, that reproduce what an engine computed.

    Args:
        replay: Captured operations of the engine.
        budget: Seconds; what was found by then is the answer.
        progress: Told the stage, and how many of its hypotheses are done.
        clock: What the budget is counted in; a study counts processor time, which other programs do not spend.
    """
    began = clock()
    search = _Search(replay=replay, deadline=began + budget, progress=progress, clock=clock)
    if not search.wrong:
        return Attribution(wrong={}, best=None, runner_up=None, seconds=clock() - began)
    everything = list(written())
    found = search.all_of(((h,) for h in everything), "single hypotheses")
    if not found or found[0].explained < 1.0 - 1e-9:
        measured = proposals(replay, replay.oracle, search.wrong)
        everything += measured
        found = sorted(
            [*found, *search.all_of(((h,) for h in measured), "measured hypotheses")], key=lambda e: -e.score
        )
    if not found or found[0].explained < 1.0 - 1e-9:
        found = sorted([*found, *_pairs(search, found, everything)], key=lambda e: -e.score)
    best = found[0] if found and found[0].score > 0.0 else None
    others = [e for e in found if best is not None and e is not best and not best.names < e.names]
    equal = tuple(e.name for e in others if best is not None and e.explained >= best.explained - 1e-9)
    wrong = {key: search.contract[key] for key in search.wrong}
    return Attribution(
        wrong=wrong,
        best=best,
        runner_up=next((e for e in others if e.name not in equal), None),
        equivalent=equal,
        tried=search.tried,
        seconds=clock() - began,
        complete=search.complete,
        evidence=_evidence(wrong, replay),
    )


def _pairs(search: _Search, singles: Sequence[Explanation], everything: Sequence[Hypothesis]) -> list[Explanation]:
    """A second hypothesis on top of each promising one; then pairs at the first wrong operation."""
    found: list[Explanation] = []
    for first in [e for e in singles if e.score > 0.0][:_PROMISING]:
        [a] = first.hypotheses
        left = {**search.contract, **first.left}
        wrong = [key for key, d in left.items() if d > 0.0]
        if not wrong or search.out_of_time():
            continue
        more = [h for h in proposals(search.replay, variant_of(search.replay.oracle, a), wrong) if h.name != a.name]
        seconds = [h for h in everything if h is not a and any(key[0] in h.entry.taps for key in wrong)]
        for i, b in enumerate([*more, *seconds]):
            if search.out_of_time():
                break
            search.progress(f"pairs with {a.name}", i, len(more) + len(seconds))
            pair = search.screened(a, b, given=left)
            if pair is not None and pair.score > first.score:
                found.append(pair)
        if any(e.explained >= 1.0 - 1e-9 for e in found):
            return found
    located = search.wrong[0]
    near = [h for h in everything if located[0] in h.entry.taps]
    here = []
    for i, (a, b) in enumerate(combinations(near, 2)):
        if search.out_of_time():
            break
        search.progress("pairs at one operation", i, len(near) * (len(near) - 1) // 2)
        search.tried += 1
        pair = search.judge(a, b, on=[located])
        if pair is not None and pair.score > 0.0:
            here.append(pair)
    here.sort(key=lambda e: -e.score)
    return found + [e for e in (search.judge(*pair.hypotheses) for pair in here[:_PAIRS_KEPT]) if e is not None]


def _evidence(wrong: Mapping[TapKey, float], replay: Replay) -> tuple[str, ...]:
    taps = dict.fromkeys(tap for tap, _ in wrong)
    layers = sorted({layer for _, layer in wrong})
    (first, layer), decades = next(iter(wrong.items()))
    where = first if layer < 0 else f"{first} of layer {layer}"
    finite = np.isfinite(replay.outputs[first, layer]).all()
    far = f"by {decades:.1f} decades over float32 noise" if finite else "which is not finite"
    count = "1 operation is" if len(wrong) == 1 else f"{len(wrong)} operations are"
    return (
        f"{count} wrong, first {where}, {far}",
        f"kinds: {', '.join(taps)}; layers: {', '.join(map(str, layers))}",
    )


def attribute(
    model: Path,
    numerics: Mapping[str, str],
    locked: Request,
    outputs: Mapping[TapKey, Float32],
    *,
    layers: range | None = None,
    budget: float = BUDGET,
    progress: Progress = lambda *_: None,
) -> Cause:
    """Name the defect of an engine, as a receipt has it.

    Args:
        model: The file, read by the contract.
        numerics: The odd engine's, as `Numerics`.
        locked: Ids, and the inputs of each operation.
        outputs: What the odd engine made of them, by tap.
        layers: Of a large model, those whose operations are replayed, beside what belongs to no layer; their weights
            alone are held.
        budget: As in `explain`.
        progress: As in `explain`.
    """
    oracle = Oracle(str(model), numerics=numerics, n_layer_kept=None if layers is None else len(layers))
    if layers is not None:
        outputs = {key: value for key, value in outputs.items() if key[1] < 0 or key[1] in layers}
    replay = Replay(oracle, locked.ids, locked.lock or {}, outputs, n_batch=locked.n_batch)
    if outputs and all(np.isnan(value).all() for value in outputs.values()):
        return Cause(
            name="", explained=0.0, explanation="unexplained: the values are not numbers, and no hypothesis is"
        )
    return explain(replay, budget=budget, progress=progress).cause
