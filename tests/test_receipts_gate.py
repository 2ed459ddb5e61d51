"""What the gate asks of a receipt, and that each demand can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.receipts import sample
from receipts.gate import gate
from receipts.record import Correction, KnownDeviation

STALE = KnownDeviation(name="old", reason="it was so once", status="stale")


def failed(receipt):
    return [result.name for result in gate(receipt) if result.outcome == "fail"]


@pytest.mark.parametrize("build", [sample.minimal, sample.full])
def test_good_receipts_pass(build):
    assert failed(build()) == []


def with_lane(receipt, **changes):
    return replace(receipt, lanes=(replace(receipt.lanes[0], **changes), *receipt.lanes[1:]))


def with_row(receipt, part, **changes):
    return replace(receipt, **{part: (replace(getattr(receipt, part)[0], **changes),)})


@pytest.mark.parametrize(
    ("receipt", "name"),
    [
        (sample.gate_failed(), "gate.lane.tiny-relu2 / oracle"),
        (with_lane(sample.minimal(), required=False), "gate.required"),
        (replace(sample.minimal(), lanes=()), "gate.required"),
        (with_lane(sample.minimal(), known_deviation=STALE), "gate.lane.tiny-relu2 / oracle"),
        (with_lane(sample.full(), required=False, known_deviation=STALE), "gate.lane.tiny-relu2 / oracle"),
        (with_lane(sample.minimal(), outcome="inconclusive"), "gate.lane.tiny-relu2 / oracle"),
        (replace(sample.minimal(), compute_path="none"), "gate.compute_path"),
        (with_row(sample.minimal(), "accuracy", passed=False), "gate.accuracy"),
        (with_row(sample.minimal(), "determinism", equal=False), "gate.determinism"),
        (replace(sample.minimal(), corrections=(Correction(what="attn_norm", reason="nan"),)), "gate.corrections"),
    ],
)
def test_each_demand_can_fail(receipt, name):
    assert failed(receipt) == [name]


def test_a_lane_that_nobody_requires_may_fail():
    receipt = sample.full()
    extra = replace(sample.gate_failed().lanes[0], name="extra", required=False)
    assert failed(replace(receipt, lanes=(*receipt.lanes, extra))) == []


def test_every_demand_says_why():
    assert all(result.why for result in gate(sample.full()))
