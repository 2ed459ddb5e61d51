"""`python -m crossval record` and `quality`, as they are called."""

import os

import golden_models
import pytest
from typer.testing import CliRunner

from bitnet.errors import UsageError
from crossval import commands
from crossval.__main__ import app

MODEL = str(golden_models.FOLDER.parent / "models" / "tiny-relu2.i2_s.gguf")


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_quality_alone_kept_and_compared(tmp_path):
    base = tmp_path / "base.kld"
    kept = call("quality", MODEL, "--n-ctx", 32, "--chunks", 2, "--save-base", base)
    assert kept.exit_code == 0, kept.output
    assert "Mean PPL(Q)" in kept.output
    assert base.read_bytes().startswith(b"_logits_")
    against = call("quality", MODEL, "--base", base)
    assert against.exit_code == 0, against.output
    assert "Same top p" in against.output
    assert "100.000000" in against.output


def test_mistakes_are_named(tmp_path):
    wrong = call("quality", MODEL, "--reference", "other", "--n-ctx", 32, "--chunks", 1)
    assert isinstance(wrong.exception, UsageError)
    missing = call("quality", MODEL, "--text", tmp_path / "none")
    assert "cannot be read" in str(missing.exception)


def test_record_prints_what_it_wrote(tmp_path):
    model = golden_models.model("b158_a")
    out = tmp_path / "a.recording"
    done = call("record", out, "--only", "oracle", "--model", model, "--no-hf", "--work", tmp_path / "w")
    assert done.exit_code == 0, done.output
    assert out.is_file()
    assert "computations" in done.output


def test_models_are_those_named_or_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("BITNET_GGUF", str(tmp_path / "a"))
    assert commands.models_of(None) == (tmp_path / "a",)
    assert commands.models_of([tmp_path / "b"]) == (tmp_path / "b",)
    monkeypatch.delenv("BITNET_GGUF")
    assert commands.models_of(None) == ()


@pytest.mark.parametrize("asked", [True, False])
def test_transformers_is_asked_as_told(asked):
    assert commands.hf_wanted(asked) is asked


@pytest.mark.parametrize("command", [("run", "--receipt"), ("record",)])
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a file for a folder"])
def test_a_place_that_cannot_have_the_result_is_refused_before_the_work(tmp_path, monkeypatch, command, kind):
    place = tmp_path / "there"
    if kind == "a folder":
        place.mkdir()
    elif kind == "a pipe":
        os.mkfifo(place)
    else:
        place.write_text("")
        place /= "result.json"
    monkeypatch.setattr("crossval.run.Run.plan", lambda _: pytest.fail("the work was begun"))
    done = call(*command, place, "--only", "oracle", "--no-hf")
    assert isinstance(done.exception, UsageError), done.output
    assert done.exception.where == str(place)
