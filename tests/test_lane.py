"""What the rungs share: one evaluation of a case, answers that are checked, an oracle in the lane's numerics."""

from __future__ import annotations

import liars
import numpy as np
import pytest

from bitnet.config import Numerics
from crossval.case import Case
from crossval.engine import EngineRunner
from crossval.lane import Lane
from crossval.metrics import ShapeMismatchError, histogram
from receipts.tables import BINS
from reference.runner import Observation, ReferenceFailedError, Request

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
