"""Records of what ran: digests of the bits, trials that notice a change, a ledger that was counted."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import golden_models
import numpy as np
import pytest

from crossval import evidence
from crossval.case import Case
from crossval.engine import EngineRunner
from crossval.metrics import logits_digest
from receipts import ids_digest
from reference.oracle import Oracle
from reference.runner import Observation, Request

CASE = Case(name="c", ids=(1, 45, 300, 7), n_greedy=3)
MODEL = Path(golden_models.model("b158_a"))


@pytest.fixture(scope="module")
def engine():
    return EngineRunner(MODEL, n_threads=1)


def test_a_model(engine):
    record = evidence.model_record("m", engine.model)
    assert record.sha256 == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert record.bytes == MODEL.stat().st_size
    assert record.tensor_types["I2_S"] == 7 * record.hyper_parameters.n_layer == 21
    assert (record.arch, record.activation) == ("bitnet-b1.58", "relu2")
    assert record.weights_sha256 == engine.model.weights.digest()


def test_a_tokenizer_and_none(engine, monkeypatch):
    record = evidence.tokenizer_record("m", engine.model)
    assert (record.kind, record.source) == ("bpe", "embedded")
    assert record.n_vocab <= engine.model.config.n_vocab
    other = EngineRunner(MODEL, n_threads=1).model
    other.gguf.metadata = {**other.gguf.metadata, "tokenizer.ggml.bos_token_id": 3}
    assert evidence.tokenizer_record("m", other).sha256 != record.sha256
    bare = EngineRunner(MODEL, n_threads=1).model
    bare.gguf.metadata = {k: v for k, v in bare.gguf.metadata.items() if not k.startswith("tokenizer.")}
    assert evidence.tokenizer_record("m", bare) is None


def test_the_ledger_is_what_was_counted():
    fresh = EngineRunner(MODEL, n_threads=1)
    assert evidence.ledger_record("m", fresh.model).tokens == 0
    fresh.run(Request(ids=CASE.ids, n_batch=2))
    record = evidence.ledger_record("m", fresh.model)
    assert (record.tokens, record.passes, record.head_rows) == (4, 3, 4)
    c = fresh.model.config
    projections = [entry for entry in record.entries if entry.role == "projection"]
    assert sum(entry.calls for entry in projections) == 3 * 7 * c.n_layer
    width = c.n_head * c.head_dim + 2 * c.n_head_kv * c.head_dim + c.n_embd + 2 * c.n_ff + c.n_embd
    assert sum(entry.rows for entry in projections) == 4 * c.n_layer * width
    assert {entry.kernel for entry in record.entries} == {"cpu.ternary_int8_token.int8_token", "cpu.dense.none"}


def test_a_case(engine):
    record = evidence.case_record("m", engine, CASE)
    seen = engine.run(Request(ids=CASE.ids, n_greedy=3))
    assert record.generated_ids == seen.generated
    assert record.ids_sha256 == ids_digest(seen.ids)
    assert record.logits_sha256 == logits_digest(seen.logits)
    [top] = record.top_k
    assert top.position == 3
    assert top.ids[0] == seen.generated[0]
    assert list(top.logits) == sorted(top.logits, reverse=True)


class Walked:
    """What a lane knows of its tokens."""

    plan = type("Plan", (), {"name": "a lane"})
    cases = (CASE,)

    def __init__(self, original, choices):
        self.original, self.choices = original, choices


def test_tokens_of_both_sides(engine):
    rows = evidence.token_rows(Walked(engine, {CASE.name: ((300, 301), (300, 5))}))
    assert [row["id"] for row in rows] == [*CASE.ids, 300, 301]
    assert [row["ours"] for row in rows] == [*(None for _ in CASE.ids), 300, 5]
    assert [row["position"] for row in rows] == list(range(len(CASE.ids) + 2))
    text = engine.model.tokenizer.decode([300], continuation=True)
    assert rows[-2]["text"] == rows[-2]["ours_text"] == text
    assert rows[0]["ours_text"] == ""
    prompt = evidence.token_rows(Walked(engine, {}))
    assert [row["id"] for row in prompt] == list(CASE.ids)


def test_tokens_without_a_tokenizer_have_no_text():
    bare = EngineRunner(MODEL, n_threads=1)
    bare.model.gguf.metadata = {k: v for k, v in bare.model.gguf.metadata.items() if not k.startswith("tokenizer.")}
    assert {row["text"] for row in evidence.token_rows(Walked(bare, {}))} == {""}


def test_the_same_bits_on_other_threads_in_other_batches_and_again(engine):
    trials = evidence.determinism_trials(engine, CASE, lambda n: EngineRunner(MODEL, n_threads=n))
    assert [(t.what, t.settings, t.equal) for t in trials] == [
        ("threads", ("1", "2", "3"), True),
        ("repeat", ("run 1", "run 2"), True),
        ("batch", ("4 together", "2 together", "1 together"), True),
    ]
    assert len({run.logits_sha256 for run in (*trials[0].runs, *trials[1].runs)}) == 1


class Restless(EngineRunner):
    """One bit of one logit changes from run to run."""

    calls = 0

    def run(self, request: Request) -> Observation:
        seen = super().run(request)
        Restless.calls += 1
        logits = seen.logits.copy()
        logits.view(np.uint32)[-1, -1] ^= Restless.calls & 1
        return replace(seen, logits=logits)


def test_one_bit_that_changes_is_noticed():
    trials = evidence.determinism_trials(Restless(MODEL, n_threads=1), CASE, lambda n: Restless(MODEL, n_threads=n))
    assert [trial.equal for trial in trials] == [False, False, False]


def test_one_token_has_one_batch(engine):
    trials = evidence.determinism_trials(engine, Case(name="c", ids=(5,), n_greedy=1), lambda _: engine)
    assert [trial.what for trial in trials] == ["threads", "repeat"]


class Timed(Oracle):
    """A reference that says how many threads it has."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.info = replace(self.info, detail={"threads": "2"})


def test_speed_is_measured_at_equal_threads_and_can_be_derived_again(monkeypatch):
    monkeypatch.setattr(evidence, "TIMED_PREFILL", 6)
    monkeypatch.setattr(evidence, "TIMED_DECODE", 2)
    engine = EngineRunner(MODEL, n_threads=1)
    rows = evidence.speed("m", engine, Timed(str(MODEL)), "peer", CASE.ids, repeats=3)
    assert [(row.engine, row.what, row.threads, row.tokens, row.n) for row in rows] == [
        ("bitnet", "prefill", 2, 6, 3),
        ("bitnet", "decode", 2, 2, 3),
        ("peer", "prefill", 2, 6, 3),
        ("peer", "decode", 2, 2, 3),
    ]
    for row in rows:
        assert row.tokens_per_second == sorted(row.tokens / s for s in row.seconds)[1]
    assert engine.model.network.backend.n_threads == 1


def test_accuracy_by_kernel(engine):
    engine.run(Request(ids=CASE.ids))
    rows = [
        {"tap": "q", "layer": 0, "ratio": 1e-7, "compared": 10},
        {"tap": "ffn_down", "layer": 1, "ratio": 3e-7, "compared": 5},
        {"tap": "ffn_act", "layer": 1, "ratio": 1.0, "compared": 5},
    ]
    [record] = evidence.accuracy_records(engine, rows)
    assert (record.weight_type, record.measured, record.compared, record.passed) == ("I2_S", 3e-7, 15, True)
    assert record.kernel == "cpu.ternary_int8_token.int8_token"
    for bad in (2e-6, float("inf")):
        [record] = evidence.accuracy_records(engine, [*rows, {"tap": "k", "layer": 0, "ratio": bad, "compared": 1}])
        assert not record.passed
    [record] = evidence.accuracy_records(engine, [{"tap": "q", "layer": 0, "ratio": 0.0, "compared": 0}])
    assert not record.passed
    assert evidence.accuracy_records(engine, []) == []
