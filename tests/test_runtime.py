"""What calls on a model share: turns, pages, an end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from test_generate import MODEL

import bitnet
from bitnet import runtime
from bitnet.cache_pool import PAGE, page_bytes, pages_for
from bitnet.errors import ModelFileError, ResourceLimitError, UsageError
from bitnet.limits import MEMORY
from bitnet.runtime import CONTEXTS, pool_pages


@pytest.fixture
def model():
    with bitnet.load(MODEL, n_threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch):
    monkeypatch.delenv(MEMORY, raising=False)


# --- the size of the pool --------------------------------------------------------------------------------------------


def memory(monkeypatch, *, available=1 << 40, resident=0):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": available}))
    process = type("P", (), {"memory_info": lambda self: type("I", (), {"rss": resident})})
    monkeypatch.setattr(runtime.psutil, "Process", process)


def test_four_contexts_by_default_but_half_of_the_free_memory_at_most(model, monkeypatch):
    one = page_bytes(model.config, model.network.numerics)
    memory(monkeypatch)
    assert pool_pages(model.network) == CONTEXTS * pages_for(model.config.n_ctx)
    memory(monkeypatch, available=10 * one)
    assert pool_pages(model.network) == 5
    memory(monkeypatch, available=0)
    assert pool_pages(model.network) == 1


def test_as_many_bytes_as_asked(model):
    one = page_bytes(model.config, model.network.numerics)
    assert pool_pages(model.network, 7 * one + 1) == 7
    with bitnet.load(MODEL, cache_bytes=7 * one, n_threads=1) as other:
        assert other.cache_stats.bytes == 7 * one
    for bad in (one - 1, 0, -5):
        with pytest.raises(UsageError, match=f"cache_bytes is {bad}"):
            bitnet.load(MODEL, cache_bytes=bad)


def test_the_memory_limit_leaves_what_it_leaves(model, monkeypatch):
    one = page_bytes(model.config, model.network.numerics)
    memory(monkeypatch, resident=100 * one)
    monkeypatch.setenv(MEMORY, str(103 * one))
    assert pool_pages(model.network) == pool_pages(model.network, 50 * one) == 3
    assert pool_pages(model.network, 2 * one) == 2
    monkeypatch.setenv(MEMORY, str(100 * one))
    with pytest.raises(ResourceLimitError, match="0 MB are left for the KV cache") as caught:
        model.generate("The")
    assert (caught.value.where, caught.value.exit_code) == (MEMORY, 6)


# --- several at once -------------------------------------------------------------------------------------------------


def test_threads_do_not_disturb_each_other(model):
    prompts = ["One day Anna", "The cat", "Tom was", "Once upon"]
    sampled = {"max_new_tokens": 20, "temperature": 0.8, "seed": 2}
    expected = [model.generate(p, **sampled) for p in prompts]
    found = {}

    def work(i):
        found[i] = "".join(model.stream(prompts[i], **sampled))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == [g.text for g in expected]
    assert model.cache_stats.sequences == 0


def test_what_ran_is_counted_for_the_call_it_ran_for(model):
    c = model.config
    readers = [iter(model.decoder(p, max_new_tokens=n, ignore_eos=True)) for p, n in (("The cat", 4), ("Tom", 9))]
    decoders = [model.decoder(p, max_new_tokens=n, ignore_eos=True) for p, n in (("The cat", 4), ("Tom", 9))]
    readers = [iter(d) for d in decoders]
    while readers:
        readers = [r for r in readers if next(r, None) is not None]
    for decoder, n in zip(decoders, (4, 9), strict=True):
        calls = dict.fromkeys(("head", "projection"), 0)
        for k in decoder.result.metrics.kernels:
            calls[k.role] += k.calls
        assert calls == {"head": n, "projection": n * 7 * c.n_layer}


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_closed_model_says_so():
    model = bitnet.load(MODEL, n_threads=1)
    stream = model.stream("The cat", ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="the model is closed"):
        list(stream)
    calls = (
        lambda: model.generate("a"),
        lambda: model.generate_batch(["a"]),
        lambda: model.prefill("a"),
        lambda: model.logits("a"),
        lambda: model.embed("a"),
        lambda: model.cache_stats,
        lambda: model.runtime.workers,
        lambda: model.runtime.steppers,
    )
    for call in calls:
        with pytest.raises(UsageError, match=r"the model is closed\n.*load it again"):
            call()
    assert model.info.config == model.config  # what it was can still be asked


# --- a file that is written to ---------------------------------------------------------------------------------------


def test_no_prompt_is_begun_on_a_file_that_was_written_to(tmp_path):
    path = Path(shutil.copy(MODEL, tmp_path / "m.gguf"))
    with bitnet.load(path, n_threads=1) as model:
        session, stream = model.prefill("The cat"), model.stream("The cat", ignore_eos=True)
        due = next(stream)
        os.utime(path, ns=(1, 1))
        assert due + next(stream)  # a step in between looks at no file
        calls = (
            lambda: model.generate("a"),
            lambda: model.generate_batch(["a"]),
            lambda: next(model.stream("a")),
            lambda: model.prefill("a"),
            lambda: session.generate("a"),
            lambda: session.extend("a"),
            lambda: model.logits("a"),
            lambda: model.embed("a"),
        )
        for call in calls:
            with pytest.raises(ModelFileError, match="changed after it was opened") as caught:
                call()
            assert str(path) in str(caught.value)
        Path(shutil.copy(MODEL, tmp_path / "new.gguf")).replace(path)
        assert model.generate("The cat", max_new_tokens=4).text == session.generate(max_new_tokens=4).text


def test_a_file_that_was_cut_is_an_error_and_no_signal(tmp_path):
    path = Path(shutil.copy(MODEL, tmp_path / "m.gguf"))
    script = (
        "import os, sys, bitnet\n"
        "model = bitnet.load(sys.argv[1], device='plain')\n"
        "os.truncate(sys.argv[1], 4096)\n"
        "try:\n    model.generate('a')\nexcept bitnet.ModelFileError as error:\n    sys.exit(error.exit_code)"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 3


def test_the_pool_keeps_one_context_for_nobody(model):
    n = model.config.n_ctx
    for token in (1, 2):
        model.generate([token] * (n - PAGE), max_new_tokens=1)
    assert model.cache_stats.kept == pages_for(n)
