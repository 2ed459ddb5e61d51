"""All layers in one call: the bits of the graph, whatever the threads, the batch and the chunks."""

from itertools import pairwise

import golden_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitnet
from bitnet import compiled
from bitnet.cache import KVCache
from bitnet.cache_pool import KVPool
from bitnet.compiled import AheadOfTime
from bitnet.config import BITNET_CPP, Numerics
from bitnet.kernels.variants import VARIANTS, runs_here
from bitnet.model import keep

MODELS = {
    "sub-norms": golden_models.model("b158_a"),
    "wide heads": golden_models.model("b158_hd128"),
    "silu": golden_models.model("bitnet_silu"),
    "llama": golden_models.model("llama_tied"),
}
NUMERICS = {"own": Numerics(), "f16 cache": Numerics(kv="f16"), "bitnet.cpp": BITNET_CPP}
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 500, 150)]


def watched(name, layer, value):
    """Anything but `keep` has the layers run one by one."""
    return value


def chunks(network, borders, tap):
    cache = network.new_cache(len(IDS))
    edges = [0, *borders, len(IDS)]
    return np.concatenate([network.forward(IDS[a:b], cache, tap=tap) for a, b in pairwise(edges)])


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_bits_of_the_graph(name, numerics, n_threads):
    network = bitnet.load(MODELS[name], numerics=NUMERICS[numerics], n_threads=n_threads).network
    assert network.compiled is not None
    borders = [70, 71, 72, 75, 140]
    assert np.array_equal(chunks(network, borders, keep), chunks(network, borders, watched))


@pytest.mark.slow  # each is compiled
@pytest.mark.parametrize("isa", [v.id for v in VARIANTS.values() if runs_here(v)])
def test_every_kernel_gives_the_same_bits(isa):
    expected = bitnet.load(MODELS["sub-norms"]).logits(IDS)
    assert np.array_equal(bitnet.load(MODELS["sub-norms"], isa=isa).logits(IDS), expected)


@pytest.fixture(scope="module")
def network():
    return bitnet.load(MODELS["sub-norms"], n_threads=2).network


@given(borders=st.sets(st.integers(1, len(IDS) - 1), max_size=12))
@settings(max_examples=25)
def test_any_chunks(network, borders):
    assert np.array_equal(chunks(network, sorted(borders), keep), chunks(network, [], keep))


@pytest.mark.parametrize("n_sequence", [2, 5, 8])
def test_sequences_together_and_alone(network, n_sequence):
    """Each at another position of another text, in one pool."""
    pool = KVPool(network.config, network.numerics, 64)
    together = [KVCache(pool, 200) for _ in range(n_sequence)]
    alone = [KVCache(pool, 200) for _ in range(n_sequence)]
    rng = np.random.default_rng(n_sequence)
    for step in range(3):
        ids = [[int(t) for t in rng.integers(0, 500, 1 + (i + step) % 4 * 20)] for i in range(n_sequence)]
        found = network.forward_batch(list(zip(ids, together, strict=True)))
        for i in range(n_sequence):
            assert np.array_equal(found[i], network.forward(ids[i], alone[i]))


def test_the_ledger_counts_the_same(network):
    ledger, counted = network.backend.ledger, []
    for tap in (keep, watched):
        before = ledger.snapshot()
        network.forward(IDS[:5], network.new_cache(5), tap=tap)
        counted.append(ledger.since(before))
    assert counted[0] == counted[1]


def test_largest_logits_are_those_of_the_whole_head(network):
    cache, other = network.new_cache(40), network.new_cache(40)
    counts = [[1, 5, None], [3, 3, 3], [1], [700]]
    for i, wanted in enumerate(counts):
        ids = IDS[4 * i : 4 * i + 4]
        (found,) = network.forward_top([(ids, cache)], [wanted])
        logits = network.forward(ids, other)[-len(wanted) :]
        for candidates, row, k in zip(found, logits, wanted, strict=True):
            if candidates.ids is None:
                assert np.array_equal(candidates.logits, row)
                continue
            best = np.lexsort((np.arange(len(row)), -row))[:k]
            assert np.array_equal(candidates.ids, best)
            assert np.array_equal(candidates.logits, row[best])


def test_weights_of_another_kind_go_through_the_graph():
    assert bitnet.load(MODELS["sub-norms"], device="plain").network.compiled is None
    assert bitnet.load(MODELS["sub-norms"], numerics=Numerics(activation="q8_k")).network.compiled is None
    assert bitnet.load("fixtures/models/tiny-silu.f32.gguf", numerics=Numerics()).network.compiled is None


def test_two_callers_at_once(network):
    from concurrent.futures import ThreadPoolExecutor

    expected = network.forward(IDS, network.new_cache(len(IDS)))
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(lambda: network.forward(IDS, network.new_cache(len(IDS)))) for _ in range(8)]
        assert all(np.array_equal(done.result(60), expected) for done in made)


@pytest.mark.parametrize("numerics", NUMERICS)
def test_what_is_compiled_ahead_is_what_is_called(numerics):
    from bitnet.kernels import graph  # numba

    model = bitnet.load(MODELS["sub-norms"], numerics=NUMERICS[numerics], compile_ahead=True)
    ahead = AheadOfTime(model.weights, model.network.backend, NUMERICS[numerics])
    ahead.start()
    ahead.join()
    types = set(graph.layers.signatures)
    assert types
    for ids in (IDS[:1], IDS[:5], IDS[:20], IDS):
        model.logits(ids)
    assert set(graph.layers.signatures) == types


@pytest.mark.parametrize("change", [{"device": "plain"}, {"numerics": Numerics(activation="none")}])
def test_nothing_is_compiled_for_what_is_not_called(change):
    model = bitnet.load(MODELS["sub-norms"], **change)
    ahead = AheadOfTime(model.weights, model.network.backend, model.network.numerics)
    ahead.start()
    ahead.join()
    assert model.network.compiled is None
    assert ahead._thread is None


def test_what_goes_wrong_ahead_is_told_where_it_is_needed(monkeypatch):
    model = bitnet.load(MODELS["sub-norms"])

    def fails(*_):
        raise RuntimeError("no memory for the compiler")

    monkeypatch.setattr(compiled, "_pass_of_nothing", fails)
    ahead = AheadOfTime(model.weights, model.network.backend, model.network.numerics)
    ahead.start()
    ahead.join()
    assert np.isfinite(model.logits(IDS[:3])).all()
