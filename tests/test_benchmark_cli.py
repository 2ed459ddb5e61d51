"""`bitnet benchmark` from end to end, on a model that is made in a second."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from bitnet.cli import app as main_app
from bitnet.errors import UsageError
from crossval.benchmark_cli import app
from reports import roofline

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "schemas" / "benchmark-1.schema.json").read_text())
SMALL = ["--decode", "4", "--prefill", "8", "--repeats", "2", "--quiet"]


def run(*arguments):
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("benchmark")
    done = run("make", "--shape", "tiny", str(found / "tiny.gguf"), "--quiet")
    assert done.exit_code == 0
    assert "tiny.gguf: tiny, 1." in done.stdout
    return found


def test_a_document_by_the_schema_and_a_picture(folder):
    out = folder / "out.json"
    arguments = ("--shape", "tiny", "--folder", str(folder), "--threads", "1,2", "--batch", "2")
    done = run("run", *arguments, *SMALL, "--out", str(out), "--format", "json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    jsonschema.validate(document, SCHEMA)
    assert document == json.loads(out.read_text())
    assert [(row["what"], row["threads"], row["batch"]) for row in document["rows"]] == [
        (what, n, b) for n in (1, 2) for what, b in (("decode", 1), ("decode", 2), ("prefill", 1))
    ]
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document | {"rows": []})
    for name in ("a.png", "a.svg"):
        roofline.draw(roofline.read(out), folder / name)
        assert (folder / name).stat().st_size > 5000


def test_the_full_head_and_a_long_text(folder):
    arguments = ("--model", str(folder / "tiny.gguf"), *SMALL, "--format", "json")
    read = {}
    for head in ("screened", "full"):
        document = json.loads(run("run", *arguments, "--head", head, "--position", "0,20").stdout)
        jsonschema.validate(document, SCHEMA)
        assert document["head"] == head
        assert [entry["task"] for entry in document["slowdowns"]] == ["decode 4 at 20"]
        read[head] = document["rows"][0]["weight_bytes"]
    assert read["full"] != read["screened"]


def test_what_a_list_of_numbers_is_not(folder):
    for option, text in (("--threads", "1,x"), ("--threads", "0"), ("--position", "-1"), ("--prefill", "4,,8")):
        with pytest.raises(UsageError, match="numbers from"):
            run("run", "--model", str(folder / "tiny.gguf"), option, text)


def test_what_the_context_does_not_hold_is_not_measured(folder):
    for command in ("run", "compare"):
        for option, text in (("--decode", "100000"), ("--prefill", "8,5000"), ("--position", "0,2045")):
            done = CliRunner().invoke(app, [command, "--model", str(folder / "tiny.gguf"), *SMALL, option, text])
            assert isinstance(done.exception, UsageError)
            assert "tiny.gguf has one of 2048" in str(done.exception)
            assert done.stdout == ""


def test_the_table(folder):
    done = run("run", "--model", str(folder / "tiny.gguf"), *SMALL)
    assert done.exit_code == 0
    assert "decode 4" in done.stdout
    assert "GB/s" in done.stdout


def test_against_llama_cpp(folder):
    pytest.importorskip("llama_cpp")
    history = folder / "history.jsonl"
    arguments = ("--model", str(folder / "tiny.gguf"), "--folder", str(folder), "--history", str(history))
    for before, code, told in ((None, 4, "0 of 3 earlier runs, not judged"), (1e-6, 0, ""), (1e6, 1, "slower: ")):
        if before is not None:
            line = json.loads(history.read_text().splitlines()[0])
            line["ratios"] = dict.fromkeys(line["ratios"], before)
            history.write_text(3 * f"{json.dumps(line)}\n")
        done = run("compare", *arguments, *SMALL, "--format", "json", "--gate", "0.1")
        assert done.exit_code == code
        assert done.stderr.count(told or "run") == (2 if told else 0)
        document = json.loads(done.stdout)
        jsonschema.validate(document, SCHEMA)
        assert {row["engine"] for row in document["rows"]} == {"bitnet", "llama.cpp TQ2_0", "llama.cpp TQ1_0"}
        assert len(document["ratios"]) == 2
    assert len(history.read_text().splitlines()) == 4


def test_a_history_is_read_before_anything_is_measured(folder):
    history = folder / "damaged.jsonl"
    history.write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match="line 1 is no entry"):
        run("compare", "--model", str(folder / "none.gguf"), "--history", str(history))
    for gate in ("nan", "1", "-0.1"):
        with pytest.raises(UsageError, match="--gate: is"):
            run("compare", "--model", str(folder / "none.gguf"), "--gate", gate)


def test_what_has_no_meaning(folder, monkeypatch):
    monkeypatch.delenv("BITNET_GGUF", raising=False)
    with pytest.raises(UsageError, match="no shape 'huge'"):
        run("run", "--shape", "huge", "--folder", str(folder))
    with pytest.raises(UsageError, match="no model is named"):
        run("run")
    with pytest.raises(UsageError, match="exists already"):
        run("make", "--shape", "tiny", str(folder / "tiny.gguf"))


def test_it_is_a_command_of_bitnet(monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"][main_app.PLUGINS]
    made = {name: EntryPoint(name, value, main_app.PLUGINS) for name, value in points.items()}
    monkeypatch.setattr(main_app, "plugins", lambda: made)
    shown = CliRunner().invoke(main_app.app, ["benchmark", "--help"])
    assert shown.exit_code == 0
    assert "roofline" in shown.stdout
    assert "benchmark" in CliRunner().invoke(main_app.app, ["--help"]).stdout


def test_the_picture_of_another_program_speaks_for_this_one(folder, capfd):
    (folder / "no.json").write_text("{")
    assert run("roofline", str(folder / "no.json")).exit_code == 2
    told = capfd.readouterr().err
    assert told.startswith(f"bitnet: {folder}/no.json: cannot be read as JSON")
    assert "Traceback" not in told
