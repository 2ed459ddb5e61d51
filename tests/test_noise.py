"""The noise floor is the contract's own, and neither side of a lane has a say in it."""

from __future__ import annotations

import inspect

import golden_models
import numpy as np
import pytest

from crossval import lane as lane_module
from crossval import noise as noise_module
from crossval.noise import Jittered, Noise, jittered, one_ulp
from reference.oracle import Oracle
from reference.runner import Request

IDS = (1, 45, 300, 7, 7, 19, 254, 0, 88)


@pytest.fixture(scope="module")
def oracle():
    return Oracle(golden_models.model("b158_a"))


def test_one_unit_in_the_last_place():
    value = np.array([[1.0, -3.5, 0.0, 1e30]], np.float32)
    moved = one_ulp(value, np.random.default_rng(1))
    assert moved.dtype == np.float32
    assert (moved != value).all()
    assert (np.abs(moved - value) <= np.spacing(np.abs(value))).all()
    many = one_ulp(np.ones((1, 1000), np.float32), np.random.default_rng(1))
    assert 400 < (many > 1).sum() < 600


def test_a_perturbed_oracle_shares_the_weights_and_leaves_the_other_as_it_was(oracle):
    before = oracle.run(Request(ids=IDS)).logits
    other = jittered(oracle, 1)
    assert isinstance(other, Jittered)
    assert other._weights is oracle._weights
    moved = other.run(Request(ids=IDS)).logits
    assert not np.array_equal(moved, before)
    assert np.array_equal(oracle.run(Request(ids=IDS)).logits, before)
    assert np.array_equal(jittered(oracle, 1).run(Request(ids=IDS)).logits, moved)
    assert not np.array_equal(jittered(oracle, 2).run(Request(ids=IDS)).logits, moved)


def test_only_what_float32_leaves_open_is_moved(oracle):
    """On the same inputs, exact integer products, norms and sums stay as they are."""
    taps = oracle.run(Request(ids=IDS, taps=True)).taps
    moved = jittered(oracle, 1).run(Request(ids=IDS, taps=True, lock=taps)).taps
    changed = {tap for tap, layer in taps if not np.array_equal(taps[tap, layer], moved[tap, layer])}
    assert changed == {"q_rope", "k_rope", "kqv_out", "ffn_act"}
    floats = Oracle(golden_models.model("b158_a"), numerics={"activation": "none"})
    taps = floats.run(Request(ids=IDS, taps=True)).taps
    moved = jittered(floats, 1).run(Request(ids=IDS, taps=True, lock=taps)).taps
    assert {tap for tap, layer in taps if not np.array_equal(taps[tap, layer], moved[tap, layer])} == changed | {
        *("q", "k", "v", "attn_out", "ffn_gate", "ffn_up", "ffn_down")
    }
    for key in taps:
        assert np.abs(taps[key] - moved[key]).max() <= 2e-7 * np.abs(taps[key]).max()  # one unit of the largest


def test_what_is_measured(oracle):
    noise = Noise()
    floor = noise.measure(oracle, IDS)
    assert floor.shape == (len(IDS),)
    assert len(noise.rel_l2) == len(noise_module.SEEDS)
    assert 0.0 < noise.median <= noise.largest == floor.max()
    assert noise.running == 0.0  # too few positions
    assert noise.margin > 0.0
    assert noise.mean_nll > 0.0
    again = Noise()
    assert np.array_equal(again.measure(oracle, IDS), floor)


def test_one_token_has_no_likelihood(oracle):
    noise = Noise()
    noise.measure(oracle, (5,), (1,))
    assert noise.mean_nll == 0.0


def test_nothing_measured_is_no_noise():
    assert (Noise().median, Noise().running, Noise().largest, Noise().margin, Noise().mean_nll) == (0.0,) * 5


def test_by_hand():
    noise = Noise()
    a, b = np.array([[3, 4], [0, 1]], np.float32), np.array([[3, 4], [0, 2]], np.float32)
    assert noise.add(b, a, (0, 1)).tolist() == [0.0, 1.0]
    assert (noise.median, noise.largest, noise.margin) == (0.5, 1.0, 2.0)


def test_the_engine_and_the_reference_are_not_asked():
    """A broken one is noisy, and would excuse itself."""
    assert "crossval.engine" not in inspect.getsource(noise_module)
    [measured] = [line for line in inspect.getsource(lane_module).splitlines() if "noise.measure(" in line]
    assert "noise.measure(self.oracle(), ids" in measured
