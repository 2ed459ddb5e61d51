"""What the rungs share: one evaluation of a case, answers that are checked, an oracle in the lane's numerics."""

from __future__ import annotations

from dataclasses import replace

import liars
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.config import Numerics
from crossval.case import Case
from crossval.engine import EngineRunner
from crossval.lane import Lane
from crossval.metrics import ShapeMismatchError, aligned, histogram, log_softmax
from receipts.tables import BINS
from reference.runner import LOG_PROBABILITY_ERROR, Observation, ReferenceFailedError, Request

IDS = (1, 45, 300, 7)
CASE = Case(name="c", ids=IDS, n_greedy=3)


def lane(reference, **numerics):
    engine = EngineRunner(liars.MODEL, numerics=Numerics(**numerics) if numerics else None, n_threads=1)
    return Lane(plan=liars.plan(lambda: reference), engine=engine, original=engine, reference=reference, cases=(CASE,))


def test_a_case_is_evaluated_once():
    calls = []
    counted = lane(liars.Liar(change=lambda request, seen: calls.append(request) or seen))
    first = counted.forced(CASE)
    n = len(calls)
    assert counted.forced(CASE) is first
    assert len(calls) == n == 2
    assert len(counted.noise.rel_l2) == 3


def test_both_sides_evaluate_the_same_ids_in_the_same_ways():
    found = lane(liars.Liar()).forced(CASE)
    assert found.ids == IDS + found.generated[:-1]
    assert found.ours.shape == found.theirs.shape == (len(IDS) + 2, 512)
    assert found.ours_single.shape == found.theirs_single.shape == (len(IDS) + 2, 512)
    assert found.floor.shape == (len(found.ids),)
    assert np.array_equal(found.ours, found.ours_single)


def told(seen, factor=1.0):
    """As a server tells logits."""
    return replace(seen, logits=log_softmax(seen.logits * np.float32(factor)).astype(np.float32))


def server(change=told):
    info = {"obtained": "server", "log_probabilities": True}
    return liars.Liar(info=info, change=lambda _, seen: change(seen))


def test_log_probabilities_are_given_the_constant_that_they_leave_open():
    plain, found = lane(liars.Liar()), lane(server())
    assert (plain.told, plain.normalised, found.normalised) == (0.0, False, True)
    assert 0.0 < found.told < 1e-4
    expected, forced = plain.forced(CASE), found.forced(CASE)
    for name in ("theirs", "theirs_single"):
        gap = np.abs(getattr(forced, name) - getattr(expected, name)).max()
        assert gap <= 2 * LOG_PROBABILITY_ERROR


def test_nothing_but_the_constant_is_given():
    forced = lane(server(lambda seen: told(seen, 1.01))).forced(CASE)
    assert np.abs(forced.theirs - forced.ours).max() > 1e-3
    forced = lane(server(lambda seen: replace(told(seen), logits=np.full_like(seen.logits, np.nan)))).forced(CASE)
    assert np.isnan(forced.theirs).all()


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=20), st.floats(-30, 30))
def test_aligned_rows_differ_by_what_is_not_a_constant(row, constant):
    logits = np.array([row], np.float32)
    shifted = (logits + np.float32(constant)).astype(np.float32)
    assert np.abs(aligned(shifted, logits) - logits).max() <= 2e-5
    other = logits.copy()
    other[0, 0] += 1.0
    assert np.abs(aligned(other, logits) - logits).max() >= 0.4


def test_a_death_is_not_remembered_as_an_answer():
    dying = liars.Dies(requests=1)
    lived = lane(dying)
    for _ in range(2):
        with pytest.raises(ReferenceFailedError):
            lived.forced(CASE)
    dying.left = 10
    assert lived.forced(CASE).ids


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (liars.ids_of_another_answer, ReferenceFailedError, "evaluated other ids"),
        (liars.token_that_does_not_exist, ReferenceFailedError, "token 1000000000"),
        (
            lambda _, s: replace(s, taps={("q", 99): s.logits}),
            ReferenceFailedError,
            "q of layer 99, which the model does not have",
        ),
        (liars.narrow_logits, ShapeMismatchError, r"\[6, 512\], theirs \[6, 511\]"),
        (liars.zero_rows, ShapeMismatchError, r"\[6, 512\], theirs \[0, 512\]"),
        (
            lambda _, s: Observation(ids=s.ids[:-1], logits=s.logits, generated=s.generated[:-1]),
            ReferenceFailedError,
            "evaluated other ids",
        ),
        (
            lambda _, s: Observation(ids=s.ids, logits=s.logits.reshape(-1), generated=s.generated),
            ShapeMismatchError,
            r"theirs \[3072\]",
        ),
    ],
)
def test_an_answer_to_another_question_is_no_answer(change, error, message):
    with pytest.raises(error, match=message):
        lane(liars.Liar(change=change)).ask(Request(ids=IDS, n_greedy=3))


def test_the_oracle_follows_the_lanes_numerics():
    plain, floats = lane(liars.Liar()), lane(liars.Liar(), activation="none", kv="f16")
    assert plain.oracle() is plain.oracle() is plain.integer_oracle()
    assert floats.oracle().info.numerics["activation"] == "none"
    assert floats.oracle().info.numerics["kv"] == "f16"
    assert floats.integer_oracle().info.numerics["activation"] == "int8_token"
    assert floats.integer_oracle() is floats.integer_oracle()
    assert plain.oracle_key == "oracle · liar"


def test_a_histogram_counts_what_is_finite_by_its_share():
    values = np.array([[1.0, -1.0, 0.2, 0.0], [np.nan, np.inf, 1e-9, -3.0]], np.float32)
    counts = histogram(values, 1.0)
    assert (len(counts), sum(counts)) == (BINS, 6)
    assert (counts[0], counts[-1], counts[-2], counts[BINS // 2]) == (2, 1, 1, 2)
    assert histogram(np.zeros((2, 3), np.float32), 0.0)[BINS // 2] == 6
