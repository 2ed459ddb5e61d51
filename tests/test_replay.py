"""One operation at a time: the same values as the whole pass on locked inputs, and decades that mean what they say."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest

from crossval.replay import FLOOR, MOST, Replay, decades
from reference.oracle import Oracle
from reference.runner import Request
from reference.semantics import Semantics

IDS = (508, 17, 301, 44, 44, 255, 9)


@pytest.fixture(scope="module")
def oracle():
    return Oracle(golden_models.model("b158_a"))


@pytest.mark.parametrize("n_batch", [None, 1, 4])
@pytest.mark.parametrize("semantics", [Semantics(), Semantics(activation_scale="tensor"), Semantics(batch_rows=2)])
def test_it_is_the_locked_pass(oracle, n_batch, semantics):
    variant = oracle.under(semantics)
    taps = oracle.run(Request(ids=IDS, n_batch=n_batch, taps=True)).taps
    locked = variant.run(Request(ids=IDS, n_batch=n_batch, taps=True, lock=taps)).taps
    replay = Replay(oracle, IDS, taps, n_batch=n_batch)
    assert replay.keys == list(taps)
    for key in replay.keys:
        assert np.array_equal(replay.operation(key, variant), locked[key]), key


def test_what_was_not_shown_is_computed_from_what_was(oracle):
    taps = oracle.run(Request(ids=IDS, taps=True)).taps
    some = {key: value for key, value in taps.items() if key[0] in ("embd", "ffn_inp", "l_out")}
    replay = Replay(oracle, IDS, some)
    for key in replay.keys:
        assert np.array_equal(replay.operation(key, oracle), taps[key])
    touched = list(replay.touched(frozenset(("q_rope",)), oracle))
    assert ("ffn_inp", 0) in touched
    assert ("embd", -1) not in touched


def test_decades():
    value = np.ones((4, 8), np.float32)
    assert decades(value, value) == 0.0
    assert decades(value * np.float32(1 + 1e-7), value) == 0.0  # inside the envelope
    assert decades(value * np.float32(1.1), value) == pytest.approx(np.log10(0.1 / FLOOR), abs=1e-3)
    assert decades(value[:2], value) == MOST
    broken = value.copy()
    broken[0, 0] = np.nan
    assert decades(value, broken) == MOST
    assert decades(broken, broken) == 0.0
    assert decades(value, np.zeros_like(value)) == MOST


def test_one_flipped_rounding_does_not_hide_that_the_rest_agrees():
    rng = np.random.default_rng(1)
    value = rng.standard_normal((16, 64)).astype(np.float32)
    flipped = value.copy()
    flipped[3, 5] += 0.01
    everywhere = value * np.float32(1.01)
    assert decades(flipped, value) < 0.5 < 4.0 < decades(everywhere, value)
