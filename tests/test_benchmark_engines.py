"""What is timed is what was asked for, or nothing is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import model_bytes, parts

from bitnet.errors import BitNetError, UsageError
from crossval.benchmark import Task
from crossval.benchmark_engines import Ours, check, prompt

MODELS = Path(__file__).parents[1] / "fixtures" / "models"
RELU2 = MODELS / "tiny-relu2.i2_s.gguf"  # a context of 512


def decode(tokens, **more):
    return Task(what="decode", tokens=tokens, **({"threads": 1} | more))


def prefill(tokens):
    return Task(what="prefill", tokens=tokens, threads=1)


@given(st.integers(1, 300), st.integers(1, 2000))
def test_prompts_are_of_the_vocabulary(n, n_vocab):
    ids = prompt(n, n_vocab)
    assert len(ids) == n
    assert all(0 <= i < n_vocab for i in ids)


def test_prompts_of_large_vocabularies_are_those_that_they_were():
    assert prompt(5, 32000) == prompt(5, 128256) == [3, 41, 141, 303, 527]


@pytest.mark.parametrize("task", [decode(510), decode(400, position=111), decode(1, position=510), prefill(512)])
def test_what_fills_the_context_fits(task):
    assert check(RELU2, [task]) is None  # nothing is refused


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (decode(511), r"decode 511: takes a context of 1 \+ 511 \+ 1 tokens; tiny-relu2.i2_s.gguf has one of 512"),
        (decode(100000), "has one of 512"),
        (decode(400, position=112), "decode 400 at 112: takes a context of 112"),
        (prefill(513), "prefill 513: takes a context of 513 tokens.*\n.*--prefill"),
        (decode(1, batch=5000), "n_batch is 5000"),
        (decode(1, threads=5000), "threads is 5000"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_timed(task, message):
    with pytest.raises(UsageError, match=message):
        check(RELU2, [decode(4), task])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A model of 8 ids and a context of 64 tokens, of which the pool that users have holds four."""
    monkeypatch.setenv("BITNET_DEVICE", "plain")
    path = tmp_path / "small.gguf"
    path.write_bytes(model_bytes(*parts(tokenizer="tiny")))
    return path


def test_all_that_fits_is_timed_with_the_ids_there_are(small):
    tasks = [decode(62), decode(3, position=60), prefill(64), decode(2, batch=3)]
    check(small, tasks)
    engine = Ours(small, tasks)
    for task in tasks:
        assert engine.seconds(task) > 0
        assert engine.weight_bytes(task) > 0


def test_more_sequences_than_ids_and_contexts_go_together(small):
    task = decode(2, batch=9)
    assert Ours(small, [task]).seconds(task) > 0


@pytest.mark.parametrize("task", [decode(63), decode(4, position=60), decode(1, batch=5)])
def test_a_part_of_the_task_is_no_measure_of_it(small, task):
    with pytest.raises(BitNetError, match="there is no speed to tell"):
        Ours(small, [decode(1)]).seconds(task)
