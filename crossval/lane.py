"""One lane in progress: the engine, the reference and the oracle on one model, and what was seen of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from bitnet.config import Numerics
from crossval.case import Case
from crossval.engine import EngineRunner
from crossval.metrics import Float32
from crossval.noise import SEEDS, Noise, perturbed
from crossval.plan import LanePlan
from receipts.record import Located, Vote
from reference.oracle import Oracle
from reference.runner import Observation, Request, Runner, TapKey

Row = dict[str, Any]

#: Tokens that are evaluated one at a time from the first on (a recording is read to its end).
SINGLE_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Forced:
    """One case under both engines: the reference's own continuation, evaluated by each in the same two ways.

    Attributes:
        case: The prompt.
        ids: Prompt and the reference's continuation, without its last token.
        n_prompt: Length of the prompt.
        theirs, ours: Logits [len(ids), n_vocab], the prompt in one batch, then single tokens.
        theirs_single, ours_single: The first of these ids, one at a time from the first on.
        generated: The reference's greedy tokens.
        floor: Relative L2 by position of the self-comparisons of this case, the largest.
    """

    case: Case
    ids: tuple[int, ...]
    n_prompt: int
    theirs: Float32
    ours: Float32
    theirs_single: Float32
    ours_single: Float32
    generated: tuple[int, ...]
    floor: np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(kw_only=True)
class Lane:
    """What the rungs share.

    Attributes:
        plan: Which lane.
        engine, reference: The two sides.
        original: The engine on the file whose weights are in question (the same unless the lane uses a copy).
        cases: Prompts.
        texts: For the tokens rung.
        quality_ids: For the quality rung; empty if there is no text.
        noise: Gathered as cases are run.
        operations, positions: Rows for the side tables.
        located: First wrong operation.
        locked: Captured inputs of the case in which it was found.
        votes: By rung.
        self_check: Question → (expected, found).
    """

    plan: LanePlan
    engine: EngineRunner
    original: EngineRunner
    reference: Runner
    cases: tuple[Case, ...]
    texts: tuple[str, ...] = ()
    quality_ids: tuple[int, ...] = ()
    progress: Callable[[str], None] = lambda _: None
    noise: Noise = field(default_factory=Noise)
    operations: list[Row] = field(default_factory=list)
    positions: list[Row] = field(default_factory=list)
    located: Located | None = None
    locked: tuple[tuple[int, ...], Mapping[TapKey, Float32]] | None = None
    votes: list[Vote] = field(default_factory=list)
    self_check: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forced = cache(self._forced)

    @property
    def numerics(self) -> Numerics:
        """What both sides compute in."""
        return self.engine.model.network.numerics

    def oracle(self) -> Oracle:
        """The contract, in this lane's numerics, on the file whose contract the engine follows."""
        if not hasattr(self, "_oracle"):
            self._oracle = Oracle(str(self.plan.engine_file), numerics=self.numerics.to_dict())
        return self._oracle

    @property
    def oracle_key(self) -> str:
        """Key of the oracle as a witness in this lane."""
        return f"oracle · {self.plan.name}"

    def integer_oracle(self) -> Oracle:
        """The contract with int8-per-token activations, for exact integer sums."""
        if self.numerics.activation == "int8_token":
            return self.oracle()
        if not hasattr(self, "_integer_oracle"):
            self._integer_oracle = Oracle(str(self.plan.engine_file))
        return self._integer_oracle

    def _forced(self, case: Case) -> Forced:
        n = len(case.ids)
        self.progress(f"{case.name}: {n} + {case.n_greedy} tokens")
        free = self.reference.run(Request(ids=case.ids, n_greedy=case.n_greedy))
        ids = case.ids + free.generated[:-1]
        ours = self.engine.run(Request(ids=ids, n_batch=n)).logits
        n_single = len(ids) if self.plan.subject.recording else min(len(ids), SINGLE_TOKENS)
        single = Request(ids=ids[:n_single], n_batch=1)
        theirs_single, ours_single = self.reference.run(single).logits, self.engine.run(single).logits
        floor = np.zeros(len(ids))
        if not self._rounds_by_batch:
            source = f"{self.reference.info.name} with itself, batch and one token at a time"
            itself = self.noise.add(source, free.logits[:n_single], theirs_single, ids[:n_single])
            floor[:n_single] = np.maximum(floor[:n_single], itself)
        embd = self.engine.embedding(ids)
        for seed in SEEDS:
            moved: Observation = perturbed(self.engine, ids, n, seed, embd)
            source = "the engine with itself, its embeddings moved by one unit in the last place"
            floor = np.maximum(floor, self.noise.add(source, ours, moved.logits, ids))
        return Forced(
            case=case,
            ids=ids,
            n_prompt=n,
            theirs=free.logits,
            ours=ours,
            theirs_single=theirs_single,
            ours_single=ours_single,
            generated=free.generated,
            floor=floor,
        )

    @property
    def _rounds_by_batch(self) -> bool:
        """Whether these numerics round differently in single-token steps: then batch against single is no noise."""
        return "f16_decode" in (self.numerics.probs, self.numerics.head)
