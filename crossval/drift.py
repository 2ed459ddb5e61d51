"""How good is it? Engines with known defects are made, and every step of the instrument is tried on them.

A trial makes a mutant (`crossval.mutants`), captures it, and asks: does the engine, on the mutant's own inputs, see
that it is wrong; is the first wrong operation the one that the defect moves first; is the defect the first cause named?
What a defect does is told by the mutant's twin, which is the same engine without it: same order of sums, same batches.
A defect that moves nothing (ties that do not occur, an activation that is the right one) is no defect and is set aside;
so is one of a pair that the other hides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from time import process_time
from typing import Any, Literal

import numpy as np

from bitnet.synthetic import Shape, make
from crossval import envelope
from crossval.attribute import Attribution, explain
from crossval.case import SHORT_PROMPTS, read_prompts
from crossval.catalogue import CATALOGUE, Hypothesis
from crossval.engine import EngineRunner
from crossval.fits import variant_of
from crossval.metrics import Float32, difference
from crossval.mutants import Mutant, draw, same_cause
from crossval.replay import Replay
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, Request, TapKey, tap_order

Kind = Literal["single", "pair", "clean"]

#: Three sizes, and with them the three graphs of the family.
SHAPES: dict[str, Shape] = {
    "small": Shape(n_layer=2, n_embd=128, n_ff=256, n_head=2, n_head_kv=1, n_vocab=320),
    "middle": Shape(
        n_layer=3, n_embd=256, n_ff=640, n_head=4, n_head_kv=2, n_vocab=512, arch="bitnet", rope_theta=10_000.0
    ),
    "large": Shape(n_layer=4, n_embd=384, n_ff=1024, n_head=6, n_head_kv=3, n_vocab=640, arch="llama", tied=False),
}
#: Trained models among the fixtures.
TRAINED = ("tiny-relu2", "tiny-llama")
#: Tokens of a trial.
SHORTEST, LONGEST = 14, 24
#: What another order of float32 sums moves, relative to the largest value; a defect moves more, or is none.
FLOAT_NOISE = 3e-7
#: Seconds of processor time one search may take in a study.
BUDGET = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One mutant and what was made of it.

    Attributes:
        model, seed, kind: What was tried.
        defects: Names of what was put in.
        hidden: Why it is set aside; "" where it counts.
        detected: Whether any operation was out of its envelope.
        expected, found: Place of the first wrong operation, as the twin says and as it was located.
        causes: Names of the first cause.
        attributed: Whether they are the defects, with their numbers and tensors.
        named: Whether the first cause is good enough to be claimed.
        together: Whether the defects are told as having the same effect as the first cause, where they are not it.
        explained, margin: As the attribution says.
        seconds: Of the attribution.
    """

    model: str
    seed: int
    kind: Kind
    defects: tuple[str, ...]
    hidden: str = ""
    detected: bool = False
    expected: str = ""
    found: str = ""
    causes: tuple[str, ...] = ()
    attributed: bool = False
    named: bool = False
    together: bool = False
    explained: float = 0.0
    margin: float = 0.0
    seconds: float = 0.0

    @property
    def located(self) -> bool:
        """Whether the first wrong operation is the right one."""
        return self.detected and bool(self.expected) and self.expected == self.found

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "defects": list(self.defects), "causes": list(self.causes), "located": self.located}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An engine to be tried on.

    Attributes:
        request: What it is asked.
        names: Of what was put in.
        defects: The same, as hypotheses.
        mutant: The engine; None where there is none.
        hidden: Why there is none.
    """

    request: Request
    names: tuple[str, ...]
    defects: tuple[Hypothesis, ...] = ()
    mutant: Mutant | None = None
    hidden: str = ""


class Subject:
    """One model of the study: the engine and the oracle on it, and prompts."""

    def __init__(self, name: str, path: Path, texts: Sequence[str]) -> None:
        self.name = name
        self.engine = EngineRunner(path, n_threads=1)
        self.oracle = Oracle(str(path), numerics=self.engine.model.network.numerics.to_dict())
        encoded = []
        for text in texts:
            try:
                encoded.append(self.engine.tokenize(text))
            except ReferenceUnavailableError:
                continue
        self.prompts = [ids for ids in encoded if len(ids) >= SHORTEST]

    def ids(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Tokens of a prompt where there is one, of the vocabulary at random otherwise."""
        n = int(rng.integers(SHORTEST, LONGEST + 1))
        if self.prompts:
            return self.prompts[int(rng.integers(len(self.prompts)))][:n]
        return tuple(int(i) for i in rng.integers(0, self.oracle.n_vocab, n))

    def make(self, kind: Kind, seed: int, entry: int = 0) -> Made:
        """One mutant; the same arguments make the same one."""
        rng = np.random.default_rng((seed, entry, ("single", "pair", "clean").index(kind), len(self.name)))
        ids = self.ids(rng)
        n_batch = int(rng.integers(len(ids) // 2, len(ids) + 1))
        request = Request(ids=ids, n_batch=n_batch, taps=True)
        defects = self._defects(kind, entry, rng)
        if defects is None:
            return Made(request=request, names=(CATALOGUE[entry].name,), hidden="no such model")
        mutant = Mutant.of(variant_of(self.oracle, *defects), seed)
        return Made(request=request, names=names_of(defects), defects=defects, mutant=mutant)

    def trial(self, kind: Kind, seed: int, entry: int = 0) -> Trial:
        """Make one mutant and try everything on it; the same arguments make the same trial."""
        made = self.make(kind, seed, entry)
        request, defects = made.request, made.defects
        aside = Trial(model=self.name, seed=seed, kind=kind, defects=made.names, hidden=made.hidden)
        if made.mutant is None:
            return aside
        try:
            taps = made.mutant.run(request).taps
        except ReferenceUnavailableError as error:
            return replace(aside, hidden=error.what)
        hidden, expected = self._truth(taps, request, defects, seed)
        if hidden:
            return replace(aside, hidden=hidden)
        wrong = self._wrong(request, taps)
        if kind == "clean":
            return replace(aside, detected=bool(wrong), found=_place(wrong[:1]))
        replay = Replay(self.oracle, request.ids, taps, n_batch=request.n_batch)
        return self._judged(kind, seed, defects, expected, wrong, explain(replay, budget=BUDGET, clock=process_time))

    def _judged(
        self,
        kind: Kind,
        seed: int,
        defects: Sequence[Hypothesis],
        expected: str,
        wrong: Sequence[TapKey],
        found: Attribution,
    ) -> Trial:
        causes = found.best.hypotheses if found.best else ()
        return Trial(
            model=self.name,
            seed=seed,
            kind=kind,
            defects=names_of(defects),
            detected=bool(wrong),
            expected=expected,
            found=_place(wrong[:1]),
            causes=names_of(causes),
            attributed=right(causes, defects),
            named=found.named,
            explained=max(found.best.explained, 0.0) if found.best else 0.0,
            margin=found.margin,
            seconds=found.seconds,
        )

    def _defects(self, kind: Kind, entry: int, rng: np.random.Generator) -> tuple[Hypothesis, ...] | None:
        """What to put in; None where the model cannot have it."""
        wanted = {"single": 1, "pair": 2, "clean": 0}[kind]
        for _ in range(40 if kind == "pair" else 1):
            picks = [entry] if kind == "single" else rng.choice(len(CATALOGUE), wanted, replace=False).tolist()
            drawn = tuple(draw(CATALOGUE[pick], rng, self.oracle) for pick in picks)
            try:
                variant_of(self.oracle, *drawn)
                self._decodes(drawn)
                if kind != "pair" or self._may_be_seen(drawn):
                    return drawn
            except (ReferenceUnavailableError, ValueError):
                continue  # two that contradict each other, or that mean nothing for this model
        return None

    def _decodes(self, drawn: Sequence[Hypothesis]) -> None:
        for h in drawn:
            for change in h.semantics.get("weights", ()):
                variant_of(self.oracle, *drawn).weights(change.tensor)

    def _may_be_seen(self, drawn: Sequence[Hypothesis]) -> bool:
        """Whether each of a pair has an effect of its own, before minutes are spent on it."""
        request = Request(ids=self.ids(np.random.default_rng(0)), taps=True)
        return all(
            not self._truth(Mutant.of(variant_of(self.oracle, h), 0).run(request).taps, request, (h,), 0)[0]
            for h in drawn
        )

    def _truth(
        self,
        taps: Mapping[TapKey, Float32],
        request: Request,
        defects: Sequence[Hypothesis],
        seed: int,
    ) -> tuple[str, str]:
        """Why a trial is set aside, and the operation that the defects move first."""
        if not defects:
            return "", ""
        moved = self._moved(taps, request, (), seed)
        if not moved:
            return "moves nothing", ""
        if len(defects) == 2 and not all(self._moved(taps, request, (d,), seed) for d in defects):
            return "one hides the other", ""
        return "", _place(moved[:1])

    def _moved(
        self, taps: Mapping[TapKey, Float32], request: Request, known: Sequence[Hypothesis], seed: int
    ) -> list[TapKey]:
        """Operations that the same engine with less wrong computes otherwise, on the same inputs."""
        twin = Mutant.of(variant_of(self.oracle, *known), seed)
        replay = Replay(twin, request.ids, taps, n_batch=request.n_batch)
        made: dict[TapKey, Float32] = {}
        moved = []
        for key in replay.keys:
            if key[0] in twin.absent:
                continue
            value = replay.operation(key, twin, made)
            if np.array_equal(value, taps[key], equal_nan=True):
                continue
            if not difference(value, taps[key]).ratio <= FLOAT_NOISE:
                moved.append(key)
        return moved

    def _wrong(self, request: Request, taps: Mapping[TapKey, Float32]) -> list[TapKey]:
        """Operations that the engine, on the mutant's inputs, computes otherwise."""
        locked = Request(ids=request.ids, n_batch=request.n_batch, taps=True, lock=taps)
        ours = self.engine.run(locked).taps
        replay = Replay(self.oracle, request.ids, taps, n_batch=request.n_batch)
        return [
            key
            for key in tap_order(self.engine.model.config.n_layer)
            if key in taps
            and key in ours
            and not envelope.LOCKED_OPERATION.holds(replay.judged(key, ours[key], taps[key]).ratio)
        ]


def right(causes: Sequence[Hypothesis], defects: Sequence[Hypothesis]) -> bool:
    """Whether causes are the defects, no more and no fewer."""
    return len(causes) == len(defects) and all(any(same_cause(c, d) for c in causes) for d in defects)


def names_of(hypotheses: Sequence[Hypothesis]) -> tuple[str, ...]:
    """As they are told."""
    return tuple(h.name for h in hypotheses)


def _place(keys: Sequence[TapKey]) -> str:
    if not keys:
        return ""
    tap, layer = keys[0]
    return tap if layer < 0 else f"{tap} of layer {layer}"


def subjects(fixtures: Path, work: Path) -> list[Subject]:
    """The models of the study: three made, two trained."""
    made = [(name, make(work / f"drift-{name}.gguf", shape, seed=7), ()) for name, shape in SHAPES.items()]
    trained = [
        (
            name,
            fixtures / "models" / f"{name}.i2_s.gguf",
            tuple(p.text for p in (*read_prompts(fixtures / "prompts.json", name), *SHORT_PROMPTS)),
        )
        for name in TRAINED
    ]
    return [Subject(name, path, texts) for name, path, texts in (*made, *trained)]


def plan(n_seeds: int, n_pairs: int, n_clean: int, first_seed: int) -> Iterator[tuple[Kind, int, int]]:
    """(kind, seed, entry) of every trial on one model."""
    for seed in range(first_seed, first_seed + n_seeds):
        yield from (("single", seed, entry) for entry in range(len(CATALOGUE)))
    yield from (("pair", seed, 0) for seed in range(first_seed, first_seed + n_pairs))
    yield from (("clean", seed, 0) for seed in range(first_seed, first_seed + n_clean))


#: What is tried on a mutant of a model.
Judge = Callable[[Subject, Kind, int, int], Trial]


def study(
    models: Sequence[Subject],
    trials: Sequence[tuple[Kind, int, int]],
    *,
    sample: int | None = None,
    seed: int = 0,
    judge: Judge = Subject.trial,
    done: Callable[[Trial, int, int], None] = lambda *_: None,
) -> list[Trial]:
    """Run trials on every model, or a sample of them drawn by seed; `judge` is what is tried on each mutant."""
    every = [(model, *trial) for model in models for trial in trials]
    if sample is not None and sample < len(every):
        chosen = np.random.default_rng(seed).permutation(len(every))[:sample]
        every = [every[i] for i in sorted(chosen.tolist())]
    results = []
    for number, (model, kind, trial_seed, entry) in zip(count(1), every, strict=False):
        results.append(judge(model, kind, trial_seed, entry))
        done(results[-1], number, len(every))
    return results
