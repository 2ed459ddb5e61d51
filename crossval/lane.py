"""One lane in progress: the engine, the reference and the oracle on one model, and what was seen of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

from bitnet.config import Numerics
from crossval.case import Case
from crossval.closeness import Closeness
from crossval.engine import EngineRunner
from crossval.metrics import Float32, ShapeMismatchError, aligned
from crossval.noise import SEEDS, Noise
from crossval.plan import LanePlan
from receipts.record import Located, Vote
from reference.oracle import Oracle
from reference.recorded import Recorded
from reference.runner import (
    LOG_PROBABILITY_ERROR,
    Observation,
    ReferenceFailedError,
    ReferenceUnavailableError,
    Request,
    Runner,
    RunnerInfo,
    tap_order,
)

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
        theirs, ours: Logits [len(ids), n_vocab], the prompt in one batch, then single tokens. Of a reference that tells
            log-probabilities, with the constant of each row that ours have.
        theirs_single, ours_single: The first of these ids, one at a time from the first on.
        generated: The reference's greedy tokens.
        floor: Noise of the model itself by position, relative L2.
        noise: All that was measured of it.
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
    noise: Noise


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
        operations, positions, profiles, runs, candidates: Rows for the side tables.
        choices: By case: what the reference generated, and what the engine chose in each place of it.
        located: First wrong operation.
        locked: The request it was found in: ids, and what the reference fed each operation.
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
    profiles: list[Row] = field(default_factory=list)
    choices: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    runs: list[Row] = field(default_factory=list)
    candidates: list[Row] = field(default_factory=list)
    located: Located | None = None
    locked: Request | None = None
    votes: list[Vote] = field(default_factory=list)
    self_check: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forced = cache(self._forced)

    @property
    def numerics(self) -> Numerics:
        """What both sides compute in."""
        return self.engine.model.network.numerics

    @property
    def normalised(self) -> bool:
        """Whether the reference tells log-probabilities, which leave a constant of each row open."""
        return self.reference.info.log_probabilities

    @cached_property
    def told(self) -> float:
        """How exactly the reference tells its logits, relative L2 of the row with the smallest; 0 for logits."""
        if not self.normalised:
            return 0.0
        rows = [np.square(self.forced(case).theirs.astype(np.float64)).mean(axis=1).min() for case in self.cases]
        smallest = float(np.sqrt(min(rows, default=0.0)))
        return LOG_PROBABILITY_ERROR / smallest if smallest > 0.0 else 0.0

    @property
    def closeness(self) -> Closeness:
        """Limits of its logits, over the noise of the cases that were run so far."""
        noise, numerics = self.noise, self.numerics
        return Closeness.over(
            numerics.activation,
            numerics.head,
            median=noise.median,
            running=noise.running,
            largest=noise.largest,
            told=self.told,
        )

    def oracle(self) -> Oracle:
        """The contract, in this lane's numerics, on the file whose contract the engine follows."""
        if not hasattr(self, "_oracle"):
            kept = 1 if self.plan.subject.large else None
            file = str(self.plan.engine_file)
            self._oracle = Oracle(file, numerics=self.numerics.to_dict(), n_layer_kept=kept)
        return self._oracle

    @property
    def oracle_key(self) -> str:
        """Key of the oracle as a witness in this lane."""
        return self.plan.oracle_key

    def witnesses(self) -> dict[str, Runner | None]:
        """Further engines by key, started when first asked for; None for one that cannot run here."""
        if not hasattr(self, "_witnesses"):
            self._witnesses: dict[str, Runner | None] = {}
            for witness in self.plan.witnesses:
                self.progress(f"hearing {witness.name}")
                self._witnesses[witness.name] = None
                with suppress(ReferenceUnavailableError, ReferenceFailedError):
                    runner = witness.open()
                    self._witnesses[witness.name] = runner if runner.info else None
        return self._witnesses

    def heard(self) -> dict[str, RunnerInfo]:
        """Who the further witnesses of the votes were."""
        started = getattr(self, "_witnesses", {})
        named = {name for vote in self.votes for name, word in vote.witnesses.items() if word != "absent"}
        return {name: runner.info for name, runner in started.items() if runner is not None and name in named}

    def close_witnesses(self) -> None:
        """End those that were started."""
        for runner in getattr(self, "_witnesses", {}).values():
            if runner is not None:
                with suppress(ReferenceFailedError):
                    runner.close()

    def integer_oracle(self) -> Oracle:
        """The contract with int8-per-token activations, for exact integer sums."""
        if self.numerics.activation == "int8_token":
            return self.oracle()
        if not hasattr(self, "_integer_oracle"):
            self._integer_oracle = self.oracle().under(numerics={"activation": "int8_token"})
        return self._integer_oracle

    def ask(self, request: Request) -> Observation:
        """Run the reference, and believe nothing: an answer to another question is no answer.

        Raises:
            ReferenceFailedError: It evaluated or generated ids that it was not asked for, or that do not exist, or
                shows operations that the model does not have.
            ShapeMismatchError: Its logits do not have a row for every position, as wide as the vocabulary.
        """
        seen, n_vocab = self.reference.run(request), self.engine.model.config.n_vocab
        if seen.ids != (*request.ids, *seen.generated) or len(seen.generated) != request.n_greedy:
            raise ReferenceFailedError("it evaluated other ids than it was asked to")
        if bad := [i for i in seen.generated if not 0 <= i < n_vocab]:
            raise ReferenceFailedError(f"it generated token {bad[0]} from a vocabulary of {n_vocab}")
        if other := sorted(seen.taps.keys() - set(tap_order(self.engine.model.config.n_layer))):
            raise ReferenceFailedError(f"it shows {other[0][0]} of layer {other[0][1]}, which the model does not have")
        shape = (len(request.ids) + max(request.n_greedy - 1, 0), n_vocab)
        if seen.logits.shape != shape:
            raise ShapeMismatchError(f"ours has shape {list(shape)}, theirs {list(seen.logits.shape)}")
        return seen

    def include(self, forced: Forced, logits: Float32) -> None:
        """Enter what a further computation of the contract differs from it as noise of a case.

        Args:
            forced: The case.
            logits: [len(forced.ids), n_vocab], of an honest computation.
        """
        noise = Noise()
        floor = noise.add(self.oracle().run(Request(ids=forced.ids)).logits, logits, forced.ids)
        np.maximum(forced.floor, floor, out=forced.floor)
        forced.noise.include(noise)
        self.noise.include(noise)

    def forget_logits(self) -> None:
        """Drop the rows of the side tables that the rungs of logits entered, to enter them again."""
        for rows in (self.positions, self.runs, self.candidates):
            rows.clear()

    def _forced(self, case: Case) -> Forced:
        n = len(case.ids)
        self.progress(f"{case.name}: {n} + {case.n_greedy} tokens")
        free = self.ask(Request(ids=case.ids, n_greedy=case.n_greedy))
        ids = case.ids + free.generated[:-1]
        ours = self.engine.run(Request(ids=ids, n_batch=n)).logits
        n_single = len(ids) if isinstance(self.reference, Recorded) else min(len(ids), SINGLE_TOKENS)
        single = Request(ids=ids[:n_single], n_batch=1)
        theirs_single, ours_single = self.ask(single).logits, self.engine.run(single).logits
        theirs = free.logits
        if self.normalised:
            theirs, theirs_single = aligned(theirs, ours), aligned(theirs_single, ours_single)
        noise = Noise()
        floor = noise.measure(self.oracle(), ids, SEEDS[:1] if self.plan.subject.large else SEEDS)
        self.noise.include(noise)
        return Forced(
            case=case,
            ids=ids,
            n_prompt=n,
            theirs=theirs,
            ours=ours,
            theirs_single=theirs_single,
            ours_single=ours_single,
            generated=free.generated,
            floor=floor,
            noise=noise,
        )
