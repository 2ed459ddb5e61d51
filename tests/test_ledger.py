"""The ledger counts what ran, each line by itself, from any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from bitnet.kernels.ledger import KernelUse, Ledger


def use(**changes):
    values = {"kernel": "cpu.dense.none", "role": "head", "weight_type": "F16", "isa": "avx2"}
    return KernelUse(**{**values, **changes})


def test_calls_of_one_use_add_up_and_others_stay_apart():
    ledger = Ledger()
    for rows in (3, 4):
        ledger.add(use(), rows=rows, n_bytes=10)
    for field, value in (("kernel", "a"), ("role", "projection"), ("weight_type", "F32"), ("isa", "sse2")):
        ledger.add(use(**{field: value}), rows=1, n_bytes=1)
    tallies = dict(ledger)
    assert len(tallies) == 5
    assert (tallies[use()].calls, tallies[use()].rows, tallies[use()].bytes) == (2, 7, 20)
    assert all(t.calls == 1 for key, t in tallies.items() if key != use())


def test_lines_come_in_one_order():
    lines = [use(), use(kernel="b"), use(role="projection"), use(weight_type="Q8_0")]
    forward, backward = Ledger(), Ledger()
    for line in lines:
        forward.add(line, rows=1, n_bytes=1)
    for line in reversed(lines):
        backward.add(line, rows=1, n_bytes=1)
    assert [key for key, _ in forward] == [key for key, _ in backward]


def test_passes():
    ledger = Ledger()
    ledger.add_pass(tokens=5, head_rows=1)
    ledger.add_pass(tokens=1, head_rows=1)
    assert (ledger.passes, ledger.tokens, ledger.head_rows) == (2, 6, 2)
    assert not list(ledger)


def test_threads_lose_no_call():
    ledger = Ledger()

    def work(_):
        for _ in range(500):
            ledger.add(use(), rows=2, n_bytes=3)
            ledger.add_pass(tokens=1, head_rows=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    [(_, tally)] = ledger
    assert (tally.calls, tally.rows, tally.bytes, ledger.passes) == (2000, 4000, 6000, 2000)


def test_a_line_never_changes():
    with pytest.raises(AttributeError):
        use().kernel = "another"


def test_what_was_added_after_a_snapshot():
    ledger = Ledger()
    ledger.add(use(), rows=3, n_bytes=10)
    before = ledger.snapshot()
    assert ledger.since(before) == {}
    ledger.add(use(), rows=4, n_bytes=10)
    ledger.add(use(kernel="b"), rows=1, n_bytes=2)
    assert ledger.since(before) == {use(): (1, 4, 10), use(kernel="b"): (1, 1, 2)}
    assert ledger.since({}) == ledger.snapshot() == {use(): (2, 7, 20), use(kernel="b"): (1, 1, 2)}
