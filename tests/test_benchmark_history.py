"""What was faster before is known, by machine and by model."""

import json

import pytest

from bitnet.errors import UsageError
from crossval.benchmark import Row, Task
from crossval.benchmark_history import enter

TASK = Task(what="decode", tokens=10, threads=2)


def rows(ratio):
    return [Row(engine="bitnet", task=TASK, seconds=(1.0,)), Row(engine="peer", task=TASK, seconds=(ratio,))]


def test_a_slower_run_is_named_and_entered(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    for ratio in (2.0, 2.1, 1.9):
        assert enter(path, "m", rows(ratio), 0.1) == []
    assert enter(path, "m", rows(1.81), 0.1) == []
    assert enter(path, "m", rows(1.7), 0.1) == ["decode 10, 2 thread(s): 1.70 times the peer, 1.95 before"]
    assert enter(path, "m", rows(1.0), None) == []
    assert enter(path, "another", rows(1.0), 0.1) == []
    assert len(path.read_text().splitlines()) == 7


def test_heads_are_compared_apart(tmp_path):
    path = tmp_path / "history.jsonl"
    for _ in range(3):
        enter(path, "m", rows(2.0), None)
    assert enter(path, "m", rows(1.0), 0.1, "full") == []
    assert enter(path, "m", rows(1.0), 0.1) != []


def test_another_machine_is_no_measure(tmp_path):
    path = tmp_path / "history.jsonl"
    for _ in range(4):
        enter(path, "m", rows(2.0), None)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"machine": {"cpu": "other"}}) + "\n" for line in lines))
    assert enter(path, "m", rows(1.0), 0.1) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"machine": 1}', '{"machine": {}, "model": "m", "ratios": 3}'])
def test_a_line_that_is_no_entry(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UsageError, match="line 1 is no entry"):
        enter(path, "m", rows(1.0), 0.1)
