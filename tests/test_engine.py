"""The engine behind the runner protocol: the same computation however it is asked, and locks that cannot harm it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import golden_models
import numpy as np
import pytest

from bitnet.errors import ModelFileError, UsageError
from bitnet.kernels.row_tiles import as_rows
from crossval.engine import PROJECTIONS, EngineRunner, source_digest
from crossval.metrics import ShapeMismatchError
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, Request, Runner, tap_order

IDS = (1, 45, 300, 7, 7, 19)


@pytest.fixture(scope="module")
def engine():
    return EngineRunner(Path(golden_models.model("b158_a")), n_threads=2)


def test_it_is_a_runner_that_says_who_it_is(engine):
    assert isinstance(engine, Runner)
    info = engine.info
    assert (info.name, info.family, info.obtained) == ("bitnet", "bitnet", "live")
    assert info.library_sha256 == source_digest()
    assert len(info.library_sha256) == 64
    assert info.model_sha256 == Oracle(golden_models.model("b158_a")).info.model_sha256
    assert info.detail["threads"] == "2"
    engine.close()
    engine.close()


def test_nothing_is_computed_from_a_file_that_was_written_to(tmp_path):
    path = Path(shutil.copy(golden_models.model("b158_a"), tmp_path / "m.gguf"))
    engine = EngineRunner(path)
    engine.run(Request(ids=IDS))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="changed after it was opened"):
        engine.run(Request(ids=IDS))


@pytest.mark.parametrize("n_batch", [None, 1, 4, 6, 100])
def test_the_same_bits_in_any_batch(engine, n_batch):
    whole = engine.run(Request(ids=IDS, taps=True))
    seen = engine.run(Request(ids=IDS, n_batch=n_batch, taps=True))
    assert np.array_equal(seen.logits, whole.logits)
    assert list(seen.taps) == list(whole.taps)
    assert all(np.array_equal(seen.taps[key], whole.taps[key]) for key in whole.taps)


def test_taps_are_those_of_the_protocol(engine):
    seen = engine.run(Request(ids=IDS, taps=True))
    assert list(seen.taps) == tap_order(engine.model.config.n_layer)
    assert all(value.shape == (len(IDS), engine._width(tap)) for (tap, _), value in seen.taps.items())
    assert all(value.dtype == np.float32 for value in seen.taps.values())
    assert np.array_equal(seen.taps["result_output", -1], seen.logits)
    assert engine.run(Request(ids=IDS)).taps == {}


def test_greedy_continuation_is_the_teacher_forced_one(engine):
    free = engine.run(Request(ids=IDS, n_greedy=4))
    assert free.ids == (*IDS, *free.generated)
    assert free.logits.shape == (len(IDS) + 3, engine.model.config.n_vocab)
    forced = engine.run(Request(ids=free.ids[:-1], n_batch=len(IDS)))
    assert np.array_equal(forced.logits, free.logits)
    assert tuple(forced.logits[len(IDS) - 1 :].argmax(axis=1)) == free.generated
    assert free.seconds["prefill"] > 0 < free.seconds["decode"]


def test_a_lock_replaces_a_value_after_it_was_recorded(engine):
    free = engine.run(Request(ids=IDS, taps=True))
    locked = free.taps["ffn_inp", 1] + np.float32(1)
    for n_batch in (None, 1, 4):
        seen = engine.run(Request(ids=IDS, taps=True, n_batch=n_batch, lock={("ffn_inp", 1): locked}))
        assert np.array_equal(seen.taps["ffn_inp", 1], free.taps["ffn_inp", 1])
        assert np.array_equal(seen.taps["l_out", 1], locked + seen.taps["ffn_down", 1])


@pytest.mark.parametrize("shape", [(5, 256), (6, 255), (6, 0), (0, 256), (1, 6, 256), (6,)])
def test_a_lock_of_another_shape_is_refused_before_anything_runs(engine, shape):
    """A kernel would read past its end; and a pass broken off in the middle would be in the ledger by half."""
    passes = engine.model.network.backend.ledger.passes
    calls = [tally.calls for _, tally in engine.model.network.backend.ledger]
    with pytest.raises(ShapeMismatchError, match=r"q_rope of layer 2: ours has shape \[6, 256\], theirs \["):
        engine.run(Request(ids=IDS, lock={("q_rope", 2): np.ones(shape, np.float32)}))
    assert engine.model.network.backend.ledger.passes == passes
    assert [tally.calls for _, tally in engine.model.network.backend.ledger] == calls


def test_a_lock_of_another_type_or_layout_is_copied(engine):
    free = engine.run(Request(ids=IDS, taps=True))
    value = np.asfortranarray(free.taps["attn_norm", 0].astype(np.float64))
    assert np.array_equal(engine.run(Request(ids=IDS, lock={("attn_norm", 0): value})).logits, free.logits)


@pytest.mark.parametrize("ids", [(), (512,), (-1,)])
def test_ids_that_do_not_exist(engine, ids):
    with pytest.raises(UsageError):
        engine.run(Request(ids=ids))


def test_weights_are_decoded_with_their_own_scale(engine):
    oracle = Oracle(golden_models.model("b158_a"))
    for name in ("blk.0.attn_q.weight", "token_embd.weight", "output_norm.weight"):
        assert np.array_equal(engine.weights(name), oracle.weights(name).reshape(engine.weights(name).shape)), name


def test_integer_sums_are_the_oracles(engine):
    oracle = Oracle(golden_models.model("b158_a"))
    taps = engine.run(Request(ids=IDS, taps=True)).taps
    for tap, (_, sources) in PROJECTIONS.items():
        x = next(taps[s, 1] for s in sources if (s, 1) in taps)
        assert np.array_equal(engine.integer_sums(tap, 1, x), oracle.integer_sums(tap, 1, x)), tap


def test_one_flipped_trit_shows_in_the_integer_sums(engine):
    wrong = EngineRunner(Path(golden_models.model("b158_a")), n_threads=1)
    layer = wrong.model.weights.layers[1]
    codes = layer.up.codes.copy()
    codes[3, 10] ^= 0b01
    up = wrong.model.network.backend.pack(replace(layer.up, tiles=as_rows(codes)))
    changed = replace(layer, up=up)
    wrong.model.weights = replace(wrong.model.weights, layers=(wrong.model.weights.layers[0], changed))
    x = engine.run(Request(ids=IDS, taps=True)).taps["ffn_norm", 1]
    a, b = engine.integer_sums("ffn_up", 1, x), wrong.integer_sums("ffn_up", 1, x)
    assert set(np.flatnonzero((a != b).any(axis=0))) == {3}


def test_dense_weights_have_no_integer_sums(tmp_path):
    dense = EngineRunner(Path(golden_models.retyped("b158_a", tmp_path / "f32.gguf", "F32")), n_threads=1)
    assert dense.integer_sums("q", 0, np.ones((1, 256), np.float32)) is None


def test_without_a_tokenizer(tmp_path):
    from bitnet.gguf import TensorData, read, write

    source = read(golden_models.model("b158_a"))
    keep = {k: (source.types[k], v) for k, v in source.metadata.items() if not k.startswith("tokenizer.")}
    tensors = [
        TensorData(name=n, shape=i.shape, type=i.type, data=source.raw(n).copy()) for n, i in source.tensors.items()
    ]
    write(tmp_path / "mute.gguf", keep, tensors)
    with pytest.raises(ReferenceUnavailableError):
        EngineRunner(tmp_path / "mute.gguf", n_threads=1).tokenize("a")
