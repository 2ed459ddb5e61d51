"""Tokens against a reference in plain Python; ties, NaN and infinity; the same seed, the same token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import BitNetError
from bitnet.generation_config import GenerationConfig
from bitnet.sampler import distribution, greedy, sample

NAN, INF = np.nan, np.inf
LOGITS = st.lists(st.sampled_from([-3.0, 0.0, 0.5, 2.0]) | st.floats(-30, 30, width=32), min_size=1, max_size=40)
CONFIGS = st.builds(
    GenerationConfig,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 1.0),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
)


def f32(values):
    return np.array(values, np.float32)


class Draws:
    """A generator that draws what it is told; with nothing told it must not be asked."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def naive_distribution(scores, config):
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ranked = ranked[: config.top_k] if config.top_k else ranked
    weights = [math.exp((scores[i] - scores[ranked[0]]) / config.temperature) for i in ranked]
    total = math.fsum(weights)
    kept, mass = [], 0.0
    for i, w in zip(ranked, weights, strict=True):
        kept.append((i, w / total))
        mass += w / total
        if mass >= config.top_p < 1.0:
            break
    total = math.fsum(p for _, p in kept)
    return [(i, p / total) for i, p in kept if p > 0]


def naive_sample(logits, seen, config, draw):
    scores = [float(v) for v in logits]
    for i in set(seen):
        scores[i] = scores[i] / config.repetition_penalty if scores[i] > 0 else scores[i] * config.repetition_penalty
    ids, mass = [], 0.0
    for i, p in naive_distribution(scores, config):
        ids.append(i)
        mass += p
        if draw < mass:
            break
    return ids[-1]


# --- greedy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "token"),
    [([1, 3, 2], 1), ([3, 1, 3], 0), ([NAN, -5, NAN], 1), ([-INF, -1e30, -INF], 1), ([0.0, -0.0], 0), ([-7], 0)],
)
def test_the_largest_wins_ties_go_to_the_lowest_id_and_nan_never(logits, token):
    assert greedy(f32(logits)) == token
    assert sample(f32(logits), (), GenerationConfig(), Draws()) == token  # temperature 0 draws nothing


@pytest.mark.parametrize(
    ("logits", "what"),
    [
        ([NAN, NAN], "no logit is a finite number"),
        ([-INF, NAN], "no logit is a finite number"),
        ([0, INF], "a logit is infinite"),
        ([], "no logit"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_finite_best_logit_there_is_no_token(logits, what, temperature):
    with pytest.raises(BitNetError, match=what):
        greedy(f32(logits))
    with pytest.raises(BitNetError, match=what):
        sample(f32(logits), (), GenerationConfig(temperature=temperature), Draws(0.5))


def test_the_logits_stay_as_they_were():
    logits = f32([1, NAN, 2])
    before = logits.copy()
    sample(logits, (0, 2), GenerationConfig(temperature=1.0, repetition_penalty=2.0), Draws(0.5))
    assert np.array_equal(logits, before, equal_nan=True)


# --- what is left to draw from -------------------------------------------------------------------------------------


@given(LOGITS, CONFIGS)
def test_the_distribution_is_that_of_the_reference(logits, config):
    scores = np.array(f32(logits), np.float64)
    ids, probs = distribution(scores, config)
    expected = naive_distribution(list(scores), config)
    assert ids.tolist() == [i for i, _ in expected]
    # sums of at most 40 float64 terms in another order, twice
    assert np.abs(probs - [p for _, p in expected]).max() <= 100 * 2.0**-53


@given(LOGITS, CONFIGS, st.floats(0, 1, exclude_max=True), st.lists(st.integers(0, 39), max_size=5))
def test_the_token_is_that_of_the_reference(logits, config, draw, seen):
    logits, seen = f32(logits), [i % len(logits) for i in seen]
    assert sample(logits, seen, config, Draws(draw)) == naive_sample(logits, seen, config, draw)


def test_the_reference_tells_a_sampler_without_penalty_top_k_or_temperature():
    logits, draws = f32([2.0, 1.9, -1.0, 0.5]), np.linspace(0, 0.999, 50)
    full = {"temperature": 2.0, "top_k": 3, "repetition_penalty": 3.0}
    for missing in ({"temperature": 1.0}, {"top_k": 0}, {"repetition_penalty": 1.0}, {"top_p": 0.5}):
        liar = GenerationConfig(**{**full, **missing})
        ours = [sample(logits, (0, 2), liar, Draws(d)) for d in draws]
        assert ours != [naive_sample(logits, (0, 2), GenerationConfig(**full), d) for d in draws]


def test_tokens_come_as_often_as_their_probability():
    """An even grid of draws stands for all of them: counts are off by less than one step of the grid."""
    probs = np.array([0.5, 0.25, 0.15, 0.1])
    config = GenerationConfig(temperature=1.0)
    chosen = [sample(f32(np.log(probs)), (), config, Draws((i + 0.5) / 1000)) for i in range(1000)]
    assert np.abs(np.bincount(chosen, minlength=4) - 1000 * probs).max() <= 1


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    scores = np.log(np.array([0.5, 0.25, 0.125, 0.125]))

    def kept(p):
        return distribution(scores, GenerationConfig(temperature=1.0, top_p=p))[0].tolist()

    assert kept(0.1) == [0]
    assert kept(0.49) == [0]
    assert kept(0.51) == [0, 1]
    assert kept(0.74) == [0, 1]
    assert kept(0.8) == [0, 1, 2]
    assert kept(1.0) == [0, 1, 2, 3]
    assert kept(math.nextafter(1.0, 0.0)) in ([0, 1, 2], [0, 1, 2, 3])


def test_ties_at_the_border_of_top_k_go_to_the_lowest_ids():
    ids, probs = distribution(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), GenerationConfig(temperature=1.0, top_k=3))
    assert ids.tolist() == [1, 3, 0]
    assert probs[0] == probs[1] > probs[2]


def test_nan_and_minus_infinity_are_never_drawn():
    logits = f32([NAN, 0.0, -INF, 0.0])
    drawn = {sample(logits, (), GenerationConfig(temperature=5.0), Draws(d)) for d in np.linspace(0, 0.9999, 99)}
    assert drawn == {1, 3}


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e30])
def test_extreme_temperatures(temperature):
    drawn = [sample(f32([1, 5, 4]), (), GenerationConfig(temperature=temperature), Draws(d)) for d in (0.0, 0.5, 0.99)]
    assert drawn == ([1, 1, 1] if temperature < 1 else [1, 2, 0])


# --- repetition penalty and seeds ----------------------------------------------------------------------------------


def test_the_penalty_lowers_what_was_seen_whatever_its_sign_and_once():
    config = GenerationConfig(repetition_penalty=2.0)
    assert sample(f32([3, 2]), (0,), config, Draws()) == 1
    assert sample(f32([3, 2]), (), config, Draws()) == 0
    assert sample(f32([-1, -1.5]), (0,), config, Draws()) == 1
    assert sample(f32([3, 1]), (0, 0, 0, 0), config, Draws()) == 0  # once, not once a repetition
    assert sample(f32([2, 3]), (0,), GenerationConfig(repetition_penalty=0.5), Draws()) == 0


@pytest.mark.parametrize("penalty", [1e308, 5e-324])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_absurd_penalty_still_gives_a_token(penalty, temperature):
    config = GenerationConfig(repetition_penalty=penalty, temperature=temperature)
    assert sample(f32([9, -9, 1, NAN]), (0, 1, 3), config, Draws(0.5)) == (2 if penalty > 1 else 0)
    assert sample(f32([-9, -8]), (0, 1), config, Draws(0.5)) in (0, 1)


def test_a_seed_gives_the_same_tokens_and_another_seed_others():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def tokens(seed):
        rng = np.random.default_rng(seed)
        return [sample(logits, (), GenerationConfig(temperature=1.0), rng) for _ in range(20)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
