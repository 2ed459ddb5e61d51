"""Models, cases, times, rates and repetitions that cannot all be true together are refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from receipt_liars import NOW, check_liar, liars

from fixtures.receipts import sample
from receipts.rule import RULES, View


@pytest.mark.parametrize("hole", liars("check_runs"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


def findings(name, receipt, now=NOW):
    return list(RULES[name].check(View(receipt, (), now)))


@pytest.mark.parametrize(("days", "honest"), [(0, True), (-2, False), (1000, True)])
def test_only_a_receipt_from_the_future_is_refused_for_its_date(days, honest):
    receipt = sample.minimal()
    now = datetime.fromisoformat(receipt.timestamp) + timedelta(days=days)
    assert (not findings("identity.times", receipt, now)) is honest


@pytest.mark.parametrize(
    "time", ["2026-13-01T00:00:00Z", "0000-01-01T00:00:00Z", "2026-01-02T29:00:00Z", "2026-02-30T00:00:00Z"]
)
def test_times_that_never_were_are_refused(time):
    receipt = sample.minimal()
    assert findings("identity.times", replace(receipt, timestamp=time))
    assert findings("identity.times", replace(receipt, identity=replace(receipt.identity, started=time)))


@pytest.mark.parametrize("year", ["0001", "9999"])
def test_the_ends_of_the_calendar_break_nothing(year):
    receipt = sample.minimal()
    identity = replace(receipt.identity, started=f"{year}-01-01T00:00:00Z")
    assert findings("identity.times", replace(receipt, identity=identity))


def test_recorded_references_were_timed_elsewhere():
    receipt = sample.full()
    row = replace(receipt.performance[0], engine="oracle", seconds=(1e6,), n=1, tokens_per_second=5e-6)
    slow = replace(receipt, performance=(row,))
    assert findings("identity.seconds", slow)
    recorded = tuple(replace(ref, obtained="recorded") for ref in receipt.references)
    assert not findings("identity.seconds", replace(slow, references=recorded))


def test_a_rate_is_the_median_whatever_the_order():
    receipt = sample.minimal()
    row = replace(receipt.performance[1], tokens=10, seconds=(4.0, 1.0, 2.0), tokens_per_second=5.0)
    assert not findings("performance.rate", replace(receipt, performance=(row,)))
    even = replace(row, seconds=(1.0, 2.0), n=2, tokens_per_second=7.5)
    assert not findings("performance.rate", replace(receipt, performance=(even,)))
    mean = replace(row, tokens_per_second=30 / 7)
    assert findings("performance.rate", replace(receipt, performance=(mean,)))


@pytest.mark.parametrize(
    "changes",
    [{"n": 2}, {"seconds": (), "n": 0}, {"seconds": (0.0, 1.0, 1.0)}, {"tokens": 0, "tokens_per_second": 0.0}],
)
def test_a_rate_needs_timings_and_tokens(changes):
    receipt = sample.minimal()
    assert findings("performance.rate", replace(receipt, performance=(replace(receipt.performance[1], **changes),)))


def test_equal_weights_in_two_files_may_give_equal_logits():
    receipt = sample.full()
    same = replace(receipt.cases[0], model="tiny-silu")
    assert not findings("cases.digests", replace(receipt, cases=(receipt.cases[0], same)))


def test_repeats_need_no_different_settings_and_threads_do():
    receipt = sample.minimal()
    row = receipt.determinism[0]
    runs = tuple(replace(run, setting="2") for run in row.runs)
    same = replace(row, settings=("2", "2"), runs=runs)
    assert findings("determinism.runs", replace(receipt, determinism=(same,)))
    assert not findings("determinism.runs", replace(receipt, determinism=(replace(same, what="repeat"),)))


def test_every_digest_is_looked_at():
    receipt = sample.minimal()
    case = replace(receipt.cases[0], logits_sha256="0" * 64)
    assert findings("digests.something", replace(receipt, cases=(case,))) == [
        ("cases[0].logits_sha256", "is the digest of nothing")
    ]


def test_a_receipt_says_what_it_does_not_show():
    receipt = sample.minimal()
    assert findings("claims.honest", replace(receipt, claims=replace(receipt.claims, does_not=())))
