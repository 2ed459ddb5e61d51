"""`bitnet verify`: the report, its two formats, and the exit codes."""

from __future__ import annotations

import json

import malformed
import pytest
from jsonschema import Draft202012Validator
from test_refusals import ROOT
from typer.testing import CliRunner

from bitnet import __main__
from bitnet.cli.app import app

SOUND = str(ROOT / "fixtures" / "models" / "tiny-relu2.i2_s.gguf")
SCHEMA = Draft202012Validator(json.loads((ROOT / "schemas" / "verify-1.schema.json").read_text()))


def run(*arguments):
    return CliRunner().invoke(app, ["verify", *arguments])


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(malformed.model(drop=[malformed.Q]))
    return str(path)


def test_a_sound_model():
    done = run(SOUND)
    assert done.exit_code == 0
    assert "28 ternary matrices" in done.stdout
    assert "tiny-relu2.i2_s.gguf: sound" in done.stdout


def test_a_broken_model_leaves_with_3(broken):
    done = run(broken)
    assert done.exit_code == 3
    assert f"error    {malformed.Q}: tensor {malformed.Q} is missing" in done.stdout
    assert "hint: " in done.stdout
    assert "broken.gguf: not usable (1 error(s)" in done.stdout


def test_json_follows_its_schema(broken):
    for path, code in ((SOUND, 0), (broken, 3)):
        done = run(path, "--format", "json")
        assert done.exit_code == code
        report = json.loads(done.stdout)
        SCHEMA.validate(report)
        assert report["ok"] is (code == 0)
    Draft202012Validator.check_schema(SCHEMA.schema)
    assert not SCHEMA.is_valid(report | {"extra": 1})
    assert not SCHEMA.is_valid(report | {"ok": "yes"})


def test_the_model_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BITNET_GGUF", SOUND)
    assert run().exit_code == 0


def test_no_model_and_no_format_are_wrong_usage(monkeypatch, capsys):
    monkeypatch.delenv("BITNET_GGUF", raising=False)
    monkeypatch.setattr("sys.argv", ["bitnet", "verify"])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 2
    assert "no model is named" in capsys.readouterr().err
    assert run(SOUND, "--format", "xml").exit_code == 2


def test_the_help_has_an_example_that_works():
    help_text = run("--help").stdout
    assert "Example: python -m bitnet verify fixtures/models/tiny-relu2.i2_s.gguf" in " ".join(help_text.split())
