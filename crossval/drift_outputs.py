"""How good is it where an engine shows nothing but logits, or nothing but greedy ids? The same mutants, less to see.

A defect that moves operations and no logit (a scale that a norm divides out again) cannot be seen from outside and is
set aside, and so is one of a pair whose half moves none. What moves logits counts, though it be less than the model
shows against itself: then it is not detected. An engine is asked as `bitnet validate infer` asks: where its logits are
the contract's, as near as that is to itself, there is nothing to explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import process_time

import numpy as np

from crossval.catalogue import Hypothesis
from crossval.drift import BUDGET, FLOAT_NOISE, Judge, Kind, Made, Subject, Trial, names_of, right
from crossval.end_to_end import EndToEnd, Evaluation
from crossval.fits import variant_of
from crossval.infer import Inference, infer
from crossval.infer_ids import infer_ids
from crossval.metrics import Float32, relative_l2
from crossval.mutants import Mutant
from reference.runner import ReferenceUnavailableError, Request

#: Greedy tokens of a trial on ids.
N_GREEDY = 16


def by_logits(subject: Subject, kind: Kind, seed: int, entry: int) -> Trial:
    """One mutant and what its logits told."""
    made = subject.make(kind, seed, entry)
    aside = Trial(model=subject.name, seed=seed, kind=kind, defects=made.names, hidden=made.hidden)
    if made.mutant is None:
        return aside
    request = Request(ids=made.request.ids, n_batch=made.request.n_batch)
    try:
        logits = made.mutant.run(request).logits
    except ReferenceUnavailableError as error:
        return replace(aside, hidden=error.what)
    if hidden := _hidden(subject, made, request, logits, seed):
        return replace(aside, hidden=hidden)
    seen = EndToEnd(subject.oracle, [Evaluation(ids=request.ids, logits=logits, n_batch=request.n_batch)])
    if seen.honest:
        return aside
    return _judged(aside, made.defects, infer(seen, budget=BUDGET, clock=process_time))


def _judged(trial: Trial, defects: Sequence[Hypothesis], found: Inference) -> Trial:
    causes = found.best.hypotheses if found.best else ()
    wanted = frozenset(names_of(defects))
    together = any(frozenset(name.split(" + ")) == wanted for name in found.equivalent)
    return replace(
        trial,
        detected=True,
        causes=names_of(causes),
        attributed=right(causes, defects),
        together=together,
        named=found.named,
        explained=found.explained,
        margin=found.margin,
        seconds=found.seconds,
    )


def by_ids(subject: Subject, kind: Kind, seed: int, entry: int) -> Trial:
    """One mutant and what its greedy tokens told: `causes` are all hypotheses that choose exactly these."""
    made = subject.make(kind, seed, entry)
    aside = Trial(model=subject.name, seed=seed, kind=kind, defects=made.names, hidden=made.hidden)
    if made.mutant is None:
        return aside
    ids = made.request.ids
    try:
        seen = made.mutant.run(Request(ids=ids, n_greedy=N_GREEDY))
    except ReferenceUnavailableError as error:
        return replace(aside, hidden=error.what)
    request = Request(ids=seen.ids[:-1], n_batch=len(ids))
    if hidden := _hidden(subject, made, request, seen.logits, seed):
        return replace(aside, hidden=hidden)
    found = infer_ids(subject.oracle, ids, seen.generated, budget=BUDGET, clock=process_time)
    if found.contract.exact or found.contract.near_tie:
        return replace(aside, seconds=found.seconds)
    causes = tuple(choice.name for choice in found.reproducing)
    return replace(
        aside,
        detected=True,
        causes=causes,
        together=any(name in causes for name in names_of(made.defects)),
        seconds=found.seconds,
    )


def _hidden(subject: Subject, made: Made, request: Request, logits: Float32, seed: int) -> str:
    """Why a trial is set aside: what the same engine with less wrong computes is the same, but for float noise."""
    if not made.defects:
        return ""

    def moved(known: Sequence[Hypothesis]) -> bool:
        twin = Mutant.of(variant_of(subject.oracle, *known), seed).run(request).logits
        same = (twin == logits) | (np.isnan(twin) & np.isnan(logits))
        with np.errstate(all="ignore"):
            return bool((~same.all(axis=1) & ~(relative_l2(logits, twin) <= FLOAT_NOISE)).any())

    if not moved(()):
        return "moves no logit"
    if len(made.defects) == 2 and not all(moved((one,)) for one in made.defects):
        return "one hides the other"
    return ""


#: What is tried on a mutant, by what it shows.
JUDGES: dict[str, Judge] = {"operations": Subject.trial, "logits": by_logits, "ids": by_ids}
