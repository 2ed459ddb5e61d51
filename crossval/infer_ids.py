"""Causes from greedy ids alone: which hypotheses choose exactly these tokens, and which do not.

Ids are the weakest evidence there is: where a model is sure of its next token, most defects choose it too. Nothing is
scored; a hypothesis reproduces the ids or it does not, and where the contract itself does, ids show no defect at all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from crossval.attribute import BUDGET, Clock, Progress
from crossval.catalogue import Hypothesis, written
from crossval.fits import variant_of
from crossval.guesses import numbers
from crossval.metrics import Float32
from crossval.noise import Noise
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, Request

#: Tokens that are tried first: most hypotheses choose another one here, and need no more.
_FIRST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one hypothesis chooses.

    Attributes:
        name: Of the hypothesis; "" for the contract.
        explanation: What an engine with it does.
        equal: Tokens before the first other one that decides something; before the first other one where none does.
        of: Tokens of the engine in question.
        near_tie: Whether every other token is within the noise of the model, so that none decides anything.
    """

    name: str
    explanation: str
    equal: int
    of: int
    near_tie: bool = False

    @property
    def exact(self) -> bool:
        """Whether it chooses exactly these tokens."""
        return self.equal == self.of


@dataclass(frozen=True, slots=True, kw_only=True)
class IdsInference:
    """What ids say.

    Attributes:
        contract: What the contract chooses.
        choices: Of every hypothesis that was tried: those that reproduce the ids first, then those that do so but for
            near-ties, then the nearest of the others.
        seconds: By the clock of the search.
        complete: False where the budget ended the search.
    """

    contract: Choice
    choices: tuple[Choice, ...]
    seconds: float
    complete: bool

    @property
    def reproducing(self) -> tuple[Choice, ...]:
        """Hypotheses that choose exactly these tokens."""
        return tuple(c for c in self.choices if c.exact)

    @property
    def differing(self) -> tuple[Choice, ...]:
        """Hypotheses that do not, the nearest first."""
        return tuple(c for c in self.choices if not c.exact)

    @property
    def sentence_of_contract(self) -> str:
        """What the contract chooses."""
        n = self.contract.of
        if self.contract.exact:
            return f"the contract chooses exactly these {n} tokens"
        at = f"the contract chooses another token at step {self.contract.equal} of {n}"
        near = ", and only where two tokens are nearer than the noise of the model: that decides nothing"
        return at + (near if self.contract.near_tie else "")

    @property
    def sentence(self) -> str:
        """The whole answer."""
        at, same = self.sentence_of_contract, [c.name for c in self.reproducing]
        cut = "" if self.complete else "; the time ended before every hypothesis was tried"
        if self.contract.exact:
            others = f"and so do {len(same)} of {len(self.choices)} hypotheses"
            return f"{at}, {others}: ids show no defect{cut}"
        if not same:
            return f"{at}; unexplained: none of {len(self.choices)} hypotheses chooses exactly these tokens{cut}"
        listed = ", ".join(same[:6]) + (f" and {len(same) - 6} more" if len(same) > 6 else "")
        return f"{at}; of {len(self.choices)} hypotheses {len(same)} choose exactly these tokens: {listed}{cut}"


def infer_ids(
    oracle: Oracle,
    prompt: tuple[int, ...],
    generated: tuple[int, ...],
    *,
    budget: float = BUDGET,
    progress: Progress = lambda *_: None,
    clock: Clock = time.monotonic,
) -> IdsInference:
    """Try which hypotheses choose the greedy tokens of an engine.

    Args:
        oracle: The contract, in the numerics that the engine declares.
        prompt: Ids that were evaluated in one batch.
        generated: Ids that the engine chose after them, one at a time.
        budget: Seconds; what was tried by then is the answer.
        progress: Told the stage, and how many of its hypotheses are done.
        clock: What the budget is counted in.
    """
    began = clock()
    margin = _margin(oracle, prompt, generated)
    contract = _contract(oracle, prompt, generated, margin)
    candidates: list[Hypothesis] = [*written(), *numbers(oracle)]
    found: list[Choice] = []
    complete = True
    for i, h in enumerate(candidates):
        if clock() - began > budget:
            complete = False
            break
        progress("hypotheses", i, len(candidates))
        choice = _tried(oracle, h, prompt, generated, margin)
        found += [] if choice is None else [choice]
    return IdsInference(
        contract=contract,
        choices=tuple(sorted(found, key=lambda c: (not c.exact, not c.near_tie, -c.equal))),
        seconds=clock() - began,
        complete=complete,
    )


def contract_alone(oracle: Oracle, prompt: tuple[int, ...], generated: tuple[int, ...], first: int) -> IdsInference:
    """What the contract chooses, and no hypothesis.

    Args:
        oracle: As in `infer_ids`.
        prompt: As in `infer_ids`.
        generated: As in `infer_ids`.
        first: The step from which on its choice counts.
    """
    began = time.monotonic()
    before, after = (*prompt, *generated[:first]), generated[first:]
    tail = _contract(oracle, before, after, _margin(oracle, before, after))
    choice = replace(tail, equal=first + tail.equal, of=len(generated))
    return IdsInference(contract=choice, choices=(), seconds=time.monotonic() - began, complete=True)


def _margin(oracle: Oracle, prompt: tuple[int, ...], generated: tuple[int, ...]) -> float:
    noise = Noise()
    noise.measure(oracle, (*prompt, *generated[:-1]))
    return noise.margin


def _contract(oracle: Oracle, prompt: tuple[int, ...], generated: tuple[int, ...], margin: float) -> Choice:
    return _choice("", "follows the contract", _forced(oracle, prompt, generated), generated, margin)


def _tried(
    oracle: Oracle, h: Hypothesis, prompt: tuple[int, ...], generated: tuple[int, ...], margin: float
) -> Choice | None:
    try:
        variant = variant_of(oracle, h)
        few = generated[:_FIRST]
        first = _choice(h.name, h.entry.explanation, _forced(variant, prompt, few), few, margin)
        if not (first.exact or first.near_tie):
            return Choice(
                name=h.name,
                explanation=first.explanation,
                equal=first.equal,
                of=len(generated),
            )
        logits = _forced(variant, prompt, generated)
    except (ReferenceUnavailableError, ValueError):
        return None
    return _choice(h.name, h.entry.explanation, logits, generated, margin)


def _forced(oracle: Oracle, prompt: tuple[int, ...], generated: tuple[int, ...]) -> Float32:
    """Logits before each generated token, on the engine's own continuation."""
    ids = (*prompt, *generated[:-1])
    return oracle.run(Request(ids=ids, n_batch=len(prompt))).logits[len(prompt) - 1 :]


def _choice(name: str, says: str, logits: Float32, generated: tuple[int, ...], margin: float) -> Choice:
    chosen, given = logits.argmax(axis=1), np.asarray(generated)
    other = np.flatnonzero(chosen != given)
    if not other.size:
        return Choice(name=name, explanation=says, equal=len(generated), of=len(generated))
    rows = logits[other].astype(np.float64)
    at = np.arange(len(other))
    gap = rows[at, chosen[other]] - rows[at, given[other]]
    beyond = other[~((gap >= 0.0) & (gap <= margin))]  # NaN is
    first = int((beyond if beyond.size else other)[0])  # what follows a near-tie was evaluated on the engine's own ids
    return Choice(name=name, explanation=says, equal=first, of=len(generated), near_tie=not beyond.size)
