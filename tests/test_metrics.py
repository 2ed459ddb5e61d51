"""A call's cost adds up from its phases and its passes."""

from __future__ import annotations

import json
import time

import pytest

from bitnet.kernels.ledger import KernelUse
from bitnet.metrics import Meter

PROJECTION = KernelUse(kernel="cpu.ternary.int8", role="projection", weight_type="I2_S", isa="avx2")
HEAD = KernelUse(kernel="cpu.dense.none", role="head", weight_type="F16", isa="avx2")


def test_phases_and_passes_add_up():
    meter = Meter(prompt_tokens=7, cached_tokens=3, prefill_tokens=4, decode_tokens=2)
    with meter.phase("prefill"):
        time.sleep(0.01)
    with meter.phase("prefill"):
        time.sleep(0.01)
    with pytest.raises(ValueError), meter.phase("decode"):
        raise ValueError  # time is time
    meter.add_seconds("decode", 0.5)
    meter.add_pass(1, {PROJECTION: (7, 70, 700), HEAD: (1, 10, 100)})
    meter.add_pass(3, {PROJECTION: (7, 70, 700)})
    metrics = meter.finish(load_seconds=1.5, threads=2)
    assert 0.02 <= metrics.prefill_seconds < 5
    assert 0.5 <= metrics.decode_seconds < 0.6
    assert (metrics.tokenise_seconds, metrics.load_seconds, metrics.threads, metrics.batch) == (0.0, 1.5, 2, 3)
    assert [(k.kernel, k.role, k.calls, k.rows, k.bytes) for k in metrics.kernels] == [
        ("cpu.dense.none", "head", 1, 10, 100),
        ("cpu.ternary.int8", "projection", 14, 140, 1400),
    ]
    assert metrics.prefill_rate == 4 / metrics.prefill_seconds
    assert metrics.decode_rate == 2 / metrics.decode_seconds
    assert 1e6 < metrics.memory_bytes < 1e12
    assert 1e6 < metrics.peak_memory_bytes < 1e12


def test_nothing_done_has_no_rate():
    metrics = Meter().finish(load_seconds=0.0, threads=1)
    assert (metrics.prefill_rate, metrics.decode_rate, metrics.kernels) == (0.0, 0.0, ())


def test_for_programs_and_for_readers():
    meter = Meter(prompt_tokens=7, cached_tokens=3, prefill_tokens=4, decode_tokens=2)
    meter.add_pass(2, {HEAD: (1, 10, 100)})
    metrics = meter.finish(load_seconds=0.0, threads=1)
    plain = json.loads(json.dumps(metrics.to_dict()))
    assert plain["kernels"][0]["weight_type"] == "F16"
    assert plain["decode_rate"] == metrics.decode_rate
    page = metrics._repr_html_()
    assert "7 tokens, 3 from the cache" in page
    assert "up to 2 together" in page
