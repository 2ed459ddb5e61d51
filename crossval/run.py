"""The run: every lane climbed, blamed and explained, and the receipt written from what ran."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bitnet import gguf as container
from bitnet.api import load
from bitnet.config import Numerics
from bitnet.errors import UsageError
from crossval import evidence, ladder
from crossval.case import Case, ends, text_cases
from crossval.cause import cause_of, put_to_vote
from crossval.engine import EngineRunner
from crossval.environment import now
from crossval.evidence import Evidence
from crossval.lane import Lane
from crossval.live import Live, with_live
from crossval.noise import HOW
from crossval.plan import LanePlan, Subject, lanes, shipped_subjects, user_subject
from crossval.verdict import deviation
from crossval.write import usable, write
from receipts import record as r
from receipts.lanes import blamed, climb, lane_outcome
from reference.recorded import Recorded
from reference.runner import ReferenceFailedError, ReferenceUnavailableError, Runner

#: Greedy tokens of a case, and tokens of the quality text; for models that are large, fewer.
N_GREEDY, N_QUALITY = 24, 192
N_GREEDY_LARGE, N_QUALITY_LARGE = 8, 64
#: Tokens of the longest prompt of a large model.
N_PROMPT_LARGE = 96

Say = Callable[[str], None]
Watch = Callable[[Lane, r.Lane], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run.

    Attributes:
        fixtures: The folder of shipped models.
        models: Files of the user's own; empty for the shipped ones.
        only: Keep lanes whose name contains this.
        receipt: Where the receipt goes.
        work: Folder for transcoded copies.
        n_threads: Of the engine.
        measure: Whether speed and determinism are measured.
        live: Which further references are tried.
        explain: Whether causes are searched for.
    """

    fixtures: Path
    models: tuple[Path, ...] = ()
    only: str = ""
    receipt: Path = Path("ci/inference.json")
    work: Path = Path("build/crossval")
    n_threads: int | None = None
    measure: bool = True
    live: Live = field(default_factory=Live)
    explain: bool = True


class Run:
    """One run.

    Args:
        options: What to run.
        say: Told what is going on, for a progress line.
        watch: Shown each lane that was climbed and what is entered of it, while both sides still run.
    """

    def __init__(self, options: Options, say: Say, watch: Watch = lambda *_: None) -> None:
        self.options = options
        self.say = say
        self.watch = watch
        self.evidence = Evidence()
        self._measured: set[str] = set()
        self._hashes: dict[Path, str] = {}
        self._names: dict[str, str] = {}  # in the receipt, by the hash of what has them

    def plan(self) -> list[LanePlan]:
        """Every lane.

        Raises:
            ModelFileError: A model cannot be read.
            UsageError: No lane is left, or two models, files, lanes or references have one name.
        """
        o = self.options
        subjects: list[Subject] = (
            [user_subject(path, o.fixtures) for path in o.models] if o.models else shipped_subjects(o.fixtures)
        )
        if not subjects:
            raise UsageError("there are no models to compare", where=o.fixtures, remedy="name one with --model")
        _each_once("models", [subject.name for subject in subjects], "--model")
        for subject in subjects:
            if (twin := self._names.setdefault(self._sha256(subject.path), subject.name)) != subject.name:
                raise UsageError(f"{twin!r} and {subject.name!r} are the same file", where="--model", remedy="name one")
        every = with_live(lanes(subjects, o.work / "models", shipped=not o.models), o.live)
        planned = [p for p in every if o.only in p.name]
        if not planned:
            raise UsageError(f"no lane has {o.only!r} in its name", where="--only")
        files = {(file.name, self._sha256(file)) for p in planned for file in (p.subject.path, p.engine_file)}
        _each_once("files", [name for name, _ in files], "--model")
        _each_once("lanes", [p.name for p in planned], "--recording")
        _each_once("references", [key for p in planned for key in p.references()], "--model")
        return planned

    def climb(self, plan: LanePlan) -> r.Lane:
        """Climb one lane and enter everything it showed."""
        original = self._engine(plan.subject.name, plan.subject.path, None)
        lane = self._refused(plan, plan.impossible) if plan.impossible else self._open_and_climb(plan, original)
        self.evidence.lanes.append(lane)
        return lane

    def _open_and_climb(self, plan: LanePlan, original: EngineRunner) -> r.Lane:
        try:
            lane, name = self.open(plan, original)
        except ReferenceUnavailableError as error:
            return self._refused(plan, str(error))
        except ReferenceFailedError as error:
            return self._record(plan, None, ladder.failed_reference(f"the reference failed: {error}"))
        try:
            return self._climb(lane, name)
        finally:
            with suppress(ReferenceFailedError):
                lane.reference.close()

    def open(self, plan: LanePlan, original: EngineRunner | None = None) -> tuple[Lane, str]:
        """Both sides of a lane, ready to be asked, and the name of the engine's model; close `lane.reference` after.

        Raises:
            ReferenceUnavailableError: The reference cannot run here, or the engine has no such numerics.
            ReferenceFailedError: It died.
        """
        if plan.impossible:
            raise ReferenceUnavailableError(plan.impossible)
        original = original or self._engine(plan.subject.name, plan.subject.path, None)
        reference = plan.open()
        try:
            name, engine = self._engine_as(plan, reference)
            lane = Lane(
                plan=plan,
                engine=engine,
                original=original,
                reference=reference,
                cases=self._cases(plan.subject, engine, reference),
                texts=self._texts(plan, reference),
                quality_ids=self._quality(plan.subject, engine, reference),
                progress=lambda what: self.say(f"{plan.name}: {what}"),
            )
        except BaseException:
            with suppress(ReferenceFailedError):
                reference.close()
            raise
        return lane, name

    def _engine_as(self, plan: LanePlan, reference: Runner) -> tuple[str, EngineRunner]:
        """The engine in the reference's numerics, or in the model's own where the reference follows."""
        try:
            numerics = None if plan.as_default else Numerics.from_dict(reference.info.numerics)
            return self._engine_of(plan, numerics)
        except UsageError as error:
            raise ReferenceUnavailableError(
                f"the engine has no such numerics as the reference declares: {error.what}"
            ) from error

    def _engine_of(self, plan: LanePlan, numerics: Numerics | None) -> tuple[str, EngineRunner]:
        """The engine on the file of a lane, and the name of that file in the receipt."""
        name = plan.subject.name
        if plan.engine_file != plan.subject.path:
            suffix = plan.engine_file.name.removesuffix(".gguf").rsplit(".", 1)[-1]
            name = self._name(f"{name}.{suffix}", self._sha256(plan.engine_file))
        return name, self._engine(name, plan.engine_file, numerics)

    def _name(self, wanted: str, sha256: str) -> str:
        """The name of a copy: a file has one in a receipt, and no two have the same."""
        while wanted in self._names.values() and sha256 not in self._names:
            wanted += ".copy"
        return self._names.setdefault(sha256, wanted)

    def _climb(self, lane: Lane, name: str) -> r.Lane:
        try:
            rungs = ladder.climb(lane)
            put_to_vote(lane, rungs)
        finally:
            lane.close_witnesses()
        record = self._record(lane.plan, lane, rungs, name)
        if lane.plan.as_default:
            self.evidence.accuracy += evidence.accuracy_records(lane.engine, lane.operations)
        chose = any(self.evidence.cases[_case_key(name, lane, case)].generated_ids for case in lane.cases)
        if self.options.measure and chose and not any(rung.outcome == "error" for rung in rungs):
            self._measure(lane.plan, lane)
        self.watch(lane, record)
        return record

    def _sha256(self, file: Path) -> str:
        if file not in self._hashes:
            self._hashes[file] = container.read(file).sha256()
        return self._hashes[file]

    # --- the two sides --------------------------------------------------------------------------------------------

    def _engine(self, name: str, file: Path, numerics: Numerics | None) -> EngineRunner:
        key = (name, self._sha256(file), json.dumps(None if numerics is None else numerics.to_dict()))
        known = self.evidence.engines.get(key)
        if known is not None:
            return known[1]
        engine = EngineRunner(file, numerics=numerics, n_threads=self.options.n_threads)
        settled = (*key[:2], json.dumps(engine.model.network.numerics.to_dict()))
        if settled in self.evidence.engines:
            engine = self.evidence.engines[settled][1]
        self.evidence.engines[key] = self.evidence.engines[settled] = (name, engine)
        if name not in self.evidence.models:
            self.evidence.models[name] = evidence.model_record(name, engine.model)
            tokenizer = evidence.tokenizer_record(name, engine.model)
            if tokenizer is not None:
                self.evidence.tokenizers[name] = tokenizer
        return engine

    def _cases(self, subject: Subject, engine: EngineRunner, reference: Runner) -> tuple[Case, ...]:
        if isinstance(reference, Recorded):
            return tuple(
                Case(name=p.name, ids=p.prompt_ids, n_greedy=len(p.generated_ids)) for p in reference.prompts()
            )
        n_greedy = N_GREEDY_LARGE if subject.large else N_GREEDY
        made = text_cases(engine, subject.prompts, n_vocab=engine.model.config.n_vocab, n_greedy=n_greedy)
        room = engine.model.config.n_ctx - n_greedy
        if subject.large:
            made, room = ends(made), min(room, N_PROMPT_LARGE)
        if room < 1:
            raise UsageError(f"a context of {engine.model.config.n_ctx} tokens is too short", where=subject.path)
        return tuple(Case(name=c.name, ids=c.ids[:room], n_greedy=n_greedy) for c in made)

    def _texts(self, plan: LanePlan, reference: Runner) -> tuple[str, ...]:
        if isinstance(reference, Recorded):
            return reference.texts()
        nasty = self.options.fixtures / "texts" / "nasty.json"
        listed = tuple(json.loads(nasty.read_text("utf-8"))) if nasty.is_file() else ()
        return tuple(p.text for p in plan.subject.prompts) + listed

    def _quality(self, subject: Subject, engine: EngineRunner, reference: Runner) -> tuple[int, ...]:
        if not subject.quality_text or isinstance(reference, Recorded):
            return ()  # the likelihood of the prompts and their continuations is compared instead
        limit = min(N_QUALITY_LARGE if subject.large else N_QUALITY, engine.model.config.n_ctx)
        with suppress(ReferenceUnavailableError):
            return engine.tokenize(subject.quality_text[: 20 * limit])[:limit]
        return ()

    # --- what is entered ------------------------------------------------------------------------------------------

    def _refused(self, plan: LanePlan, why: str) -> r.Lane:
        """A lane whose reference is not there."""
        name = plan.reference.split(" · ")[0]
        self.evidence.references.setdefault(
            plan.reference,
            r.Reference(key=plan.reference, name=name, family=name, version="", obtained="unavailable"),
        )
        first, *more = why.splitlines()
        return self._record(plan, None, ladder.unsupported(" ".join((first, *(m.strip() for m in more)))))

    def _record(self, plan: LanePlan, lane: Lane | None, rungs: tuple[r.Rung, ...], model: str = "") -> r.Lane:
        if lane is None:
            self.evidence.references.setdefault(
                plan.reference,
                r.Reference(
                    key=plan.reference,
                    name=plan.reference.split(" · ")[0],
                    family="unknown",
                    version="",
                    obtained="unavailable",
                ),
            )
            return r.Lane(
                name=plan.name,
                model=plan.subject.name,
                reference=plan.reference,
                outcome=lane_outcome(rungs, plan.required_rungs),
                rungs=rungs,
                required=plan.required,
                required_rungs=plan.required_rungs,
                climbed=climb(rungs, plan.required_rungs),
            )
        self._enter(plan, lane, model)
        failed = any(rung.outcome == "fail" for rung in rungs)
        located = lane.located if failed else None
        blame = blamed(rungs, lane.votes, plan.reference)
        cause = cause_of(lane, rungs, located, blame, self.say) if self.options.explain and failed else None
        noise = lane.noise
        return r.Lane(
            name=plan.name,
            model=model,
            reference=plan.reference,
            numerics=lane.numerics.to_dict(),
            outcome=lane_outcome(rungs, plan.required_rungs),
            rungs=rungs,
            required=plan.required,
            required_rungs=plan.required_rungs,
            climbed=climb(rungs, plan.required_rungs),
            noise_floor=r.NoiseFloor(metric="median relative L2 of logits", value=noise.median, how=HOW)
            if noise.rel_l2
            else None,
            located=located,
            blame=blame,
            cause=cause,
            known_deviation=deviation(
                plan.deviation, plan.required_rungs, lane.operations, located, blame, cause, rungs
            ),
            votes=tuple(lane.votes),
        )

    def _enter(self, plan: LanePlan, lane: Lane, model: str) -> None:
        e = self.evidence
        for name, rows in e.tables.items():
            rows += evidence.token_rows(lane) if name == "tokens" else getattr(lane, name)
        for case in lane.cases:
            key = _case_key(model, lane, case)
            if key not in e.cases:
                e.cases[key] = evidence.case_record(model, lane.engine, case)
        checks = tuple(
            r.SelfCheck(question=q, expected=a, found=b, outcome="pass" if a == b else "fail")
            for q, (a, b) in lane.self_check.items()
        )
        e.references[plan.reference] = evidence.reference_record(plan.reference, lane.reference.info, checks)
        if any(lane.oracle_key in vote.witnesses for vote in lane.votes):
            e.references[lane.oracle_key] = evidence.reference_record(lane.oracle_key, lane.oracle().info)
        for name, witness in lane.heard().items():
            e.references[name] = evidence.reference_record(name, witness)

    def _measure(self, plan: LanePlan, lane: Lane) -> None:
        """Speed against a live reference, and determinism once a model."""
        e, subject = self.evidence, plan.subject
        if plan.as_default and subject.name not in self._measured:
            self._measured.add(subject.name)
            self.say(f"{subject.name}: the same case on other threads and in other batches")
            others: dict[int, EngineRunner] = {}

            def with_threads(n: int) -> EngineRunner:
                if n not in others:
                    others[n] = EngineRunner(subject.path, n_threads=n)
                return others[n]

            e.determinism += evidence.determinism_trials(lane.engine, lane.cases[0], with_threads)
        if "TQ2_0" in plan.reference and not plan.impossible and not subject.large:
            self.say(f"{plan.name}: speed")
            engine = self._engine(subject.name, subject.path, None)
            with suppress(ReferenceFailedError, ReferenceUnavailableError):
                e.performance += evidence.speed(subject.name, engine, lane.reference, plan.reference, lane.cases[0].ids)
                e.performance += evidence.start_up(subject.name, engine, lambda: load(subject.path))

    # --- the receipt ----------------------------------------------------------------------------------------------

    def receipt(self, started: str, seconds: float) -> r.Receipt:
        """Write the receipt and its side tables; the old one stays until the new one is whole."""
        return write(self.evidence, self.options.receipt, started=started, seconds=seconds)


def _each_once(what: str, names: Sequence[str], where: str) -> None:
    """Raise `UsageError` for two of one name: a receipt could not tell them apart."""
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(
            f"two {what} are called {min(twice)!r}", where=where, remedy="rename one, or compare them in turn"
        )


def _case_key(model: str, lane: Lane, case: Case) -> tuple[str, str, str]:
    return model, json.dumps(lane.numerics.to_dict()), case.name


def one_of(planned: Sequence[LanePlan], only: str) -> LanePlan:
    """The lane that is meant: of exactly that name, or the only one. Raises `UsageError`."""
    exact = [plan for plan in planned if plan.name == only] or list(planned)
    if len(exact) != 1:
        names = "; ".join(plan.name for plan in exact)
        raise UsageError(f"{len(exact)} lanes are meant where one must be: {names}", where="--only")
    return exact[0]


def run(options: Options, say: Say, done: Callable[[r.Lane, int, int], None]) -> r.Receipt:
    """Climb every lane and write the receipt.

    Args:
        options: What to run.
        say: Told what is going on.
        done: Told of each finished lane, its number from 1, and how many there are.

    Raises:
        BitNetError: A model cannot be read; nothing was written.
        ReceiptError: The receipt cannot be written; the old one is untouched.
    """
    started, began = now(), time.monotonic()
    usable(options.receipt.parent, "--receipt")
    usable(options.work, "--work")
    for path in options.models:
        load(path, packed_cache=False)  # a damaged model is refused before anything is computed
    this = Run(options, say)
    planned = this.plan()
    for i, plan in enumerate(planned, 1):
        say(plan.name)
        done(this.climb(plan), i, len(planned))
    return this.receipt(started, time.monotonic() - began)
