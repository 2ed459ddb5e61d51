"""`bitnet model convert`: its summary, its document, its codes, and a signal in the middle."""

import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import checkpoints as ck
import golden_models
import pytest
from command_line import run as run_command
from command_line import schema

from bitnet.cli import model_convert as command
from bitnet.convert import TARGETS
from bitnet.transcode import EMBEDDING_TYPES

BEFORE = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)]
SOURCE = golden_models.model("b158_a")
SCHEMA = schema("model-convert-1")


def run(*arguments):
    return run_command("model", "convert", *arguments)


def test_the_choices_are_those_of_the_library():
    assert {t.value for t in command.Type} == set(TARGETS)
    assert {t.value for t in command.EmbeddingType} == {t.name.lower() for t in EMBEDDING_TYPES}


def test_a_lossless_conversion(tmp_path):
    done = run(SOURCE, tmp_path / "a.gguf", "--type", "tq2_0")
    assert done.code == 0, done.err
    assert "lossless: every weight is the source's, to the bit" in done.out
    assert "weights read back and compared" in done.out


def test_losses_are_named_and_counted(tmp_path):
    done = run(ck.FIXTURES / "bitnet-bf16", tmp_path / "a.gguf", "--type", "i2_s", "--quiet")
    assert "not lossless:" in done.out
    assert done.out.count("is made ternary by mean|w|") == 3
    assert "… and 4 more tensors" in done.out
    assert done.err == ""


@pytest.mark.parametrize("to", TARGETS)
def test_the_document_is_that_of_the_schema(tmp_path, to):
    done = run(SOURCE, tmp_path / "a", "--type", to, "--format", "json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    SCHEMA.validate(found)
    assert found["type"] == to
    assert found["lossless"] == (not any(t["lost"] for t in found["tensors"]))


def test_wrong_usage(tmp_path):
    assert run(SOURCE, tmp_path / "a", "--type", "q4_k").code == 2
    assert run(SOURCE, tmp_path / "a").code == 2
    assert run(SOURCE, SOURCE, "--type", "i2_s", "--force").code == 2
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)] == BEFORE


SCRIPT = """
import os, signal, sys
signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))  # whatever those who run the tests do with it
from bitnet.cli import model_convert as command
from bitnet import convert as library
from bitnet.cli.main import main
run = library.convert
def watched(*args, progress, **settings):
    def stop(stage, done, total, name):
        progress(stage, done, total, name)
        if stage == "verify":
            print("ready", flush=True)
            signal.pause()
    return run(*args, progress=stop, **settings)
library.convert = watched
sys.exit(main(["model", "convert", *sys.argv[1:]]))
"""


@contextmanager
def converting(folder, hangup):
    """A conversion that waits near its end, in a process that was started to treat SIGHUP so."""
    arguments = [hangup, SOURCE, str(folder / "m"), "--type", "hf"]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            assert child.stdout.readline() == b"ready\n"
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_leaves_nothing(tmp_path, number):
    with converting(tmp_path, "SIG_DFL") as child:
        child.send_signal(number)
        code = child.wait(30)
    assert code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_terminal_may_go_is_not_ended_by_it(tmp_path):
    with converting(tmp_path, "SIG_IGN") as child:
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 143
