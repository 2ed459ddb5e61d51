"""Every bit of the recorded logits is explained: nothing but the order of float32 sums separates it from the oracle."""

from __future__ import annotations

import platform

import golden_models
import numpy as np
import pytest

from reference import ggml_order
from reference.oracle import Oracle
from reference.recorded import BITNET_CPP_NUMERICS
from reference.runner import Request

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64",
    reason="the recording took sine and cosine from glibc's fused multiply-add variant on x86-64",
)


def unequal(name, prompts):
    """(values that differ, values compared) over both recorded evaluations of these prompts."""
    recorded = golden_models.recorded(name)
    engine = ggml_order.GgmlOrder(golden_models.model(name), numerics=BITNET_CPP_NUMERICS)
    differing = compared = 0
    for prompt in recorded.prompts()[prompts]:
        for n_batch in (len(prompt.prompt_ids), 1):
            request = Request(ids=prompt.ids, n_batch=n_batch)
            ours, theirs = engine.run(request).logits, recorded.run(request).logits
            differing, compared = differing + int((ours != theirs).sum()), compared + ours.size
    return differing, compared


@pytest.mark.parametrize("name", ["b158_a", "llama_tied"])
def test_recorded_logits_are_reproduced_to_the_bit(name):
    assert unequal(name, slice(0, 1)) == (0, 2 * 35 * 512)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_models.NAMES)
def test_all_recorded_logits_are_reproduced_to_the_bit(name):
    n_vocab = 640 if name == "b158_hd128" else 512
    assert unequal(name, slice(None)) == (0, 2 * (35 + 40 + 45 + 72) * n_vocab)


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_every_recorded_node_is_reproduced_to_the_bit(name):
    recorded = golden_models.recorded(name)
    [prompt] = [p for p in recorded.prompts() if p.taps]
    request = Request(ids=prompt.prompt_ids, taps=True)
    theirs = recorded.run(request).taps
    ours = ggml_order.GgmlOrder(golden_models.model(name), numerics=BITNET_CPP_NUMERICS).run(request).taps
    assert [key for key in theirs if not np.array_equal(ours[key], theirs[key])] == []


def test_the_free_oracle_is_near_but_not_equal():
    """The bits above are the order's doing, not a comparison that always passes."""
    recorded = golden_models.recorded("b158_a")
    request = Request(ids=recorded.prompts()[0].prompt_ids)
    free = Oracle(golden_models.model("b158_a"), numerics=BITNET_CPP_NUMERICS)
    assert not np.array_equal(free.run(request).logits, recorded.run(request).logits)


def test_dot_products_are_sums_in_an_order():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((50, 160)).astype(np.float16).astype(np.float32) for _ in range(2))
    exact = (a.astype(np.float64) * b).sum(axis=-1)
    for dot in (ggml_order.dot_f16, ggml_order.dot_batch):
        # 160 additions, each rounded to 2⁻²⁴ of a partial sum that stays below the sum of magnitudes
        assert (np.abs(dot(a, b) - exact) <= 160 * 2.0**-24 * np.abs(a * b).sum(axis=-1)).all()
    assert not np.array_equal(ggml_order.dot_f16(a, b), ggml_order.dot_batch(a, b))


def test_the_exponential_is_good_to_the_last_place():
    x = np.linspace(-80, 0, 10_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(ggml_order.exp(x) / exact - 1).max() <= 2.0**-22  # two units in the last place
    assert ggml_order.exp(np.array([0.0, -np.inf], np.float32)).tolist() == [1.0, 0.0]


def test_it_is_not_taken_for_the_engine_it_models():
    info = ggml_order.GgmlOrder(golden_models.model("b158_a")).info
    plain = Oracle(golden_models.model("b158_a")).info
    assert info.name != "bitnet.cpp"
    assert info.family == plain.family  # one witness, not two
    assert info.library_sha256 != plain.library_sha256
