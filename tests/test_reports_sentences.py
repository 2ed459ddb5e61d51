"""What is said about a lane."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import reports_sample as sample
from hypothesis import given
from hypothesis import strategies as st

from receipts.lanes import Cause
from reports import sentences
from reports.sentences import counts, number, percent, remark, sentence, times

LANES = {lane.name: lane for lane in sample.lanes()}
DEVIATES = LANES["tiny-relu2 · llama.cpp TQ2_0 (as bitnet)"]
STALE = LANES["bitnet_silu · bitnet.cpp (recorded)"]


def test_a_wrong_reference_is_named_with_place_cause_and_declaration():
    assert sentence(DEVIATES) == (
        "tiny-relu2 · llama.cpp TQ2_0 (as bitnet): the reference is wrong: computes SiLU where the file declares "
        "relu²; first wrong operation ffn_act of layer 0 (error 0.17 × the largest value, limit 1e-6, worst at "
        "token 3, column 411); replaying with silu explains 99.9% of the difference (next best rms_eps=1e-6: 3.1%); "
        "declared as a known deviation and proven again in this run."
    )
    assert counts(DEVIATES)


def test_a_stale_declaration_does_not_count_though_all_rungs_passed():
    assert STALE.outcome == "pass"
    assert not counts(STALE)
    assert not sentences.simply_passed(STALE)
    assert "stale and fails the gate" in sentence(STALE)
    assert not counts(replace(STALE, required=False))


def test_a_dead_reference_is_quoted():
    text = sentence(LANES["llama_tied · bitnet.cpp (recorded)"])
    assert "the weights rung ended in an error: killed by signal 6" in text
    assert text.endswith("this lane is required.")


def test_an_absent_reference_says_what_to_install():
    text = sentence(LANES["tiny-relu2 · transformers"])
    assert "could not be compared: transformers is not installed: pip install" in text
    assert remark(LANES["tiny-relu2 · transformers"]).endswith("not required")


def test_no_cause_found_is_called_unexplained():
    lane = replace(DEVIATES, cause=None, known_deviation=None, blame="engine")
    assert "the engine is wrong; first wrong operation ffn_act" in sentence(lane)
    assert "unexplained" in sentence(lane)
    assert not counts(lane)


def test_a_difference_of_integers_is_named_as_such():
    lane = replace(DEVIATES, located=replace(sample.WRONG, integer=True, max_abs_err=2.0))
    assert "integers differ by up to 2, worst at token 3" in sentence(lane)
    silent = replace(DEVIATES, located=replace(sample.WRONG, max_abs_ref=0.0))
    assert "where the reference is 0" in sentence(silent)


def test_a_failure_without_location_gives_the_rung_and_its_reason():
    rungs = sample.ladder(tokens=("fail", "3 ids differ", 3.0))
    lane = sample.lane("a lane", "tiny-silu", "llama.cpp", rungs)
    assert sentence(lane) == "a lane: the tokens rung fails: 3 ids differ; this lane is required."
    bare = replace(lane, rungs=sample.ladder(tokens=("fail", "", 3.0)))
    assert "the tokens rung fails: different ids 3, limit 0" in sentence(bare)


def test_a_pair_of_hypotheses_reads_as_words():
    cause = Cause(name="activation=silu + rope_style=interleaved", explained=0.99995)
    text = sentence(replace(DEVIATES, cause=cause))
    assert "replaying with silu + interleaved explains 99.9%" in text


def test_missing_rungs_give_each_reason_once():
    lane = LANES["tiny-relu2 · transformers"]
    assert len(sentences.missing_rungs(lane)) == 1
    assert sentences.missing_rungs(LANES["tiny-silu · oracle"]) == []


def test_lanes_are_counted_as_the_gate_counts_them():
    assert sentences.tally(sample.receipt()) == (
        "9 of 12 required lanes passed, 1 deviates as declared, 2 more not required, 2 near-ties"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0"),
        (1.4e-7, "1.4e-7"),
        (1e-6, "1e-6"),
        (0.1694, "0.17"),
        (5.0, "5"),
        (42.4, "42"),
        (12345.0, "1.2e4"),
        (math.inf, "∞"),
        (1.7976931348623157e308, "∞"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_have_two_digits(value, text):
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300, max_value=1e300))
def test_a_number_is_never_off_by_more_than_its_second_digit(value):
    assert float(number(value)) == pytest.approx(value, rel=0.051)  # half a unit of the second digit of 1.0


@given(st.floats(min_value=0, max_value=1))
def test_a_share_is_never_rounded_up_to_all_of_it(share):
    assert (percent(share) == "100%") == (share >= 1 - 1e-9)  # what a double of a share in thousandths can hold


def test_ratios():
    assert (times(1.0), times(1.234), times(47.3)) == ("1.0×", "1.2×", "47×")
