"""Causes by intervention: each hypothesis is one changed field of the oracle's `Semantics`.

The oracle is run on the odd engine's own captured inputs, once by the contract and once under every hypothesis. The
share of the difference at the located operation that a hypothesis removes is its score; the winner is named with its
margin over the runner-up, and where nothing fits the answer is *unexplained*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from receipts.record import Cause
from reference.oracle import Oracle
from reference.runner import Float32, ReferenceUnavailableError, Request, TapKey
from reference.semantics import Semantics

#: Below this share of the difference no cause is named.
NAMED_FROM = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One defect.

    Attributes:
        name: `field=value`.
        changes: Fields of `Semantics`.
        explanation: What an engine with it does, as the end of "it …".
    """

    name: str
    changes: Mapping[str, Any]
    explanation: str


def _h(name: str, explanation: str, **changes: Any) -> Hypothesis:
    return Hypothesis(name=name, changes=changes, explanation=explanation)


HYPOTHESES = (
    _h("activation=silu", "computes SiLU in the feed-forward", activation="silu"),
    _h("activation=relu2", "computes squared ReLU in the feed-forward", activation="relu2"),
    _h("activation=gelu", "computes GELU in the feed-forward", activation="gelu"),
    _h("activation=relu", "computes plain ReLU in the feed-forward", activation="relu"),
    _h("rope_style=interleaved", "rotates neighbouring elements, not halves", rope_style="interleaved"),
    _h("rope_style=half_split", "rotates halves, not neighbouring elements", rope_style="half_split"),
    _h("rope_theta/50", "uses a rotary base 50 times smaller (10,000 for 500,000)", rope_theta_factor=0.02),
    _h("rope_theta*50", "uses a rotary base 50 times larger (500,000 for 10,000)", rope_theta_factor=50.0),
    _h("position+1", "counts positions from 1", position_offset=1),
    _h("rms_eps=1e-6", "adds 1e-6 in the norms", rms_eps=1e-6),
    _h("rms_eps=1e-5", "adds 1e-5 in the norms", rms_eps=1e-5),
    _h("norm=layernorm", "subtracts the mean in the norms", norm="layernorm"),
    _h("sub_norms=off", "skips the sub-norms", sub_norms=False),
    _h("activation_quantised=no", "does not round activations to int8", activation_quantised=False),
    _h("activation_rounding=truncate", "truncates activations instead of rounding", activation_rounding="truncate"),
    _h("activation_rounding=away", "rounds halves away from zero", activation_rounding="away"),
    _h("activation_scale=tensor", "shares one activation scale between tokens", activation_scale="tensor"),
    _h("weight_scale=divide", "divides by the weight scale", weight_scale="divide"),
    _h("weight_scale=drop", "drops the weight scale", weight_scale="drop"),
    _h("reternarised", "quantises ternary weights a second time", reternarised=True),
    _h("code_map=-2,-1,1,2", "maps the codes to −2, −1, 1, 2", code_map=(-2, -1, 1, 2)),
    _h("unpack_order=sequential", "unpacks codes in sequence", unpack_order="sequential"),
    _h("unpack_order=interleaved_64", "unpacks codes in blocks of 64 (ARM)", unpack_order="interleaved_64"),
    _h("head_grouping=stride", "gives query heads the wrong KV head", head_grouping="stride"),
    _h("attention_scale*1.05", "scales attention 5 % too much", attention_scale_factor=1.05),
    _h("causal=no", "lets tokens see later ones", causal=False),
    _h("head=tied", "uses the embedding as the head", head="tied"),
)


def explained(odd: Float32, contract: Float32, hypothesis: Float32) -> float:
    """Share of the squared difference between an engine and the contract that a hypothesis removes, at most 1."""
    before = float(np.square(odd.astype(np.float64) - contract).sum())
    after = float(np.square(odd.astype(np.float64) - hypothesis).sum())
    if before == 0.0 or not np.isfinite(before) or not np.isfinite(after):
        return 0.0
    return max(0.0, 1.0 - after / before)


def attribute(
    model: Path,
    numerics: Mapping[str, str],
    locked: Request,
    located: TapKey,
    odd: Float32,
) -> Cause:
    """Name the defect that reproduces an engine's value at the located operation.

    Args:
        model: The file, read by the contract.
        numerics: The odd engine's, as `Numerics`.
        locked: Ids, and the inputs of each operation.
        located: The first operation that was wrong.
        odd: What the odd engine made of it, [n_token, width].
    """
    contract = Oracle(str(model), numerics=numerics).run(locked).taps[located]
    if not np.isfinite(odd).all():
        return Cause(name="", explained=0.0, explanation="unexplained: the value is not a number, and no hypothesis is")
    scores: list[tuple[float, Hypothesis]] = []
    for hypothesis in HYPOTHESES:
        try:
            oracle = Oracle(str(model), numerics=numerics, semantics=Semantics(**hypothesis.changes))
            value = oracle.run(locked).taps.get(located)
        except (ReferenceUnavailableError, ValueError):
            continue  # the hypothesis has no meaning for this model (no sub-norms to skip, code 3 in the file, …)
        if value is not None and value.shape == odd.shape:
            scores.append((explained(odd, contract, value), hypothesis))
    scores.sort(key=lambda item: -item[0])
    if not scores or scores[0][0] < NAMED_FROM:
        best = f"the best of {len(scores)}, {scores[0][1].name}, explains {scores[0][0]:.1%}" if scores else "none ran"
        return Cause(name="", explained=0.0, explanation=f"unexplained: {best} of the difference")
    (best_score, best_hypothesis), *others = scores
    next_score, next_name = (others[0][0], others[0][1].name) if others else (0.0, "")
    return Cause(
        name=best_hypothesis.name,
        explained=best_score,
        runner_up=next_name,
        runner_up_explained=next_score,
        explanation=best_hypothesis.explanation,
    )
