"""The fields older readers look for follow from the evidence, and only from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.receipts import sample
from receipts import summary
from receipts.evidence import LedgerEntry


def with_kernel(kernel, isa="avx2"):
    part = sample.minimal().ledger[0]
    return [replace(part, entries=(replace(part.entries[0], kernel=kernel, isa=isa),))]


def test_an_old_reader_accepts_it():
    data = sample.full().to_dict()
    assert data["compute_path"] == "real"
    assert data["kernels"]
    assert not any("mock" in name for name in data["kernels"])
    assert data["schema_version"] == "1.0.0"
    assert data["backend"] == "cpu"
    assert data["deterministic"] is True
    for part in ("environment", "model_info", "test_results", "performance_baseline", "parity"):
        assert isinstance(data[part], dict)
    assert data["corrections"] == []


def test_nothing_that_ran_is_no_compute_path():
    assert summary.compute_path([]) == "none"
    assert summary.compute_path([replace(sample.minimal().ledger[0], tokens=0)]) == "none"
    assert summary.compute_path([replace(sample.minimal().ledger[0], entries=())]) == "none"
    assert summary.compute_path(sample.minimal().ledger) == "real"


@pytest.mark.parametrize("kernel", ["i2s_mock", "MockGemm", "cpu.stub.none", "fake", "cpu.placeholder", "noop"])
def test_a_kernel_that_computes_nothing_is_no_compute_path(kernel):
    assert summary.compute_path(with_kernel(kernel)) == "none"


@pytest.mark.parametrize("kernel", ["cpu.ternary_int8_token.int8_token", "rms_norm", "ship", "asm_vnni", "noopt_q8"])
def test_honest_names_are_not_mistaken(kernel):
    assert summary.compute_path(with_kernel(kernel)) == "real"
    assert summary.backend(with_kernel(kernel)) == "cpu"


@pytest.mark.parametrize(
    ("kernel", "isa"), [("cuda.ternary", "sm_90"), ("x", "sm90"), ("cupy_gemm", "x"), ("a.HIP", "x")]
)
def test_a_gpu_is_recognised(kernel, isa):
    assert summary.backend(with_kernel(kernel, isa)) == "cuda"


def test_no_ledger_is_no_backend():
    assert summary.backend([]) == "none"


def test_deterministic_needs_two_equal_runs():
    receipt = sample.minimal()
    one = replace(receipt.determinism[0], runs=receipt.determinism[0].runs[:1])
    other = replace(receipt.determinism[0].runs[1], logits_sha256=sample.sha("other"))
    unequal = replace(receipt.determinism[0], runs=(receipt.determinism[0].runs[0], other))
    for runs, expected in (((), False), ((one,), False), ((unequal,), False), (receipt.determinism, True)):
        assert summary.summary((), (), (), runs, ())["deterministic"] is expected


def test_rungs_and_lanes_are_counted():
    receipt = sample.full()
    assert receipt.test_results.to_dict() == {
        "total": 32,
        "passed": 17,
        "failed": 1,
        "errors": 0,
        "unsupported": 11,
        "inconclusive": 3,
    }
    assert receipt.parity.to_dict() == {
        "status": "ok",
        "lanes": 4,
        "required": 3,
        "passed": 2,
        "deviations": 1,
        "failed": 0,
    }
    assert sample.gate_failed().parity.status == "failed"


def test_no_required_lane_is_inconclusive():
    lane = replace(sample.minimal().lanes[0], required=False)
    assert summary.count_lanes([lane]).status == "inconclusive"


def test_baseline_is_the_engines_first_decode():
    found = sample.minimal().performance_baseline
    assert found.tokens_generated == 24
    assert found.tokens_per_second == 20.0
    assert found.total_time_ms == pytest.approx(1150)
    assert summary.baseline([]).tokens_per_second == 0


def test_kernels_are_named_once():
    part = sample.minimal().ledger[0]
    twice = [part, replace(part, model="other")]
    kernels = summary.summary((), twice, (), (), ())["kernels"]
    assert kernels == ("cpu.dense_f16.none", "cpu.ternary_int8_token.int8_token")
    assert isinstance(part.entries[0], LedgerEntry)
