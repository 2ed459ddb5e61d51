"""Smallest cases: no token can be left out, and what is left still shows the defect."""

from __future__ import annotations

import golden_models
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossval.minimise import ddmin, minimise
from crossval.mutants import Mutant
from reference.oracle import Oracle
from reference.runner import ReferenceFailedError, Request
from reference.semantics import Semantics

IDS = (1, 45, 300, 7, 7, 19, 254, 0, 88, 410)


@given(st.sets(st.integers(0, 30), min_size=1, max_size=4), st.integers(31, 40))
def test_what_is_needed_is_kept_and_nothing_else(needed, length):
    found = ddmin(range(length), lambda rest: needed <= set(rest))
    assert set(found) == needed
    assert list(found) == sorted(found)


def test_one_item_is_small_enough():
    assert ddmin((5,), lambda _: True) == (5,)


@pytest.fixture(scope="module")
def oracle():
    return Oracle(golden_models.model("b158_a"))


@pytest.mark.parametrize(
    ("changes", "tap", "length"),
    [
        ({"activation": "silu"}, "ffn_act", 1),
        ({"rope_style": "interleaved"}, "q_rope", 2),  # the first position is not rotated
        ({"causal": False}, "kqv_out", 2),
        ({"batch_rows": 4}, "ffn_up", 5),
    ],
)
def test_a_defect_needs_only_so_many_tokens(oracle, changes, tap, length):
    odd = Mutant.of(oracle.under(Semantics(**changes)), 1)
    found = minimise(odd, oracle, IDS, (tap, 1), n_batch=len(IDS))
    assert len(found.ids) == length
    assert found.finding.key == (tap, 0)  # the earliest layer that shows it
    assert found.n_batch is None
    assert found.tried < 60


def test_what_is_right_has_no_smallest_case(oracle):
    with pytest.raises(ValueError, match="is not wrong on these 10 tokens"):
        minimise(Mutant.of(oracle, 1), oracle, IDS, ("ffn_act", 0))


def test_a_crash_is_another_fault(oracle):
    class Dies(Mutant):
        def run(self, request: Request):
            if len(request.ids) < 6:
                raise ReferenceFailedError("killed by signal 11")
            return super().run(request)

    found = minimise(Dies.of(oracle.under(Semantics(activation="silu")), 1), oracle, IDS, ("ffn_act", 0))
    assert len(found.ids) == 6
