"""`bitnet model convert`: its summary, its document, its codes, and a signal in the middle."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints as ck
import golden_models
import pytest
import typer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from bitnet.cli import convert as command
from bitnet.convert import TARGETS
from bitnet.errors import UsageError
from bitnet.transcode import EMBEDDING_TYPES

SOURCE = golden_models.model("b158_a")
SCHEMA = Draft202012Validator(
    json.loads((Path(__file__).parents[1] / "schemas" / "model-convert-1.schema.json").read_text())
)

app = typer.Typer()
app.command()(command.convert)


@pytest.fixture(autouse=True)
def handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_choices_are_those_of_the_library():
    assert {t.value for t in command.Type} == set(TARGETS)
    assert {t.value for t in command.EmbeddingType} == {t.name.lower() for t in EMBEDDING_TYPES}


def test_a_lossless_conversion(tmp_path):
    done = run(SOURCE, tmp_path / "a.gguf", "--type", "tq2_0")
    assert done.exit_code == 0, done.output
    assert "lossless: every weight is the source's, to the bit" in done.stdout
    assert "weights read back and compared" in done.stdout


def test_losses_are_named_and_counted(tmp_path):
    done = run(ck.FIXTURES / "bitnet-bf16", tmp_path / "a.gguf", "--type", "i2_s", "--quiet")
    assert "not lossless:" in done.stdout
    assert done.stdout.count("is made ternary by mean|w|") == 3
    assert "… and 4 more tensors" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("to", TARGETS)
def test_the_document_is_that_of_the_schema(tmp_path, to):
    done = run(SOURCE, tmp_path / "a", "--type", to, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    SCHEMA.validate(found)
    assert found["type"] == to
    assert found["lossless"] == (not any(t["lost"] for t in found["tensors"]))


def test_wrong_usage(tmp_path):
    assert run(SOURCE, tmp_path / "a", "--type", "q4_k").exit_code == 2
    assert run(SOURCE, tmp_path / "a").exit_code == 2
    assert isinstance(run(SOURCE, SOURCE, "--type", "i2_s", "--force").exception, UsageError)


SCRIPT = """
import os, signal, sys
from bitnet.cli import convert as command
from bitnet import convert as library
import typer
run = library.convert
def watched(*args, progress, **settings):
    def stop(stage, done, total, name):
        progress(stage, done, total, name)
        if stage == "verify":
            print("ready", flush=True)
            signal.pause()
    return run(*args, progress=stop, **settings)
library.convert = watched
app = typer.Typer()
app.command()(command.convert)
app(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_leaves_nothing(tmp_path, number):
    arguments = [SOURCE, str(tmp_path / "m"), "--type", "hf"]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        code = child.wait(30)
    assert code == (143 if number == signal.SIGTERM else 130)
    assert list(tmp_path.iterdir()) == []
