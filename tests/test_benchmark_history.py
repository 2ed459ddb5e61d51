"""What was faster before is known, by machine and by model."""

import json
import math

import pytest

from bitnet.errors import UsageError
from crossval.benchmark import Row, Task
from crossval.benchmark_history import History, Verdict

TASK = Task(what="decode", tokens=10, threads=2)


def rows(ratio):
    return [Row(engine="bitnet", task=TASK, seconds=(1.0,)), Row(engine="peer", task=TASK, seconds=(ratio,))]


def enter(path, model, rows, gate, head="screened"):
    """Of a run of its own, as each is."""
    return History(path).enter(model, rows, gate, head)


def test_a_slower_run_is_named_and_entered(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    for n, ratio in enumerate((2.0, 2.1, 1.9)):
        unjudged = f"decode 10, 2 thread(s): {n} of 3 earlier runs, not judged"
        assert enter(path, "m", rows(ratio), 0.1) == Verdict(unjudged=(unjudged,))
    assert enter(path, "m", rows(1.81), 0.1) == Verdict()
    slower = "decode 10, 2 thread(s): 1.70 times the peer, 1.95 before"
    assert enter(path, "m", rows(1.7), 0.1) == Verdict(slower=(slower,))
    assert enter(path, "m", rows(1.0), None) == Verdict()
    assert enter(path, "another", rows(1.0), 0.1).unjudged
    assert len(path.read_text().splitlines()) == 7


def test_a_regression_does_not_become_the_measure(tmp_path):
    path = tmp_path / "history.jsonl"
    for _ in range(3):
        enter(path, "m", rows(2.0), None)
    for _ in range(8):
        assert enter(path, "m", rows(1.0), 0.1).slower
    assert json.loads(path.read_text().splitlines()[-1])["slower"] == ["decode 10, 2 thread(s)"]
    for _ in range(4):  # whoever wants it to be the measure
        enter(path, "m", rows(1.0), None)
    assert enter(path, "m", rows(1.0), 0.1) == Verdict()


def test_what_is_no_number_does_not_pass(tmp_path):
    history = History(tmp_path / "history.jsonl")
    for _ in range(3):
        history.enter("m", rows(2.0), None)
    assert history.enter("m", rows(math.nan), 0.1).slower
    assert History(tmp_path / "none.jsonl").enter("m", rows(2.0)[:1], 0.1).unjudged


def test_heads_are_compared_apart(tmp_path):
    path = tmp_path / "history.jsonl"
    for _ in range(3):
        enter(path, "m", rows(2.0), None)
    assert enter(path, "m", rows(1.0), 0.1, "full").unjudged
    assert enter(path, "m", rows(1.0), 0.1).slower


def test_another_machine_is_no_measure(tmp_path):
    path = tmp_path / "history.jsonl"
    for _ in range(4):
        enter(path, "m", rows(2.0), None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"machine": {"cpu": "other"}}) + "\n" for line in lines))
    assert enter(path, "m", rows(1.0), 0.1).unjudged


def test_a_last_line_without_an_end_is_ended(tmp_path):
    path = tmp_path / "history.jsonl"
    enter(path, "m", rows(2.0), None)
    path.write_text(path.read_text().rstrip())
    enter(path, "m", rows(2.0), None)
    assert len(path.read_text().splitlines()) == 2


def of(ratio):
    return json.dumps({"machine": {}, "model": "m", "ratios": {"a": ratio}}).encode()


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"[]", b"", b"\xff\xfe", b"[" * 100_000),
        *(b'{"machine": 1}', b'{"machine": {}, "model": "m", "ratios": 3}'),
        *(of("2.0"), of(None), of(ratio=True), of(0), of(-1.5), of(math.nan), of(math.inf)),
        b'{"machine": {}, "model": "m", "ratios": {}, "slower": "a"}',
    ],
)
def test_a_line_that_is_no_entry(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_bytes(of(1.5) + b"\n" + line + b"\n")
    with pytest.raises(UsageError, match="line 2 is no entry"):
        History(path)
