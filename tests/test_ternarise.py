"""Quantisers: BitNet's absmean, idempotent on its own result, and honest about what is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.codecs import CODECS, Ternary, Tile, codecs, ternarise
from bitnet.codecs.ternarise import ternarisation_error
from bitnet.errors import UsageError
from bitnet.gguf import GGMLType

TILES = {(t, 64, 256): Tile(32, 96 if t is GGMLType.TL2 else 64, 32) for t in (GGMLType.TL1, GGMLType.TL2)}
TERNARY = [t for t, c in CODECS.items() if c.ternary]
repeatable = settings(max_examples=40, deadline=None, derandomize=True)


def dense(seed=0, shape=(64, 256)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def matrices(draw):
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 40)))
    values = dense(draw(st.integers(0, 2**32)), shape) * np.float32(draw(st.sampled_from([1e-6, 0.02, 1.0, 300.0])))
    return np.sign(values) * np.float32(0.3) if draw(st.booleans()) else values


def test_absmean_is_bitnets_own():
    w = dense()
    found = ternarise(w)
    scale = np.abs(w.astype(np.float64)).mean()
    assert found.scale == np.float32(scale)
    np.testing.assert_array_equal(found.trits, np.clip(np.rint(w / np.float32(scale)), -1, 1))


@repeatable
@given(w=matrices(), how=st.sampled_from(["absmean", "exact"]))
def test_ternary_weights_are_kept_so_twice_is_once(w, how):
    once = ternarise(w)
    assert set(np.unique(once.trits)) <= {-1, 0, 1}
    twice = ternarise(once.dense(), how)
    np.testing.assert_array_equal(twice.trits, once.trits)
    assert twice.scale == once.scale or not once.trits.any()
    assert ternarisation_error(once.dense(), twice) == 0
    assert ternarisation_error(w, once) >= 0


def test_doing_absmean_again_would_shrink_the_scale():
    """What the exception for ternary weights prevents: relative L2 of about 0.4 on a third of zeros."""
    once = ternarise(dense())
    weights = once.dense()
    again = np.abs(weights).mean()
    assert again < 0.75 * once.scale
    assert ternarisation_error(weights, Ternary(trits=once.trits, scale=float(again))) > 0.05


def test_what_is_lost_of_normal_weights_is_a_quarter():
    w = dense(shape=(256, 1024))
    # 1 − 4·s·φ(s/2) + 2·s²·(1 − Φ(s/2)) = 0.2635 for s = E|w| = √(2/π); 262,144 weights come within 0.005 of it.
    assert ternarisation_error(w, ternarise(w)) == pytest.approx(0.2635, abs=0.005)


@pytest.mark.parametrize("type_", TERNARY, ids=lambda t: t.name)
def test_every_packer_takes_the_result_and_gives_it_back(type_):
    once = ternarise(dense())
    beside = type_ in (GGMLType.TQ1_0, GGMLType.TQ2_0)  # float16 block scales would round it
    scale = 1.0 if beside else once.scale
    codec = codecs(tiles=TILES)[type_]
    raw = codec.encode(Ternary(trits=once.trits, scale=scale))
    weights = codec.decode(raw, once.trits.shape)
    np.testing.assert_array_equal(weights, once.trits * np.float32(scale))
    again = ternarise(weights, "exact")
    np.testing.assert_array_equal(codec.encode(Ternary(trits=again.trits, scale=again.scale)), raw)


def test_the_smallest_scale_is_bitnets():
    w = np.float32([[1e-9, -3e-9, 0.0]])
    found = ternarise(w)
    assert found.scale == np.float32(1e-5)
    assert not found.trits.any()
    zeros = ternarise(np.zeros((2, 3), np.float32))
    assert zeros.scale == 0
    assert ternarisation_error(np.zeros((2, 3), np.float32), zeros) == 0


def test_what_is_no_ternary_matrix():
    with pytest.raises(UsageError, match="more than one magnitude"):
        ternarise(dense(), "exact")
    with pytest.raises(UsageError, match="NaN or infinity"):
        ternarise(np.float32([[np.nan]]))
    with pytest.raises(UsageError, match="how is 'absmax'"):
        ternarise(dense(), "absmax")
