"""Baselines: like is compared with like, noise fails nothing, and a real regression does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.receipts import sample
from receipts import write
from receipts.baseline import compare, machine_kind, ratios
from receipts.errors import SettingError
from receipts.interval import median_interval, rates
from receipts.policy import BaselineRules


def timed(seconds, peer=(0.5, 0.5, 0.5), **environment):
    """A receipt in which the engine and the oracle decode eight tokens in these times."""
    base = sample.minimal()

    def row(engine, times):
        first = sample.performance("tiny-relu2", "decode", 8, times, 0.0)
        low, high = median_interval(rates(8, times))
        middle = sorted(rates(8, times))[len(times) // 2]
        return replace(first, engine=engine, tokens_per_second=middle, interval=(low, high))

    rows = (row("bitnet", seconds), row("oracle", peer))
    changed = replace(base, performance=rows, environment=replace(base.environment, **environment))
    return sample.rebuilt(changed)


def compared(tmp_path, before, now, **rules):
    write(before, tmp_path / "before.json")
    return {row.name: row.held for row in compare(now, BaselineRules(files=(tmp_path / "before.json",), **rules))}


FAST, SLOW, NOISY = (0.25, 0.25, 0.26), (0.5, 0.5, 0.51), (0.25, 0.6, 0.7)


def test_speed_is_a_ratio_to_the_peer():
    assert ratios(timed((0.25, 0.25, 0.25)))["tiny-relu2", "decode", "oracle"] == (2.0, 2.0, 2.0)


def test_a_slower_engine_fails(tmp_path):
    assert compared(tmp_path, timed(FAST), timed(SLOW), speed=0.8)["speed.tiny-relu2.decode"] is False
    assert compared(tmp_path, timed(FAST), timed(FAST), speed=0.8)["speed.tiny-relu2.decode"] is True


def test_a_slower_or_noisy_machine_does_not(tmp_path):
    halved = timed((0.5, 0.5, 0.52), peer=(1.0, 1.0, 1.0))
    assert compared(tmp_path, timed(FAST), halved, speed=0.8)["speed.tiny-relu2.decode"] is True
    assert compared(tmp_path, timed(FAST), timed(NOISY), speed=0.8)["speed.tiny-relu2.decode"] is True


def test_another_machine_is_no_yardstick(tmp_path):
    other = timed(FAST, cpu="another CPU")
    assert machine_kind(other) != machine_kind(timed(FAST))
    assert compared(tmp_path, other, timed(SLOW), speed=0.8) == {"machine": False}
    assert compared(tmp_path, other, timed(SLOW), speed=0.8, missing="pass") == {"machine": True}


def with_rung(receipt, i, **changes):
    lane = receipt.lanes[0]
    rungs = tuple(replace(rung, **changes) if j == i else rung for j, rung in enumerate(lane.rungs))
    return replace(receipt, lanes=(replace(lane, rungs=rungs), *receipt.lanes[1:]))


@pytest.mark.parametrize(
    ("now", "held"),
    [
        (sample.minimal(), True),
        (with_rung(sample.minimal(), 3, measured=6e-7), True),
        (with_rung(sample.minimal(), 3, measured=9e-7), False),
        (with_rung(sample.minimal(), 6, outcome="fail"), False),
        (replace(sample.minimal(), lanes=()), False),
    ],
)
def test_drift_is_a_multiple_of_before(tmp_path, now, held):
    assert compared(tmp_path, sample.minimal(), now, drift=4.0)["drift.tiny-relu2 / oracle"] is held


def test_bits_are_equal_for_equal_inputs(tmp_path):
    base = sample.minimal()
    other = replace(base, cases=(replace(base.cases[0], logits_sha256=sample.sha("other")),))
    assert compared(tmp_path, base, base, bits=True)["bits"] is True
    assert compared(tmp_path, base, other, bits=True)["bits"] is False


def test_a_false_baseline_is_refused(tmp_path):
    path = tmp_path / "before.json"
    write(sample.minimal(), path)
    path.write_text(path.read_text().replace("20.0", "21.0").replace("fixture", "future"))
    with pytest.raises(SettingError, match="baseline is invalid"):
        list(compare(sample.minimal(), BaselineRules(files=(path,), speed=0.8)))
    with pytest.raises(SettingError, match="baseline cannot be read"):
        list(compare(sample.minimal(), BaselineRules(files=(tmp_path / "none.json",), speed=0.8)))
