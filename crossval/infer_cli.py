"""`bitnet validate infer`: the cause of a defect from what an engine was seen to compute, without the engine.

Importing this module imports the parser alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.options import Format, Output, Quiet
from bitnet.errors import UsageError
from crossval import commands
from crossval.commands import MODELS
from crossval.validate_lanes import WRONG

if TYPE_CHECKING:
    from crossval.infer import Inference
    from crossval.infer_ids import Choice, IdsInference
    from crossval.infer_observed import Judgement

#: Hypotheses that are listed for people among those that choose other tokens.
_SHOWN = 8


def infer(
    observed: Annotated[Path, typer.Argument(help=".npz or .json: prompt_ids, and generated_ids or logits.")],
    model: MODELS = None,
    numerics: Annotated[
        list[str] | None,
        typer.Option(help="What the engine is known to round otherwise, as kv=f16; may be repeated."),
    ] = None,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds that the search may take.")] = 60.0,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Name the cause of a defect from an engine's logits, or say which hypotheses choose its greedy ids.

    Every row of logits and every id is judged, an id by the engine's own logits where they are there. The place is
    inferred, not observed: use explain where the engine shows its operations.

    Exit codes: 0 nothing is wrong; 1 something is.
    """
    from bitnet.cli.output import document, progress
    from crossval.engine import EngineRunner
    from crossval.infer_observed import judge
    from crossval.observed import read
    from reference.oracle import Oracle

    named = commands.models_of(model)
    if len(named) != 1:
        raise UsageError(f"{len(named)} models are named", where="--model", remedy="name one, or set BITNET_GGUF")
    rounds = EngineRunner(named[0]).model.network.numerics.to_dict()
    try:
        oracle = Oracle(str(named[0]), numerics=rounds | dict(_pair(one) for one in numerics or ()))
    except ValueError as error:
        raise UsageError(str(error), where="--numerics") from error
    seen = read(observed, oracle.n_vocab)
    with progress("what", quiet=quiet) as bar:
        task = bar.add_task("explaining", total=None, what="measuring the noise of the model")

        def told(stage: str, done: int, total: int) -> None:
            bar.update(task, what=stage, completed=done, total=total)

        found = judge(oracle, seen, budget=budget, progress=told)
    if output is Format.json:
        about = {"file": str(observed), "model": str(named[0]), "numerics": dict(oracle.numerics)}
        print(document("validate-infer-1", {**about, **_fields(found)}))
    else:
        print(f"{observed.name}: {found.sentence}.")
        for choice in found.ids.differing[:_SHOWN] if found.ids else ():
            near = ", in near-ties alone" if choice.near_tie else ""
            print(f"  {choice.name} does not: other from step {choice.equal} of {choice.of}{near}")
    raise typer.Exit(WRONG if found.wrong else 0)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no name=value", where="--numerics", remedy="for example: --numerics kv=f16")
    return name, value


def _fields(found: Judgement) -> dict[str, Any]:
    from crossval.answer import cause_fields

    return {
        "wrong": found.wrong,
        "sentence": found.sentence,
        "cause": None if found.cause is None else cause_fields(found.cause),
        "logits": None if found.logits is None else _logits(found.logits),
        "ids": None if found.ids is None else _ids(found.ids),
    }


def _logits(found: Inference) -> dict[str, Any]:
    judged, of = found.positions
    return {
        "positions": of,
        "judged": judged,
        "decades": found.decades,
        "above_noise": found.above_noise,
        "equivalent": list(found.equivalent),
        "tried": found.tried,
        "complete": found.complete,
    }


def _ids(found: IdsInference) -> dict[str, Any]:
    return {
        "contract": _choice(found.contract),
        "reproducing": [_choice(c) for c in found.reproducing],
        "differing": [_choice(c) for c in found.differing],
        "complete": found.complete,
    }


def _choice(one: Choice) -> dict[str, Any]:
    return {
        "name": one.name,
        "explanation": one.explanation,
        "equal": one.equal,
        "of": one.of,
        "near_tie": one.near_tie,
    }
