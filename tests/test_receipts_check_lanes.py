"""A lane's outcome, blame and votes follow from its findings, or the receipt is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from receipt_liars import NOW, check_liar, liars

from fixtures.receipts import sample
from receipts.rule import RULES, View


@pytest.mark.parametrize("hole", liars("check_lanes"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


def findings(name, receipt):
    return list(RULES[name].check(View(receipt, (), NOW)))


def with_lane(receipt, i, **changes):
    lanes = list(receipt.lanes)
    lanes[i] = replace(lanes[i], **changes)
    return replace(receipt, lanes=tuple(lanes))


def test_an_integer_operation_may_not_differ_at_all():
    receipt = sample.full()
    located = replace(receipt.lanes[2].located, integer=True, max_abs_err=1.0, max_abs_ref=1e9, limit=1.0)
    [(path, _)] = findings("lanes.located", with_lane(receipt, 2, located=located))
    assert path == "lanes[2].located.integer"  # its rung measured no integers
    rungs = list(receipt.lanes[2].rungs)
    rungs[3] = replace(rungs[3], metric="unequal integer sums", measured=1.0, limit=0.0)
    receipt = with_lane(receipt, 2, rungs=tuple(rungs))
    assert not findings("lanes.located", with_lane(receipt, 2, located=located))
    located = replace(located, max_abs_err=0.0)
    assert findings("lanes.located", with_lane(receipt, 2, located=located))


def test_a_located_layer_is_in_the_model():
    receipt = sample.full()
    located = replace(receipt.lanes[2].located, layer=2)
    [(path, _)] = findings("lanes.located", with_lane(receipt, 2, located=located))
    assert path == "lanes[2].located.layer"


def test_a_deviation_that_blames_the_engine_is_not_proven():
    receipt = with_lane(sample.full(), 2, blame="engine")
    assert findings("lanes.known_deviation", receipt) == [
        ("lanes[2].known_deviation", "proven, but the reference is not the one to blame")
    ]


@pytest.mark.parametrize(
    ("odd", "due"), [("llama.cpp", "reference"), ("bitnet", "engine"), ("oracle", None), (None, None)]
)
def test_blamed_is_who_the_votes_name(odd, due):
    receipt = sample.full()
    vote = replace(receipt.lanes[2].votes[0], odd=odd)
    for blame in ("engine", "reference", None):
        assert (not findings("lanes.blame", with_lane(receipt, 2, votes=(vote,), blame=blame))) is (blame == due)


def test_a_cause_and_a_failed_self_check_blame_nobody():
    """Without a vote a cause says what would make the two agree, not which of them is wrong."""
    receipt = sample.full()
    assert findings("lanes.blame", with_lane(receipt, 2, votes=()))
    assert not findings("lanes.blame", with_lane(receipt, 2, votes=(), blame=None))


@pytest.mark.parametrize("positions", [(), (1,), (1, 0), (0, 0), (0, 5), (0, 400)])
def test_positions_are_in_the_prompt_in_order_and_with_the_worst(positions):
    receipt = sample.full()
    located = replace(receipt.lanes[2].located, positions=positions)
    [(path, _)] = findings("lanes.located", with_lane(receipt, 2, located=located))
    assert path == "lanes[2].located.positions"


def test_only_operations_that_were_measured_have_to_be_located():
    receipt = sample.full()
    rungs = list(receipt.lanes[2].rungs)
    rungs[3] = replace(rungs[3], metric="", measured=None, limit=None, why="the two sides answered in other shapes")
    assert not findings("lanes.located", with_lane(receipt, 2, rungs=tuple(rungs), located=None))
    assert findings("lanes.located", with_lane(receipt, 2, located=None))
    rungs[3] = replace(rungs[3], outcome="pass")
    rungs[4] = replace(rungs[4], outcome="fail")
    assert findings("lanes.located", with_lane(receipt, 2, rungs=tuple(rungs)))


def test_a_cause_from_operations_has_one():
    receipt = sample.full()
    cause = receipt.lanes[2].cause
    assert findings("lanes.cause", with_lane(receipt, 2, located=None))
    assert findings("lanes.cause", with_lane(receipt, 2, located=None, cause=replace(cause, name="", explained=0.0)))
    assert findings("lanes.cause", with_lane(receipt, 2, cause=replace(cause, evidence="logits")))
    assert not findings("lanes.cause", with_lane(receipt, 2, located=None, cause=replace(cause, evidence="logits")))
    assert not findings("lanes.cause", with_lane(receipt, 2, located=None, cause=None))


def test_one_family_with_two_libraries_is_one_witness():
    receipt = sample.full()
    fork = replace(receipt.references[2], library_sha256=sample.sha("library of a fork"))
    receipt = replace(receipt, references=(*receipt.references[:2], fork, receipt.references[3]))
    witnesses = {"bitnet": "agrees", "oracle": "agrees", "llama.cpp": "differs", fork.key: "agrees"}
    vote = replace(receipt.lanes[2].votes[0], witnesses=witnesses)
    [(_, message)] = findings("votes.witnesses", with_lane(receipt, 2, votes=(vote,)))
    assert "family ggml" in message


def test_a_witness_nobody_knows_is_refused():
    receipt = sample.full()
    vote = replace(receipt.lanes[2].votes[0], witnesses={"bitnet": "agrees", "a friend": "agrees"}, odd=None)
    assert findings("votes.witnesses", with_lane(receipt, 2, votes=(vote,)))


def test_near_ties_alone_are_no_pass():
    receipt = sample.full()
    rungs = list(receipt.lanes[1].rungs)
    rungs[6] = replace(rungs[6], compared=1)
    [(path, _)] = findings("rungs.near_ties", with_lane(receipt, 1, rungs=tuple(rungs)))
    assert path == "lanes[1].rungs[6]"


def test_every_outcome_says_why():
    receipt = sample.minimal()
    rungs = tuple(replace(rung, why=" ") for rung in receipt.lanes[0].rungs)
    assert len(findings("rungs.evidence", with_lane(receipt, 0, rungs=rungs))) == 8
