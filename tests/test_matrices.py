"""Weights held one layer at a time: what is held, how often it is decoded, and that memory does not grow with depth."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter

import liars
import numpy as np
import pytest
from liars import Liar

import reference.matrices
from bitnet.synthetic import Shape, make
from crossval.lane import Lane
from crossval.run import Run
from receipts.record import RUNGS
from reference.oracle import Oracle
from reference.runner import Request

IDS = (5, 6, 7)


@pytest.fixture
def large(monkeypatch):
    """Every model counts as one of billions of weights."""
    monkeypatch.setattr("crossval.plan.LARGE_MODEL", 0)


def held(oracle: Oracle) -> set[str]:
    """Layers whose decoded weights are in memory."""
    return {key[0].split(".")[1] for key in oracle._weights._cache if key[0].startswith("blk.")}


def climbed(folder) -> tuple[Run, list[set[str]], Counter[str]]:
    """One lane of an honest reference, what the lane's oracle held at every sign of progress, and what was decoded."""
    seen: list[set[str]] = []
    decoded: Counter[str] = Counter()
    lanes: list[Lane] = []

    def counted(gguf, name, semantics, **options):
        decoded[name] += 1
        return DECODE(gguf, name, semantics, **options)

    def say(_: str) -> None:
        seen.extend(held(lane._oracle) for lane in lanes if hasattr(lane, "_oracle"))

    run = Run(liars.options(folder), say)
    opened, name = run.open(liars.plan(Liar))
    lanes.append(opened)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference.matrices, "decode", counted)
        run._climb(opened, name)
    return run, seen, decoded


DECODE = reference.matrices.decode


@pytest.mark.usefixtures("large")
def test_a_lane_of_a_large_model_holds_one_layer_at_a_time(tmp_path):
    _, seen, decoded = climbed(tmp_path)
    assert len(seen) > 10
    assert any(seen)
    assert all(len(layers) <= 1 for layers in seen)
    # two requests of operations and two evaluations for the noise floor; the head is held
    assert max(decoded[name] for name in decoded if name.startswith("blk.")) <= 4
    assert decoded["token_embd.weight"] == 1


def test_one_layer_at_a_time_or_all_the_lane_says_the_same(tmp_path, monkeypatch):
    whole, *_ = climbed(tmp_path / "whole")
    monkeypatch.setattr("crossval.plan.LARGE_MODEL", 0)
    monkeypatch.setattr("crossval.run.N_GREEDY_LARGE", 24)
    thin, seen, _ = climbed(tmp_path / "thin")
    assert all(len(layers) <= 1 for layers in seen)
    assert thin.evidence.operations  # of a large model one prompt is run: its rows are the same
    every = {(row["case"], row["tap"], row["layer"]): row for row in whole.evidence.operations}
    assert all(every[row["case"], row["tap"], row["layer"]] == row for row in thin.evidence.operations)


def test_a_thin_oracle_computes_what_a_whole_one_does(tmp_path, monkeypatch):
    path = make(tmp_path / "m.gguf", Shape(n_layer=3, n_embd=128, n_ff=256, n_head=2, n_head_kv=1, n_vocab=300))
    request = Request(ids=IDS, n_greedy=2, taps=True)
    released = []
    monkeypatch.setattr("bitnet.gguf.release_pages", released.append)
    whole, thin = (Oracle(str(path), n_layer_kept=kept).run(request) for kept in (None, 1))
    assert len(released) == 3 + 3 - 1  # with each layer of two evaluations that makes room for another
    assert whole.generated == thin.generated
    assert whole.taps.keys() == thin.taps.keys()
    assert all(np.array_equal(whole.taps[key], thin.taps[key]) for key in whole.taps)


def peak(folder, n_layer: int, kept: int | None) -> int:
    """Bytes at most allocated by an evaluation, above what an open oracle has."""
    shape = Shape(n_layer=n_layer, n_embd=256, n_ff=1024, n_head=4, n_head_kv=2, n_vocab=300)
    path = make(folder / f"{n_layer}.gguf", shape)
    gc.collect()
    tracemalloc.start()
    try:
        Oracle(str(path), n_layer_kept=kept).run(Request(ids=IDS))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_peak_does_not_grow_with_the_number_of_layers(tmp_path):
    one_layer = 8 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 1024 * 256)  # bytes, as float64
    shallow, deep = (peak(tmp_path, n_layer, 1) for n_layer in (2, 12))
    assert deep - shallow < one_layer / 4  # names, hyper-parameters, the keys and values of three tokens
    assert peak(tmp_path, 12, None) > shallow + 8 * one_layer


def test_a_head_of_float16_is_not_copied(tmp_path, monkeypatch):
    """It is a view of the file, and rows of it are widened as they are multiplied."""
    shape = Shape(n_layer=1, n_embd=128, n_ff=128, n_head=2, n_head_kv=1, n_vocab=40_000)
    path = make(tmp_path / "m.gguf", shape)
    plain = Oracle(str(path)).run(Request(ids=IDS)).logits
    monkeypatch.setattr("reference.oracle._WIDE_LIMIT", 0)
    monkeypatch.setattr("reference.decode._ROWS_AT_ONCE", 1000)
    tracemalloc.start()
    try:
        logits = Oracle(str(path), n_layer_kept=1).run(Request(ids=IDS)).logits
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 40_000 * 128 * 4  # the head alone, as float32
    np.testing.assert_allclose(logits, plain, rtol=1e-6)  # sums of float64 in blocks of other sizes


@pytest.mark.usefixtures("large")
def test_every_rung_is_climbed_so(tmp_path):
    lane = liars.climb(Liar(), tmp_path)
    assert [rung.outcome for rung in lane.rungs] == ["pass"] * len(RUNGS)
