"""The command: tables for people, JSON for machines, exit codes, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import jsonschema
import pytest

from bitnet.cli import app as bitnet_app
from bitnet.cli.main import main as bitnet_main
from fixtures.receipts.build import HERE
from receipts.__main__ import main
from receipts.cli import app
from receipts.keys import generate
from receipts.sign import sign

ROOT = Path(__file__).parents[1]


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["receipts", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return caught.value.code, out, err


@pytest.fixture
def call(capsys, monkeypatch):
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


def test_a_good_receipt_passes(call):
    code, out, _ = call("verify", HERE / "valid" / "full.json")
    assert code == 0
    assert "Valid, and the gate passed." in out
    assert "gate.lane.tiny-silu / llama.cpp" in out


def test_a_failed_gate_says_which_rung(call):
    code, out, _ = call("verify", HERE / "valid" / "gate-failed.json")
    assert code == 1
    assert "required rung greedy" in out
    assert "but the gate failed" in out


def test_the_gate_can_be_left_out(call):
    code, out, _ = call("verify", HERE / "valid" / "gate-failed.json", "--no-gate")
    assert code == 0
    assert "not asked" in out


def test_a_lie_is_shown_with_its_place(call):
    code, out, _ = call("verify", HERE / "invalid" / "ledger-layer-skipped.json")
    assert code == 5
    assert "ledger.rows" in out
    assert "ledger[0].entries" in out
    assert "1 finding. Nothing in it can be relied on." in out


def test_a_broken_text_is_shown_plainly(call):
    code, out, _ = call("verify", HERE / "invalid" / "cut-short.json")
    assert code == 5
    assert "is not JSON" in out
    assert "not checked" in out


def test_all_checks_can_be_listed(call):
    _, out, _ = call("verify", HERE / "valid" / "minimal.json", "--all")
    assert "ledger.calls" in out
    assert "passes × 7 × layers" in out


def test_json_is_json(call):
    code, out, _ = call("verify", HERE / "invalid" / "rate-invented.json", "--format", "json")
    data = json.loads(out)
    assert code == data["exit_code"] == 5
    assert [check["name"] for check in data["checks"] if check["outcome"] == "fail"] == ["performance.rate"]


def test_a_missing_file_is_wrong_usage(call, tmp_path):
    code, out, err = call("verify", tmp_path / "none.json")
    assert code == 2
    assert not out
    assert "cannot be read" in err
    assert "nox -s crossval" in err


@pytest.mark.parametrize("arguments", [["verify", "--format", "xml"], ["verify", "--mood"], ["veryfi"]])
def test_wrong_usage_is_2(call, arguments):
    assert call(*arguments)[0] == 2


def test_help_helps(call):
    code, out, _ = call("verify", "--help")
    assert code == 0
    for word in ("--format", "--no-gate", "--all", "Exit codes", "rows/"):
        assert word in out


def test_markup_in_a_receipt_is_only_text(call, tmp_path):
    text = (HERE / "valid" / "gate-failed.json").read_text().replace("clear margins", "[bold]clear[/bold] [/] margins")
    (tmp_path / "r.json").write_text(text)
    code, out, _ = call("verify", tmp_path / "r.json")
    assert code == 5
    assert "[bold]clear[/bold] [/] margins" in out


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "receipts", "verify", str(HERE / "valid" / "minimal.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr


def test_importing_receipts_loads_nothing_heavy():
    program = "import sys, receipts; print(len(sys.modules), [m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["jsonschema", "rich", "typer", "numpy", "numba", "bitnet", "reference", "matplotlib"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], cwd=ROOT, capture_output=True, text=True, timeout=60)
    number, _, loaded = done.stdout.strip().partition(" ")
    assert loaded == "[]", done.stderr
    assert int(number) <= 150  # 0.1 s of an idle machine


def test_every_form_is_printed(call, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert "<testsuites" in call("verify", HERE / "valid" / "full.json", "--format", "junit")[1]
    assert "::notice" in call("gate", HERE / "valid" / "full.json", "--format", "github")[1]
    assert "gate passed" in (tmp_path / "summary.md").read_text()
    assert '"2.1.0"' in call("verify", HERE / "valid" / "full.json", "--format", "sarif")[1]


def test_keys_signatures_and_trust(call, tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes((HERE / "valid" / "minimal.json").read_bytes())
    assert call("keygen", tmp_path / "key")[0] == 0
    assert call("keygen", tmp_path / "key")[0] == 2
    asked = ("verify", path, "--require-signature", "--key", tmp_path / "key.pub")
    assert call(*asked)[0] == 5
    assert call("sign", path, "--key", tmp_path / "key")[0] == 0
    assert call(*asked)[0] == 0
    assert call("verify", path, "--require-signature")[0] == 2
    path.write_text(path.read_text() + " ")
    assert call(*asked)[0] == 5


def test_a_false_receipt_is_not_signed(call, tmp_path):
    call("keygen", tmp_path / "key")
    code, _, err = call("sign", HERE / "invalid" / "rate-invented.json", "--key", tmp_path / "key")
    assert code == 5
    assert "not signed" in err
    assert not (HERE / "invalid" / "rate-invented.json.dsse").exists()


def test_policies(call, tmp_path):
    code, out, _ = call("gate", HERE / "valid" / "full.json", "--policy", "release")
    assert code == 1
    assert "gate.evidence" in out
    (tmp_path / "gate.toml").write_text("version = 1\n[evidense]\n")
    code, _, err = call("gate", HERE / "valid" / "full.json", "--policy", tmp_path / "gate.toml")
    assert code == 2
    assert "evidense" in err


def test_explain_diff_and_history(call):
    minimal, full = HERE / "valid" / "minimal.json", HERE / "valid" / "full.json"
    assert "What it does not show" in call("explain", minimal)[1]
    assert call("diff", minimal, minimal)[0] == 0
    assert call("diff", minimal, full)[0] == 1
    assert call("diff", minimal, HERE / "invalid" / "rate-invented.json")[0] == 5
    assert call("history", HERE / "valid")[0] == 0
    assert json.loads(call("history", HERE / "valid", "--format", "json")[1])
    assert call("history", HERE / "none")[0] == 2


def test_replay_needs_an_engine(call, monkeypatch):
    monkeypatch.setattr("receipts.replay.entry_points", lambda group: [])
    code, _, err = call("replay", HERE / "valid" / "minimal.json")
    assert code == 4
    assert "python -m crossval replay" in err


# ---- as a command of bitnet ------------------------------------------------------------------------------------------


@pytest.fixture
def bitnet(monkeypatch, capsys):
    """`bitnet receipt …` with the entry points that pyproject.toml declares, installed or not."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][bitnet_app.PLUGINS]
    made = {name: EntryPoint(name, value, bitnet_app.PLUGINS) for name, value in points.items()}
    monkeypatch.setattr(bitnet_app, "plugins", lambda: made)

    def call(*arguments):
        code = bitnet_main(["receipt", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("name", ["valid/full", "valid/gate-failed", "invalid/kernel-mock"])
def test_bitnet_receipt_is_the_same_command(bitnet, call, name):
    for command in ("verify", "gate", "explain"):
        assert bitnet(command, HERE / f"{name}.json") == call(command, HERE / f"{name}.json")


def test_an_error_is_told_as_bitnet_tells_its_own(bitnet, tmp_path):
    code, out, err = bitnet("verify", tmp_path / "none.json")
    assert (code, out) == (2, "")
    assert err.startswith("bitnet: ")
    assert "hint: " in err
    code, out, _ = bitnet("gate", tmp_path / "none.json", "--format", "json")
    told = json.loads(out)
    assert code == 2
    assert told["exit_code"] == 2
    jsonschema.validate(told, json.loads((ROOT / "schemas" / "error-1.schema.json").read_text()))


def examples():
    """Every command that a help text gives as an example."""
    commands = app.registered_commands
    assert len(commands) == 9
    for command in commands:
        found = re.findall(r"python -m receipts ([^;\n]+)", command.callback.__doc__)
        assert found, command.callback
        yield from found


@pytest.mark.parametrize("example", list(examples()))
def test_the_examples_of_the_help_work(example, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("receipts.replay.entry_points", lambda group: [])
    shutil.copytree(HERE / "valid", "ci")
    shutil.copy("ci/full.json", "ci/inference.json")
    shutil.copytree("ci", "receipts-of-ci")
    Path("baseline.json").write_bytes((HERE / "valid" / "minimal.json").read_bytes())
    Path("gate.toml").write_bytes((ROOT / "receipts" / "policies" / "strict.toml").read_bytes())
    Path("model.gguf").write_bytes(b"")
    Path("keys").mkdir()
    if "keygen" not in example:
        generate(Path("keys/release"))
    if "--key" in example:
        sign(Path("ci/inference.json"), Path("keys/release"))
        shutil.copy("keys/release.pub", "release.pub")
    words = shlex.split(example.partition(" > ")[0].replace("~/.config/receipts", "keys"))
    code, _, err = call(*words)
    differs = words[0] == "diff" or "release" in words  # the one has other lanes, the other no recent evidence
    assert code == (4 if "replay" in example else 1 if differs else 0), err


def test_help_waits_for_no_check():
    heavy = ("numpy", "numba", "rich", "jsonschema", "cryptography", "receipts.verify")
    program = f"import sys, receipts.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
