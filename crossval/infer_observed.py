"""A file of what was observed, judged: every row of its logits and every id that it has.

Rows are held to the contract, which evaluates them all once; a search for the cause replays only as many as show it. An
id is held to the file's own row where there is one, for then no noise excuses it, and else to the contract.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crossval.attribute import BUDGET, Progress
from crossval.end_to_end import EndToEnd
from crossval.infer import Inference, infer
from crossval.infer_ids import IdsInference, contract_alone, infer_ids
from crossval.locate import SINGLE_TOKENS
from crossval.observed import Observed
from receipts.record import Cause
from reference.oracle import Oracle

_NOT_NUMBERS = Cause(
    name="",
    explained=0.0,
    explanation="unexplained: the values are not numbers, and no hypothesis is",
    evidence="logits",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a file shows.

    Attributes:
        sentence: The whole answer.
        wrong: Whether something is.
        cause: Of logits that are; None where they are the contract's, or where there are none.
        logits: The search that found it; None where there was nothing to search for.
        ids: What was said of ids; None where the file's own logits say all.
    """

    sentence: str
    wrong: bool
    cause: Cause | None = None
    logits: Inference | None = None
    ids: IdsInference | None = None


def judge(
    oracle: Oracle,
    seen: Observed,
    *,
    budget: float = BUDGET,
    progress: Progress = lambda *_: None,
) -> Judgement:
    """Judge a file.

    Args:
        oracle: The contract, in the numerics that the engine declares.
        seen: The file.
        budget: Seconds that the search for a cause may take.
        progress: Told the stage, and how many of its hypotheses are done.
    """
    if seen.logits is None:
        ids = infer_ids(oracle, seen.prompt_ids, seen.generated_ids, budget=budget, progress=progress)
        return Judgement(sentence=f"from greedy ids alone: {ids.sentence}", wrong=_differ(ids), ids=ids)
    found = _search(oracle, seen, budget, progress)
    said = [found.sentence]
    own = seen.own_choices()
    odd = [step for step, (given, chosen) in enumerate(zip(seen.generated_ids, own, strict=False)) if given != chosen]
    if odd:
        first = odd[0]
        said.append(
            f"{len(odd)} of {len(own)} generated ids are not the likeliest by the file's own logits, the first at step "
            f"{first}: {seen.generated_ids[first]} where {own[first]} is"
        )
    ids_alone = None
    if not found.wrong and (odd or len(own) < len(seen.generated_ids)):
        ids_alone = contract_alone(oracle, seen.prompt_ids, seen.generated_ids, 0 if odd else len(own))
        said += [] if odd else [f"of the ids without logits: {ids_alone.sentence_of_contract}"]
    return Judgement(
        sentence="; ".join(said),
        wrong=found.wrong or bool(odd) or (ids_alone is not None and _differ(ids_alone)),
        cause=found.cause,
        logits=found.logits,
        ids=ids_alone,
    )


def _differ(ids: IdsInference) -> bool:
    return not (ids.contract.exact or ids.contract.near_tie)


def _search(oracle: Oracle, seen: Observed, budget: float, progress: Progress) -> Judgement:
    """Of the logits."""
    n, of = seen.n_finite, len(seen.ids)
    infinite = [] if n == of else [f"row {n} of {of} of the logits, counted from 0, is the first that is not finite"]
    if not n:
        return Judgement(sentence="; ".join([_NOT_NUMBERS.explanation, *infinite]), wrong=True, cause=_NOT_NUMBERS)
    # one token at a time and together are the same to the contract, but for numerics that say otherwise
    stepwise = any(value.endswith("_decode") for value in oracle.numerics.values())
    whole = EndToEnd(oracle, [seen.evaluation(n, min(len(seen.prompt_ids), n) if stepwise else None)])
    if whole.honest:
        rows = "the logits are" if n == of else f"the logits of the first {n} rows are"
        said = f"{rows} the contract's, as near as the model is to itself"
        cause = _NOT_NUMBERS if infinite else None
        return Judgement(sentence="; ".join([said, *infinite]), wrong=bool(infinite), cause=cause)
    found = infer(_shown(seen, whole, n), budget=budget, progress=progress)
    cause = found.cause
    said = cause.explanation
    if cause.name:
        said += f"; replaying with {cause.name} explains {cause.explained:.1%} of the difference"
        said += f", next best {cause.runner_up} {cause.runner_up_explained:.1%}" if cause.runner_up else ""
    return Judgement(sentence="; ".join([said, cause.caveat, *infinite]), wrong=True, cause=cause, logits=found)


def _shown(seen: Observed, whole: EndToEnd, n: int) -> EndToEnd:
    """As many rows as show the defect: the prompt and a few single steps, or up to the first of the worst rows.

    Single steps are slow, and tell the same: of many, those before the last ones are replayed together.
    """
    usual = min(n, len(seen.prompt_ids) + SINGLE_TOKENS)
    over = whole.contract / whole.noise
    worst = int(np.argmax(over >= over.max() / 2.0))
    shown = max(usual, worst + 1)
    n_batch = max(min(len(seen.prompt_ids), shown), shown - SINGLE_TOKENS)
    return EndToEnd(whole.oracle, [seen.evaluation(shown, n_batch, whole.noise[:shown])])
