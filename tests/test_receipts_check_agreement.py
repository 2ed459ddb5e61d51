"""Each liar about what `receipts.check_agreement` asks is refused by the rule that should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from receipt_liars import NOW, check_liar, liars

from fixtures.receipts import sample
from receipts.rule import RULES, View


@pytest.mark.parametrize("hole", liars("check_agreement"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


NONE = "none of relu2, silu, relu"


@pytest.mark.parametrize(
    ("cause", "found", "holds"),
    [
        ("activation=silu", "silu", True),
        ("activation=silu", "relu", False),
        ("activation=silu", NONE, False),
        ("activation=gelu", NONE, True),  # the self-check tries the usual forms only
        ("activation=gelu", "silu", False),
        ("activation=silu + rms_eps=1e-06", "silu", True),
        ("rms_eps=1e-06 + activation=silu", "silu", True),
        ("activation=silu + rms_eps=1e-06", "relu", False),
        ("rms_eps=1e-06 + activation=silu", "relu", False),
        ("activation=silu + rms_eps=1e-06", NONE, True),  # the other defect may hide the form
        ("rms_eps=1e-06", "relu", True),
    ],
)
def test_a_cause_and_the_self_check_give_one_answer(cause, found, holds):
    receipt = sample.full()
    lanes, references = list(receipt.lanes), list(receipt.references)
    lanes[2] = replace(lanes[2], cause=replace(lanes[2].cause, name=cause))
    references[1] = replace(references[1], self_check=(replace(references[1].self_check[0], found=found),))
    view = View(replace(receipt, lanes=tuple(lanes), references=tuple(references)), (), NOW)
    assert (not list(RULES["causes.self_check"].check(view))) is holds
