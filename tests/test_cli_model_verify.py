"""`bitnet model verify`: the report, its two formats, and the exit codes."""

from __future__ import annotations

import json

import malformed
import pytest
from command_line import TINY as SOUND
from command_line import run as run_command
from command_line import schema
from jsonschema import Draft202012Validator

SCHEMA = schema("model-verify-1")


def run(*arguments):
    return run_command("model", "verify", *arguments)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(malformed.model(drop=[malformed.Q]))
    return str(path)


def test_a_sound_model():
    done = run(SOUND)
    assert done.code == 0
    assert "28 ternary matrices" in done.out
    assert "tiny-relu2.i2_s.gguf: sound" in done.out


def test_a_broken_model_leaves_with_3(broken):
    done = run(broken)
    assert done.code == 3
    assert f"error    {malformed.Q}: tensor {malformed.Q} is missing" in done.out
    assert "hint: " in done.out
    assert "broken.gguf: not usable (1 error(s)" in done.out


def test_json_follows_its_schema(broken):
    for path, code in ((SOUND, 0), (broken, 3)):
        done = run(path, "--format", "json")
        assert done.code == code
        report = json.loads(done.out)
        SCHEMA.validate(report)
        assert report["ok"] is (code == 0)
    Draft202012Validator.check_schema(SCHEMA.schema)
    assert not SCHEMA.is_valid(report | {"extra": 1})
    assert not SCHEMA.is_valid(report | {"ok": "yes"})


def test_the_model_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BITNET_GGUF", SOUND)
    assert run().code == 0


def test_no_model_and_no_format_are_wrong_usage(monkeypatch):
    monkeypatch.delenv("BITNET_GGUF", raising=False)
    done = run()
    assert done.code == 2
    assert "no model is named" in done.err
    assert run(SOUND, "--format", "xml").code == 2
