"""The forward pass: the same bits however it is cut, taps that see and replace, and errors that change nothing."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import golden_models
import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from model_edits import edited

import bitnet
from bitnet import linear
from bitnet.cache import KVCache
from bitnet.cache_pool import PAGE, KVPool
from bitnet.codecs import CODECS
from bitnet.config import BITNET_CPP, Numerics
from bitnet.errors import ModelFileError, ResourceLimitError, UsageError
from bitnet.gguf import GGMLType, TensorData, read
from bitnet.linear import Backend, DenseMatrix
from bitnet.model import network
from crossval.envelope import LOCKED_OPERATION
from crossval.metrics import difference
from reference.runner import tap_order

IDS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)
NUMERICS = (
    Numerics(),
    Numerics(kv="f16", query="f16", probs="f16"),
    Numerics(activation="q8_k"),
    Numerics(activation="none", rope="f32_iterated"),
)
#: Models and numerics; q8_k takes rows of a multiple of 256, which two of the models do not have.
PAIRS = [
    pytest.param(name, n, id=f"{name}-{n.activation}-{n.kv}")
    for name in golden_models.NAMES
    for n in NUMERICS
    if n.activation != "q8_k" or name in ("b158_a", "llama_tied")
]


@pytest.fixture(scope="module")
def models():
    loaded = {}

    def load(name, numerics=NUMERICS[0], n_threads=1, device="cpu"):
        key = (name, numerics, n_threads, device)
        if key not in loaded:
            loaded[key] = bitnet.load(golden_models.model(name), numerics=numerics, n_threads=n_threads, device=device)
        return loaded[key]

    return load


def in_parts(net, borders):
    cache = net.new_cache(len(IDS))
    borders = sorted({0, *borders, len(IDS)})
    return np.concatenate([net.forward(IDS[a:b], cache) for a, b in pairwise(borders)])


def tapped(net, ids=IDS, **options):
    seen = {}

    def tap(name, layer, value):
        assert (name, layer) not in seen
        seen[name, layer] = value.copy()
        return value

    net.forward(ids, net.new_cache(len(ids)), tap=tap, **options)
    return seen


# --- the same bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "numerics"), PAIRS)
def test_a_batch_equals_one_token_at_a_time(models, name, numerics):
    net = models(name, numerics).network
    assert np.array_equal(in_parts(net, range(len(IDS))), in_parts(net, ()))


@given(borders=st.sets(st.integers(1, len(IDS) - 1)))
@settings(max_examples=25)
def test_any_cutting_of_a_prompt_gives_the_same_bits(models, borders):
    net = models("b158_a").network
    assert np.array_equal(in_parts(net, borders), models("b158_a").logits(IDS))


@pytest.mark.parametrize("numerics", NUMERICS, ids=lambda n: f"{n.activation}-{n.kv}")
def test_threads_change_no_bit(models, numerics, monkeypatch):
    monkeypatch.setattr(linear, "_MIN_SHARE", 1)
    one, two, three = (models("b158_a", numerics, n).logits(IDS) for n in (1, 2, 3))
    assert np.array_equal(one, two)
    assert np.array_equal(one, three)


def test_numerics_do_change_bits(models):
    logits = [models("b158_a", n).logits(IDS).tobytes() for n in NUMERICS]
    assert len(set(logits)) == len(NUMERICS)


def test_the_last_row_alone(models):
    net = models("b158_hd128").network
    before = net.backend.ledger.head_rows
    last = net.forward(IDS, net.new_cache(len(IDS)), last_only=True)
    assert np.array_equal(last, models("b158_hd128").logits(IDS)[-1:])
    assert net.backend.ledger.head_rows == before + 1 + len(IDS)


# --- batches of sequences, and pages -------------------------------------------------------------------------------

#: Sequences of a batch: a longer one, one over more than a page, a single token.
BATCH = (IDS, tuple(i * 7 % 500 for i in range(PAGE + 9)), (5,))
ROUNDINGS = (*NUMERICS, BITNET_CPP)  # the last rounds single tokens in another way


@pytest.mark.parametrize("numerics", ROUNDINGS, ids=lambda n: f"{n.activation}-{n.kv}-{n.probs}")
@pytest.mark.parametrize("last_only", [False, True])
def test_sequences_evaluated_together_have_the_bits_of_each_alone(models, numerics, last_only):
    net = models("b158_a", numerics).network
    alone, together = ([net.new_cache(len(ids) + 3) for ids in BATCH] for _ in range(2))
    ledger = net.backend.ledger
    for more in (BATCH, [(7,), (8,), (9,)], [(7,), (8, 3), (9,)]):
        expected = [net.forward(ids, cache, last_only=last_only) for ids, cache in zip(more, alone, strict=True)]
        passes, heads = ledger.passes, ledger.head_rows
        found = net.forward_batch(list(zip(more, together, strict=True)), last_only=last_only)
        assert (ledger.passes - passes, ledger.head_rows - heads) == (1, sum(map(len, found)))
        for ours, theirs in zip(found, expected, strict=True):
            assert np.array_equal(ours, theirs)
        for a, b in zip(alone, together, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a.gather(1), b.gather(1), strict=True))
        assert not np.array_equal(found[0][-1], expected[2][-1])


def test_a_batch_needs_a_cache_for_each(models):
    net = models("b158_a").network
    cache = net.new_cache(8)
    for batch in ([], [((1,), cache), ((2,), cache)]):
        with pytest.raises(UsageError, match="each with a cache of its own"):
            net.forward_batch(batch)
    assert cache.n_past == 0


@pytest.mark.parametrize("numerics", NUMERICS, ids=lambda n: f"{n.activation}-{n.kv}")
@pytest.mark.parametrize("first", [1, 50, PAGE])
def test_pages_of_another_sequence_give_the_same_bits(models, numerics, first):
    """However that one was evaluated, and wherever the pages lie."""
    net = models("b158_a", numerics).network
    ids = tuple(i * 11 % 500 for i in range(2 * PAGE + 20))
    pool = KVPool(net.config, net.numerics, 9)
    for other in ((1,) * 70, ids, ids[: PAGE + 3] + (2,) * 9):
        with KVCache(pool, 3 * PAGE) as cache:
            for part in (other[:first], other[first:]):
                net.forward(part, cache)
    cache = KVCache(pool, 3 * PAGE)
    n = cache.reuse(ids)
    assert n == 2 * PAGE
    found = net.forward(ids[n:], cache)
    assert np.array_equal(found, net.forward(ids, net.new_cache(len(ids)))[n:])
    pool.keys[1, cache.pages[0], 0, 3] += 1  # a page of something else
    cache.truncate(n)
    assert not np.array_equal(found, net.forward(ids[n:], cache))


def test_sliding_depends_on_positions_and_not_on_batches(models):
    net = models("b158_a").network
    ids = tuple(i * 13 % 500 for i in range(350))

    def slid(step):
        cache = KVCache(KVPool(net.config, net.numerics, 3), 3 * PAGE, context="slide")
        rows = []
        while len(rows) < len(ids):
            n = min(step, cache.make_room(), len(ids) - len(rows))
            rows.extend(net.forward(ids[len(rows) : len(rows) + n], cache))
        return rows

    rows, whole = slid(1), models("b158_a").logits(ids)
    assert np.array_equal(rows[: 3 * PAGE], whole[: 3 * PAGE])
    assert not np.array_equal(rows[3 * PAGE], whole[3 * PAGE])  # something is out of view
    assert np.array_equal(slid(30), rows)
    assert np.array_equal(slid(1000), rows)


def test_states_after_the_last_norm(models):
    net = models("b158_a").network
    before = net.backend.ledger.head_rows
    states = net.hidden(IDS, net.new_cache(len(IDS)))
    assert np.array_equal(states, tapped(net)["result_norm", -1])
    assert net.backend.ledger.head_rows == before + len(IDS)  # of `tapped` alone


# --- taps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_taps_come_in_the_order_and_shape_of_the_protocol(models, name):
    model = models(name)
    c, seen = model.config, tapped(model.network)
    expected = [key for key in tap_order(c.n_layer) if c.sub_norms or not key[0].endswith("sub_norm")]
    assert list(seen) == expected
    widths = {"q": c.n_q, "q_rope": c.n_q, "kqv_out": c.n_q, "attn_sub_norm": c.n_q, "result_output": c.n_vocab}
    widths |= {"k": c.n_kv, "k_rope": c.n_kv, "v": c.n_kv}
    widths |= dict.fromkeys(("ffn_gate", "ffn_up", "ffn_act", "ffn_sub_norm"), c.n_ff)
    assert all(v.shape == (len(IDS), widths.get(tap, c.n_embd)) for (tap, _), v in seen.items())
    assert all(v.dtype == np.float32 for v in seen.values())
    assert np.array_equal(seen["l_out", 0], seen["ffn_inp", 0] + seen["ffn_down", 0])
    assert np.array_equal(seen["result_output", -1], model.logits(IDS))


@pytest.mark.parametrize("name", ["b158_a", "llama_tied"])
def test_every_tap_can_be_replaced_and_everything_after_it_follows(models, name):
    net = models(name).network
    clean = tapped(net)
    keys = list(clean)
    for i, key in enumerate(keys):
        after = {}

        def tap(tap_name, layer, value, key=key, after=after):
            if (tap_name, layer) == key:
                return np.ascontiguousarray(value[::-1]) + np.float32(1)
            after[tap_name, layer] = value
            return value

        net.forward(IDS, net.new_cache(len(IDS)), tap=tap)
        for earlier in keys[:i]:
            assert np.array_equal(after[earlier], clean[earlier])
        if key != ("result_output", -1):
            assert not np.array_equal(after["result_output", -1], clean["result_output", -1]), key


def test_replacing_the_embedding_is_giving_other_tokens(models):
    net = models("b158_a").network
    other = tuple(reversed(IDS))
    logits = net.forward(
        IDS, net.new_cache(len(IDS)), tap=lambda name, _, value: net.embed(other) if name == "embd" else value
    )
    assert np.array_equal(logits, models("b158_a").logits(other))


def test_the_cache_holds_what_the_taps_say(models):
    net = models("b158_a", NUMERICS[1]).network
    cache = net.new_cache(16)
    seen = {}
    net.forward(IDS, cache, tap=lambda name, il, value: seen.setdefault((name, il), value))
    for stored, store, tap in zip(cache.gather(1), (cache.keys, cache.values), ("k_rope", "v"), strict=True):
        heads = seen[tap, 1].reshape(len(IDS), net.config.n_head_kv, -1).transpose(1, 0, 2)
        assert np.array_equal(stored.view(np.float16), heads.astype(np.float16))
        assert not store[1, cache.pages[0], :, len(IDS) :].any()
    assert cache.n_past == len(IDS)


@pytest.mark.parametrize(("name", "numerics"), PAIRS)
def test_the_plain_device_agrees_operation_by_operation(models, name, numerics):
    """On the compiled kernels' own intermediates; end to end one flipped rounding would spread."""
    if numerics.probs == "f16":  # a probability between two halves may round either way
        numerics = Numerics(kv="f16", query="f16")
    expected = tapped(models(name, numerics).network)
    net = models(name, numerics, device="plain").network
    found = {}

    def tap(tap_name, layer, value):
        found[tap_name, layer] = difference(value, expected[tap_name, layer])
        return expected[tap_name, layer]

    net.forward(IDS, net.new_cache(len(IDS)), tap=tap)
    assert list(found) == list(expected)
    for key, one in found.items():
        assert LOCKED_OPERATION.holds(one.ratio), (key, one.ratio)
    liar = difference(expected["q", 0] * np.float32(1.00001), expected["q", 0])
    assert not LOCKED_OPERATION.holds(liar.ratio)


# --- the ledger ------------------------------------------------------------------------------------------------


def test_the_ledger_adds_up(models):
    model = bitnet.load(golden_models.model("b158_hd128"), n_threads=1)
    c, ledger = model.config, model.network.backend.ledger
    cache = model.network.new_cache(len(IDS))
    model.network.forward(IDS[:4], cache)
    model.network.forward(IDS[4:], cache, last_only=True)
    assert (ledger.passes, ledger.tokens, ledger.head_rows) == (2, len(IDS), 5)
    tallies = list(ledger)
    projections = [t for use, t in tallies if use.role == "projection"]
    heads = [t for use, t in tallies if use.role == "head"]
    assert sum(t.calls for t in projections) == 2 * 7 * c.n_layer
    per_token = c.n_q + 2 * c.n_kv + c.n_embd + 2 * c.n_ff + c.n_embd
    assert sum(t.rows for t in projections) == len(IDS) * c.n_layer * per_token
    assert sum(t.rows for t in heads) == 5 * c.n_vocab
    assert sum(t.bytes for _, t in tallies) == 2 * model.weights.n_bytes


# --- embeddings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_embeddings_of_every_type(tmp_path, kind):
    path = tiny_models.write(tmp_path / "m.gguf", weight_type="F32", head_type=kind)
    path = edited(path, tmp_path / "scaled.gguf", tensors={"token_embd.scale": [0.5]})
    gguf, model = read(path), bitnet.load(path, n_threads=1)
    name = "token_embd.weight"
    table = CODECS[gguf.tensors[name].type].decode(gguf.raw(name), gguf.tensors[name].shape)
    assert np.array_equal(model.network.embed([5, 0, 319, 5]), table[[5, 0, 319, 5]] * np.float32(0.5))


def test_an_embedding_without_rows_is_refused_when_it_is_loaded(tmp_path):
    name = "token_embd.weight"
    path = tiny_models.write(tmp_path / "m.gguf", weight_type="TQ2_0")
    trits = np.random.default_rng(0).integers(-1, 2, (320, 256))
    packed = CODECS[GGMLType.TQ2_0].encode(trits.astype(np.float32))
    table = TensorData(name=name, shape=(320, 256), type=GGMLType.TQ2_0, data=packed)
    with pytest.raises(ModelFileError, match="token embedding of type TQ2_0 is not supported"):
        bitnet.load(edited(path, tmp_path / "t.gguf", tensors={name: table}))


def test_numerics_that_rows_do_not_allow_are_refused(models):
    matrix = DenseMatrix(
        name="blk.0.attn_q.weight",
        type_name="F32",
        n_row=1,
        n_col=48,
        n_bytes=192,
        scale=np.float32(1),
        data=np.zeros((1, 48), np.float32),
    )
    weights = SimpleNamespace(embd=matrix, projections=lambda: [matrix])
    gguf = SimpleNamespace(path="m.gguf", release=lambda: None, check_unchanged=lambda: None)
    for activation, multiple in (("q8_k", 256), ("q8_0", 32)):
        with pytest.raises(UsageError, match=rf"{activation} needs rows of a multiple of {multiple}; blk.0.attn_q"):
            network(gguf, models("b158_a").config, weights, Backend("plain", 1), Numerics(activation=activation))
    network(gguf, models("b158_a").config, weights, Backend("plain", 1), Numerics(activation="int8_token"))


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ((), "no tokens"),
        ((0, -1), "-1 is outside the vocabulary of 512"),
        ((512,), "512 is outside"),
        ((2**70,), "whole numbers"),
        ((1.5,), "whole numbers"),
        (("a",), "whole numbers"),
        ((3, True), "whole numbers"),
        ((np.bool_(1),), "whole numbers"),
    ],
)
def test_what_are_no_tokens(models, ids, reason):
    with pytest.raises(UsageError, match=reason):
        models("b158_a").logits(ids)
    with pytest.raises(UsageError, match=reason):
        models("b158_a").network.embed(ids)


def test_a_full_context_leaves_the_cache_as_it_was(models):
    net = models("b158_a").network
    cache = net.new_cache(len(IDS))
    first = net.forward(IDS[:8], cache)
    keys = cache.keys.copy()
    with pytest.raises(ResourceLimitError, match=r"8 \+ 11 tokens exceed the context of 11"):
        net.forward(IDS, cache)
    assert cache.n_past == 8
    assert np.array_equal(cache.keys, keys)
    assert np.array_equal(np.concatenate([first, net.forward(IDS[8:], cache)]), models("b158_a").logits(IDS))


def test_the_default_context_is_the_trained_one(models):
    model = models("b158_a")
    assert model.network.new_cache().n_ctx == model.config.n_ctx


@pytest.mark.parametrize("device", ["cpu", "plain"])
@pytest.mark.parametrize("activation", ["int8_token", "q8_k", "none"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_value_that_is_not_finite_reaches_the_logits_of_its_token_and_those_after(models, device, activation, bad):
    net = models("b158_a", Numerics(activation=activation), device=device).network

    def spoil(name, layer, value):
        if (name, layer) == ("ffn_norm", 0):
            value = value.copy()
            value[6, 100] = bad
        return value

    logits = net.forward(IDS, net.new_cache(len(IDS)), tap=spoil)
    assert np.isnan(logits[6:]).all()
    assert np.array_equal(logits[:6], net.forward(IDS, net.new_cache(len(IDS)))[:6])
