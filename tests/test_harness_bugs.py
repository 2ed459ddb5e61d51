"""Bugs of comparison harnesses, each tried here and refused: a harness that passes everything passes nothing."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest
from liars import Liar

import crossval.envelope
from crossval.attribute import explain
from crossval.metrics import difference, kl_divergence, relative_l2
from crossval.mutants import Mutant
from crossval.replay import Replay
from crossval.vote import Witness, independent, vote
from receipts.lanes import lane_outcome
from receipts.record import Rung
from receipts.verify import verify
from reference.oracle import Oracle
from reference.runner import Request
from reference.semantics import CONTRACT, Semantics

ROOT = Path(__file__).parents[1]
BAD = ROOT / "fixtures" / "receipts" / "invalid"
IDS = (1, 45, 300, 7, 7, 19)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 2)
    monkeypatch.setattr("crossval.run.cause_of", lambda *_, **__: None)


def refused(name):
    """Rules that a bad receipt of the fixtures breaks."""
    report = verify(BAD / name)
    assert not report.valid
    return {check.name for check in report.failures}


def test_a_comparison_of_zero_rows_passes(tmp_path):
    assert difference(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32)).compared == 0
    lane = liars.climb(Liar(change=liars.zero_rows), tmp_path)
    assert lane.outcome == "fail"
    nothing = Rung(name="operations", outcome="inconclusive", why="nothing was compared")
    assert lane_outcome([nothing]) == "inconclusive"
    assert vote("operations", {n: Witness(family=n, said=n) for n in "abc"}, lambda *_: False).odd is None


def test_nan_passes(tmp_path):
    nan, one = np.full((1, 3), np.nan, np.float32), np.ones((1, 3), np.float32)
    for ours, theirs in ((nan, one), (one, nan), (nan, nan)):
        assert not crossval.envelope.LOCKED_OPERATION.holds(difference(ours, theirs).ratio)
        assert not crossval.envelope.SAME_CHOICE.holds(float(relative_l2(ours, theirs).max()))
        assert np.isinf(kl_divergence(ours, theirs)).all()
    assert not crossval.envelope.LOCKED_OPERATION.holds(float("nan"))
    assert liars.climb(Liar(change=liars.nan), tmp_path).outcome == "fail"


def test_both_lanes_load_the_same_library(tmp_path):
    lane = liars.climb(Liar(info={"family": "bitnet"}), tmp_path)
    assert liars.first_fault(lane) == ("identity", "fail")
    same = {n: Witness(family=n, library_sha256="one and the same", said=0) for n in ("a", "b")}
    assert independent(same) == ["a"]


def test_token_parity_that_compares_lengths(tmp_path):
    lane = liars.climb(liars.OtherIds(), tmp_path)
    assert liars.first_fault(lane) == ("tokens", "fail")


def test_a_cosine_that_is_a_constant(tmp_path):
    """Every measure answers to what it is given: a direction that cosine cannot tell apart is told apart."""
    base = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    longer = base * np.float32(1.5)  # cosine 1
    assert difference(longer, base).ratio == pytest.approx(0.5, rel=1e-5)
    assert relative_l2(longer, base) == pytest.approx(0.5, rel=1e-5)
    errors = [float(relative_l2(base + np.float32(e), base).max()) for e in (0.0, 0.01, 0.1, 1.0)]
    assert errors == sorted(set(errors))
    lane = liars.climb(Liar(semantics=Semantics(logit_scale=1.5)), tmp_path)
    assert lane.located.tap == "result_output"


def test_kernel_names_written_as_literals():
    """Evidence is written from the ledger: no module of the comparison spells a kernel's name."""
    names = re.compile(r"i2_s_\w*(avx|neon|gemm|gemv)|_(avx2|avx512|neon)\b")
    for folder in ("crossval", "receipts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            assert not [s for s in strings if isinstance(s, str) and names.search(s)], path
    assert refused("kernel-mock.json")
    assert refused("kernel-of-another-type.json")


def test_a_receipt_written_by_hand_in_ci():
    for name in (
        "compute-path-literal.json",
        "test-results-invented.json",
        "parity-invented.json",
        "rate-invented.json",
    ):
        assert refused(name), name


def test_a_reference_that_crashed_counted_as_agreement(tmp_path):
    for requests in (0, 4):
        lane = liars.climb(liars.Dies(requests=requests), tmp_path)
        assert lane.outcome == "error"
        assert not any(rung.outcome == "pass" for rung in lane.rungs[lane.rungs.index(_error(lane)) :])
    dead = {"a": Witness(family="a"), "b": Witness(family="b", said=0.0), "c": Witness(family="c", said=0.0)}
    assert vote("logits", dead, lambda x, y: x == y).witnesses["a"] == "absent"


def _error(lane):
    return next(rung for rung in lane.rungs if rung.outcome == "error")


def test_a_threshold_in_the_documentation_that_the_code_does_not_use():
    """Every limit that a page states next to the name of its metric is a limit of `envelope`."""
    limits = {e.limit for e in vars(crossval.envelope).values() if isinstance(e, crossval.envelope.Envelope)}
    limits |= {e.limit for e in crossval.envelope.QUANTISED_PRODUCT.values()}
    stated = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        stated += re.findall(r"(\d(?:\.\d+)?e-\d+)\s*[×·]\s*max", page.read_text("utf-8"))
    assert {float(s) for s in stated} <= limits
    receipt = json.loads((ROOT / "fixtures" / "receipts" / "valid" / "full.json").read_text())
    rungs = [rung for lane in receipt["lanes"] for rung in lane["rungs"] if rung["name"] == "operations"]
    assert {rung["limit"] for rung in rungs if rung["limit"] is not None} <= limits


def test_the_oracle_edited_until_it_agrees():
    """Recorded outputs of other people's engines contradict an oracle that agrees with a wrong one."""
    recorded = golden_models.recorded("b158_a")
    prompt = next(p for p in recorded.prompts() if len(p.prompt_ids) > 1)
    theirs = recorded.run(Request(ids=prompt.prompt_ids)).logits
    right = Oracle(golden_models.model("b158_a"), numerics=recorded.info.numerics)
    edited = right.under(Semantics(activation="silu"))
    error = [
        float(np.median(relative_l2(o.run(Request(ids=prompt.prompt_ids)).logits, theirs))) for o in (right, edited)
    ]
    assert error[0] < 1e-2 < 0.1 < error[1]
    assert right.info.library_sha256 == Oracle(golden_models.model("b158_a")).info.library_sha256
    assert "silu" in str(Oracle(golden_models.model("b158_a"), semantics=Semantics(activation="silu")).info.detail)
    assert CONTRACT.changes() == {}


def test_a_search_that_names_something_whatever_it_is_shown():
    """An honest engine, and noise that no hypothesis makes, have no cause."""
    oracle = Oracle(golden_models.model("b158_a"))
    honest = Mutant.of(oracle, 3).run(Request(ids=IDS, taps=True)).taps
    assert explain(Replay(oracle, IDS, honest)).best is None
    rng = np.random.default_rng(1)
    noisy = {k: (v + rng.standard_normal(v.shape)).astype(np.float32) for k, v in honest.items()}
    assert not explain(Replay(oracle, IDS, honest, noisy), budget=2.0).named


def test_a_gate_that_a_failed_lane_does_not_shut(tmp_path):
    lane = liars.climb(Liar(semantics=Semantics(activation="silu")), tmp_path)
    assert replace(lane, required=True).outcome == "fail"
