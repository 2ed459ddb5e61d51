"""Rates, intervals, shares and turns."""

import statistics
from dataclasses import replace

import pytest

from crossval.benchmark import Row, Task, alternate, bandwidth, ratio, ratios, slowdowns

DECODE = Task(what="decode", tokens=100, threads=2)


class Clock:
    """An engine whose times are known."""

    def __init__(self, name, times, calls):
        self.name, self._times, self._calls = name, iter(times), calls

    def seconds(self, task):
        self._calls.append(self.name)
        return next(self._times)

    def weight_bytes(self, task):
        return 1000


def test_engines_take_turns_and_the_first_round_does_not_count():
    calls = []
    engines = [Clock("bitnet", [9, 1, 2, 4], calls), Clock("other", [9, 2, 4, 8], calls)]
    rows = alternate(engines, [DECODE], 3)
    assert calls == ["bitnet", "other"] * 4
    assert [row.seconds for row in rows] == [(1, 2, 4), (2, 4, 8)]
    assert [row.rate for row in rows] == [50, 25]
    assert [(t, r.value) for t, r in ratios(rows, "bitnet").items()] == [(DECODE, 2)]


def test_the_ratio_is_to_the_best_of_the_others():
    rows = [Row(engine=e, task=DECODE, seconds=(s,)) for e, s in (("bitnet", 1.0), ("a", 4.0), ("b", 2.0))]
    assert [(t, r.value) for t, r in ratios(rows, "bitnet").items()] == [(DECODE, 2)]
    assert ratios(rows[:1], "bitnet") == {}
    assert ratios(rows[1:], "bitnet") == {}


def test_rates_count_all_sequences():
    task = Task(what="decode", tokens=10, threads=1, batch=4)
    row = Row(engine="bitnet", task=task, seconds=(2.0,), weight_bytes=1000, memory=(1e9,))
    assert row.rate == 20
    assert row.share is None


def test_an_interval_holds_the_median_and_is_the_same_twice():
    row = Row(engine="bitnet", task=DECODE, seconds=(1.0, 1.1, 1.2, 1.3, 5.0))
    low, high = row.interval
    assert low <= row.rate == statistics.median(row.rates) <= high
    assert (low, high) == row.interval
    assert low < high


def test_the_share_is_of_what_memory_allows():
    row = Row(engine="bitnet", task=DECODE, seconds=(1.0, 2.0, 4.0), weight_bytes=1000, memory=(2e5, 2e5, 2e5))
    assert row.share == pytest.approx(0.25)
    assert replace(row, weight_bytes=None).share is None
    assert replace(row, memory=()).share is None
    assert replace(row, task=Task(what="prefill", tokens=100, threads=2)).share is None


def test_a_slow_minute_is_slow_for_memory_too():
    """A repetition is held to what memory gave before it, not to the best of all minutes."""
    row = Row(engine="bitnet", task=DECODE, seconds=(1.0, 4.0, 4.0), weight_bytes=1000, memory=(2e5, 5e4, 5e4))
    assert row.share == pytest.approx(0.5)
    assert bandwidth([row, replace(row, memory=(1e5, 1e5))]) == {2: 1e5}
    assert bandwidth([replace(row, memory=())]) == {}


def test_memory_is_read_before_each_repetition_of_decoding():
    calls = []
    engines = [Clock("bitnet", [9, 1, 2] * 2, calls), Clock("other", [9, 2, 4] * 2, calls)]

    def memory(threads):
        calls.append("memory")
        return 1e9 * threads

    rows = alternate(engines, [DECODE, Task(what="prefill", tokens=5, threads=1)], 2, memory=memory)
    assert calls == ["bitnet", "other", *["memory", "bitnet", "memory", "other"] * 2, *["bitnet", "other"] * 3]
    assert [row.memory for row in rows] == [(2e9, 2e9), (2e9, 2e9), (), ()]


def test_tasks_are_named_for_people():
    assert DECODE.name == "decode 100"
    assert Task(what="decode", tokens=5, position=7, threads=1).name == "decode 5 at 7"
    assert Task(what="decode", tokens=5, threads=1, batch=3).name == "decode 5, 3 sequences"


def test_a_ratio_has_an_interval_that_holds_it_and_is_the_same_twice():
    mine, other = (
        Row(engine=e, task=DECODE, seconds=s) for e, s in (("bitnet", (1.0, 1.1, 1.3)), ("a", (2.0, 2.2, 2.1)))
    )
    found = ratio(mine, other)
    assert found.peer == "a"
    assert found.interval[0] < found.value < found.interval[1]
    assert found == ratio(mine, other)
    assert str(ratio(mine, mine)).startswith("1.00 (")


def test_decoding_after_a_long_text_is_held_against_decoding_after_none():
    tasks = [Task(what="decode", tokens=100, position=at, threads=n) for n in (1, 2) for at in (0, 1000)]
    rows = [Row(engine="bitnet", task=t, seconds=(s,)) for t, s in zip(tasks, (1.0, 1.25, 0.5, 1.0), strict=True)]
    rows += [Row(engine="other", task=t, seconds=(1.0,)) for t in tasks]
    found = slowdowns(rows, "bitnet")
    assert [(t.threads, t.position, r.value, r.peer) for t, r in found.items()] == [
        (1, 1000, 0.8, "decode 100"),
        (2, 1000, 0.5, "decode 100"),
    ]
    assert slowdowns(rows[:1], "bitnet") == {}
