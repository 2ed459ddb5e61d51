"""References that lie, each in one thing: the oracle under another name, and what is done to its answers.

An honest one (`Liar()`) must climb to the top, or catching the others proves nothing.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import golden_models
import numpy as np

import bitnet
from crossval.case import Prompt
from crossval.plan import ALL_RUNGS, Deviation, LanePlan, Subject
from crossval.run import Options, Run
from receipts.record import Lane, RungName
from reference.oracle import Oracle
from reference.runner import Observation, ReferenceFailedError, ReferenceUnavailableError, Request
from reference.semantics import Semantics

MODEL = Path(golden_models.model("b158_a"))
PROMPTS = (Prompt(name="one", text="the quick brown fox"), Prompt(name="two", text="a sea"))


class Liar:
    """The oracle as if it were somebody else's engine, with a tokenizer.

    Args:
        model: What it runs on.
        semantics, numerics: Of the oracle.
        info: Fields of its identity to change.
        change: Sees each request and answer, and may replace the answer.
        reads: What it decodes its weights from; the model by default.
    """

    def __init__(
        self,
        model: Path = MODEL,
        *,
        semantics: Semantics | None = None,
        numerics: dict[str, str] | None = None,
        info: dict[str, object] | None = None,
        change: Callable[[Request, Observation], Observation] | None = None,
        reads: Path | None = None,
    ) -> None:
        self.oracle = Oracle(str(model), semantics=semantics, numerics=numerics)
        self.shown = Oracle(str(reads or model))
        self.tokenizer = bitnet.load(reads or model).tokenizer
        library = hashlib.sha256(b"somebody else's library").hexdigest()
        own = {
            "name": "other",
            "family": "others",
            "library_sha256": library,
            "model_sha256": self.shown.info.model_sha256,
        }
        self.info = replace(self.oracle.info, **{**own, **(info or {})})
        self.change = change

    def run(self, request: Request) -> Observation:
        seen = self.oracle.run(request)
        return seen if self.change is None else self.change(request, seen)

    def tokenize(self, text, *, add_special=True, parse_special=True):
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def weights(self, name):
        return self.shown.weights(name)

    def close(self):
        pass


# ---- changes of an answer ------------------------------------------------------------------------------------------


def nan(_: Request, seen: Observation) -> Observation:
    taps = {key: np.full_like(value, np.nan) for key, value in seen.taps.items()}
    return replace(seen, logits=np.full_like(seen.logits, np.nan), taps=taps)


def zero_rows(_: Request, seen: Observation) -> Observation:
    return replace(seen, logits=seen.logits[:0], taps={key: value[:0] for key, value in seen.taps.items()})


def zero_row_taps(_: Request, seen: Observation) -> Observation:
    taps = {key: value[:0] for key, value in seen.taps.items() if key[0] != "result_output"}
    return replace(seen, taps=taps)


def narrow_taps(_: Request, seen: Observation) -> Observation:
    taps = {key: value[:, :-1] for key, value in seen.taps.items() if key[0] != "result_output"}
    return replace(seen, taps=taps)


def narrow_logits(_: Request, seen: Observation) -> Observation:
    return replace(seen, logits=seen.logits[:, :-1])


def scaled_logits_only(_: Request, seen: Observation) -> Observation:
    """Its captures are honest, what it returns is not."""
    return replace(seen, logits=seen.logits * np.float32(1.5))


def embd_only(_: Request, seen: Observation) -> Observation:
    return replace(seen, taps={key: value for key, value in seen.taps.items() if key[0] == "embd"})


def without_the_head(_: Request, seen: Observation) -> Observation:
    return replace(seen, taps={key: value for key, value in seen.taps.items() if key[0] != "result_output"})


def without_taps(request: Request, seen: Observation) -> Observation:
    if request.taps:
        raise ReferenceUnavailableError("it shows no intermediates")
    return seen


def ids_of_another_answer(_: Request, seen: Observation) -> Observation:
    return replace(seen, ids=tuple(i + 1 for i in seen.ids))


def token_that_does_not_exist(_: Request, seen: Observation) -> Observation:
    if not seen.generated:
        return seen
    generated = (*seen.generated[:-1], 10**9)
    return replace(seen, ids=(*seen.ids[: -len(generated)], *generated), generated=generated)


def one_row(position: int, factor: float, *, from_length: int = 0) -> Callable[[Request, Observation], Observation]:
    """The logits of one position multiplied, in the capture as in the answer."""

    def change(request: Request, seen: Observation) -> Observation:
        if len(seen.logits) <= max(position, from_length):
            return seen
        logits, taps = seen.logits.copy(), dict(seen.taps)
        logits[position] *= np.float32(factor)
        if ("result_output", -1) in taps:
            taps["result_output", -1] = logits
        return replace(seen, logits=logits, taps=taps)

    return change


def wrong_when_single_after(position: int) -> Callable[[Request, Observation], Observation]:
    """A decode kernel that is right for the first tokens."""

    def change(request: Request, seen: Observation) -> Observation:
        if request.n_batch != 1 or len(seen.logits) <= position:
            return seen
        logits = seen.logits.copy()
        logits[position:] = logits[position:, ::-1]
        return replace(seen, logits=logits)

    return change


def only_single(change: Callable[[Request, Observation], Observation]) -> Callable[[Request, Observation], Observation]:
    """A change of answers without captures, one token at a time."""
    return lambda request, seen: change(request, seen) if request.n_batch == 1 and not request.taps else seen


class OffByOne(Liar):
    """Evaluates the ids after those it was asked for, and does not say so."""

    def run(self, request: Request) -> Observation:
        seen = super().run(replace(request, ids=tuple((i + 1) % self.oracle.n_vocab for i in request.ids)))
        return replace(seen, ids=(*request.ids, *seen.generated))


class OtherIds(Liar):
    def tokenize(self, text, *, add_special=True, parse_special=True):
        ids = super().tokenize(text, add_special=add_special, parse_special=parse_special)
        return (*ids[:-1], ids[-1] ^ 1)


class OtherChoice(Liar):
    """Continues with a token that its own logits do not favour, and goes on from there as it should."""

    def __init__(self, *, at: int = 5) -> None:
        super().__init__()
        self.at = at

    def run(self, request: Request) -> Observation:
        if not request.n_greedy:
            return super().run(request)
        first = self.oracle.run(Request(ids=request.ids, n_greedy=self.at + 1))
        chosen = int(first.logits[-1].argmin())
        ids = (*request.ids, *first.generated[: self.at], chosen)
        rest = self.oracle.run(Request(ids=ids, n_greedy=request.n_greedy - self.at - 1)).generated
        generated = (*ids[len(request.ids) :], *rest)
        every = self.oracle.run(Request(ids=(*request.ids, *generated[:-1]), n_batch=len(request.ids)))
        return Observation(ids=(*request.ids, *generated), logits=every.logits, generated=generated)


class DoublesAScale(Liar):
    """One scale read twice too large: of ffn_gate, where the sub-norm divides it out again."""

    tensor = "blk.1.ffn_gate.weight"

    def weights(self, name):
        return super().weights(name) * np.float32(2 if name == self.tensor else 1)


class FewerWeights(Liar):
    def weights(self, name):
        return super().weights(name)[:-1]


class NaNWeights(Liar):
    def weights(self, name):
        return np.full_like(super().weights(name), np.nan)


class Dies(Liar):
    """At its n-th request."""

    def __init__(self, *arguments, requests: int, **options) -> None:
        super().__init__(*arguments, **options)
        self.left = requests

    def run(self, request: Request) -> Observation:
        self.left -= 1
        if self.left < 0:
            raise ReferenceFailedError("killed by signal 11 (SIGSEGV)", last_words="reading address 0")
        return super().run(request)


def in_child(kind: str, after: int) -> Liar:
    """For a child process: one that hangs or kills itself at a request."""

    class Ends(Liar):
        left = after

        def run(self, request: Request) -> Observation:
            self.left -= 1
            if self.left < 0 and kind == "hang":
                time.sleep(600)
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(request)

    return Ends()


# ---- climbing ------------------------------------------------------------------------------------------------------


def plan(
    open_reference: Callable[[], object],
    *,
    model: Path = MODEL,
    name: str = "liar",
    deviation: Deviation | None = None,
    required_rungs: tuple[RungName, ...] = ALL_RUNGS,
    as_default: bool = False,
) -> LanePlan:
    return LanePlan(
        name=name,
        subject=Subject(name=model.stem, path=model, prompts=PROMPTS),
        engine_file=model,
        reference_file=model,
        reference=f"{name} · reference",
        open=open_reference,  # type: ignore[arg-type]  # liars
        required_rungs=required_rungs,
        deviation=deviation,
        as_default=as_default,
    )


def options(folder: Path, **changes) -> Options:
    """A run without texts of its own, written into a folder."""
    return Options(
        **{
            "fixtures": folder / "none",
            "receipt": folder / "ci" / "inference.json",
            "work": folder / "work",
            "n_threads": 1,
            "measure": False,
            **changes,
        }
    )


def quiet(_: str) -> None:
    pass


def climb(reference: object, folder: Path, **changes) -> Lane:
    """One lane against a reference, or against what a function opens."""
    opened = reference if callable(reference) else lambda: reference
    return Run(options(folder), quiet).climb(plan(opened, **changes))


def first_fault(lane: Lane) -> tuple[str, str]:
    """Name and outcome of the first rung that did not pass."""
    return next(((rung.name, rung.outcome) for rung in lane.rungs if rung.outcome != "pass"), ("", ""))
