"""`bitnet validate` from end to end: against liars, against the oracle, and every example of its help."""

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

import command_line
import liars
import numpy as np
import pytest
import typer

from bitnet.cli import app as main_app
from crossval.case import PROMPTS
from crossval.catalogue import BY_NAME, hypothesis
from crossval.validate_cli import app
from reference.oracle import Oracle
from reference.process import ProcessRunner
from reference.runner import ReferenceUnavailableError, Request
from reference.semantics import Semantics

ROOT = Path(__file__).parents[1]
NAMES = ("crossval", "record", "drift", "infer", "locate", "explain", "minimise", "tokens", "weights", "noise")
HEAVY = ("numpy", "numba", "rich", "tokenizers", "gguf", "pandas", "httpx")


@pytest.fixture(autouse=True)
def plugged_in(monkeypatch):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][main_app.PLUGINS]
    made = {name: EntryPoint(name, value, main_app.PLUGINS) for name, value in points.items()}
    monkeypatch.setattr(main_app, "plugins", lambda: made)
    monkeypatch.delenv("BITNET_GGUF", raising=False)
    monkeypatch.setattr("crossval.run.N_GREEDY", 2)
    monkeypatch.setattr("crossval.run.N_QUALITY", 32)


@pytest.fixture
def call(tmp_path):
    """Runs `bitnet validate …` with its working folder set aside."""

    def run(*arguments):
        places = () if arguments[0] in ("noise", "drift", "infer") else ("--work", tmp_path / "work", "--no-hf")
        return command_line.run("validate", *arguments, *places)

    return run


def use(monkeypatch, reference, **changes):
    monkeypatch.setattr("crossval.run.lanes", lambda *_, **__: [liars.plan(reference, **changes)])


def wrong_activation(monkeypatch):
    reference = liars.Liar(semantics=Semantics(activation="silu"))
    reference.shown = liars.Liar().oracle
    use(monkeypatch, lambda: reference)


def document(done):
    made = command_line.validated(done.out)
    name = made["schema"].removeprefix("urn:bitnet-crossval:")
    assert not command_line.schema(name).is_valid(made | {"extra": 1})
    return made


# ---- a lane that is wrong ------------------------------------------------------------------------------------------


def test_explain_says_it_in_one_sentence(call, monkeypatch, tmp_path):
    wrong_activation(monkeypatch)
    done = call("explain", "--model", liars.MODEL, "--repro", tmp_path / "repro")
    assert done.code == 1, done.err
    said = done.out
    assert said.startswith(
        "lane liar, rung operations, blk.0 ffn_act, all positions; computes SiLU in the feed-forward"
    )
    assert "where the file declares squared ReLU; replaying with activation=silu explains 100.0% of the differ" in said
    assert "next best activation=" in said
    assert "2 of 3 engines agree with you" in said
    assert said.rstrip().endswith(f"repro in {tmp_path / 'repro' / 'liar'}/.")
    script = tmp_path / "repro" / "liar" / "repro.py"
    shown = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (shown.returncode, "the engine is wrong" in shown.stdout) == (1, True)


def test_explain_as_a_document(call, monkeypatch, tmp_path):
    wrong_activation(monkeypatch)
    done = call("explain", "--model", liars.MODEL, "--repro", tmp_path / "repro", "--format", "json")
    assert done.code == 1
    [lane] = document(done)["lanes"]
    assert (lane["blame"], lane["cause"]["name"], lane["declared"]) == ("reference", "activation=silu", "squared ReLU")
    assert len(lane["agree"]) == 2
    assert lane["differ"] == ["liar · reference"]
    assert Path(lane["repro"]).is_file()


def test_locate(call, monkeypatch):
    wrong_activation(monkeypatch)
    done = call("locate", "--model", liars.MODEL)
    assert (done.code, "blk.0 ffn_act" in done.out, "worst" in done.out) == (1, True, True)
    [lane] = document(call("locate", "--model", liars.MODEL, "--format", "json"))["lanes"]
    assert (lane["operation"]["tap"], lane["operation"]["layer"], lane["stopped_at"]) == ("ffn_act", 0, "operations")
    assert lane["located"]["positions"] == lane["operation"]["positions"]
    assert lane["cause"] is None  # a search that nobody asked for


def test_minimise(call, monkeypatch, tmp_path):
    wrong_activation(monkeypatch)
    done = call("minimise", "--model", liars.MODEL, "--only", "liar", "--repro", tmp_path / "r", "--format", "json")
    case = document(done)["case"]
    assert (done.code, case["tap"], len(case["ids"])) == (1, "ffn_act", 1)
    again = call("minimise", "--model", liars.MODEL, "--only", "liar", "--repro", tmp_path / "r")
    assert "is wrong on 1 of" in again.out


def test_tokens_show_the_spans(call, monkeypatch):
    use(monkeypatch, liars.OtherIds)
    done = call("tokens", "--model", liars.MODEL, "--only", "liar", "--text", "the quick brown fox", "--format", "json")
    assert done.code == 1
    [text] = document(done)["different"]
    [span] = text["spans"]
    assert text["text"].endswith(span["text"])
    assert len(span["ours"]) == len(span["theirs"]) == 1
    human = call("tokens", "--model", liars.MODEL, "--only", "liar", "--text", "the quick brown fox")
    assert "0 of 1 texts have the same ids" in human.out
    assert repr(span["text"]) in human.out


def test_weights_show_the_scale(call, monkeypatch):
    use(monkeypatch, liars.DoublesAScale)
    done = call("weights", "--model", liars.MODEL, "--only", "liar", "--format", "json")
    made = document(done)
    assert (done.code, made["equal"]) == (1, False)
    [odd] = [tensor for tensor in made["tensors"] if tensor["n_differ"]]
    assert odd["name"] == liars.DoublesAScale.tensor
    assert odd["theirs"]["scale"] == pytest.approx(2 * odd["ours"]["scale"])
    assert odd["ours"]["sha256"] != odd["theirs"]["sha256"]
    human = call("weights", "--model", liars.MODEL, "--only", "liar")
    assert odd["name"] in human.out
    assert "tensors decode to equal bits" in human.out


# ---- lanes that agree, or cannot be climbed ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["locate", "explain", "tokens", "weights"])
def test_an_honest_reference(call, monkeypatch, command):
    use(monkeypatch, liars.Liar)
    only = ("--only", "liar")
    assert call(command, "--model", liars.MODEL, *only).code == 0
    done = call(command, "--model", liars.MODEL, *only, "--format", "json")
    assert done.code == 0
    document(done)


def test_crossval_writes_a_receipt(call, tmp_path):
    receipt = tmp_path / "receipt.json"
    arguments = ("--model", liars.MODEL, "--only", "recorded", "--receipt", receipt, "--no-measure")
    done = call("crossval", *arguments, "--format", "json")
    assert done.code == 0, done.err
    made = document(done)
    assert made["digest"] == json.loads(receipt.read_text())["digest"]
    assert made["lanes"][0]["outcome"] == "pass"


@pytest.mark.parametrize("command", ["locate", "explain", "minimise", "tokens", "weights"])
def test_a_reference_that_is_not_there(call, monkeypatch, command):
    use(monkeypatch, lambda: ProcessRunner("process_fakes:refuses_to_start", timeout=120.0))
    done = call(command, "--model", liars.MODEL, "--only", "liar")
    assert done.code == 4
    assert "Traceback" not in done.err
    if command in ("tokens", "weights"):
        failed = call(command, "--model", liars.MODEL, "--only", "liar", "--format", "json")
        assert document(failed)["exit_code"] == 4


def test_a_reference_without_a_tokenizer(call):
    assert call("tokens", "--model", liars.MODEL, "--only", "oracle").code == 4


def test_noise(call):
    done = call("noise", "--model", liars.MODEL, "--format", "json")
    made = document(done)
    assert (done.code, made["cases"]) == (0, len(PROMPTS))
    assert 0.0 <= made["median"] <= made["largest"] < made["limits"]["largest"]["limit"]
    assert "near-tie" in call("noise", "--model", liars.MODEL).out


def test_record_and_replay(call, tmp_path):
    file = tmp_path / "a.recording"
    done = call("record", file, "--model", liars.MODEL, "--only", "oracle", "--format", "json")
    assert (done.code, document(done)["bytes"]) == (0, file.stat().st_size)
    replayed = call("locate", "--model", liars.MODEL, "--recording", file, "--only", "recording")
    assert replayed.code == 0, replayed.out + replayed.err


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """Files of what an engine with SiLU computes on a prompt."""
    hypotheses = [hypothesis(BY_NAME[name]) for name in ("activation=silu", "activation=gelu")]
    monkeypatch.setattr("crossval.infer.written", lambda: hypotheses)
    monkeypatch.setattr("crossval.infer_ids.written", lambda: hypotheses)
    monkeypatch.setattr("crossval.infer_ids.numbers", lambda _: [])

    def of(name, *, activation="silu", logits=True):
        ids = (1, 45, 300, 7, 7, 19)
        done = Oracle(str(liars.MODEL), semantics=Semantics(activation=activation)).run(Request(ids=ids, n_greedy=4))
        fields = {"prompt_ids": ids, "generated_ids": done.generated}
        np.savez(tmp_path / name, **fields, **({"logits": done.logits} if logits else {}))
        return tmp_path / name

    return of


def test_infer_names_the_cause_of_logits(call, seen):
    done = call("infer", seen("logits.npz"), "--model", liars.MODEL, "--format", "json")
    assert done.code == 1, done.err
    made = document(done)
    assert (made["wrong"], made["cause"]["name"], made["cause"]["evidence"]) == (True, "activation=silu", "logits")
    assert made["cause"]["touches"] == ["ffn_act"]
    done = call("infer", seen("logits.npz"), "--model", liars.MODEL)
    assert "computes SiLU in the feed-forward; replaying with activation=silu explains 100.0%" in done.out
    assert "no operation was observed, the hypothesis touches ffn_act." in done.out


def test_infer_lists_what_chooses_ids(call, seen):
    done = call("infer", seen("ids.npz", logits=False), "--model", liars.MODEL)
    assert done.code == 1, done.err
    assert "from greedy ids alone: the contract chooses another token at step" in done.out
    assert "choose exactly these tokens: activation=silu" in done.out
    made = document(call("infer", seen("ids.npz", logits=False), "--model", liars.MODEL, "--format", "json"))
    assert "activation=silu" in [choice["name"] for choice in made["ids"]["reproducing"]]


def test_infer_says_so_where_nothing_is_wrong(call, seen):
    for logits in (True, False):
        path = seen("fine.npz", activation="relu2", logits=logits)
        done = call("infer", path, "--model", liars.MODEL, "--format", "json")
        assert done.code == 0, done.err
        assert document(done)["wrong"] is False


@pytest.mark.slow
def test_drift(tmp_path):
    places = ("--out", tmp_path / "drift.json", "--work", tmp_path)
    done = command_line.run("validate", "drift", "--sample", 2, *places, "--format", "json")
    assert json.loads(done.out) == json.loads((tmp_path / "drift.json").read_text())
    document(done)
    done = command_line.run("validate", "drift", "--sample", 2, "--evidence", "ids", *places, "--format", "json")
    assert document(done)["evidence"] == "ids"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("drift", "--evidence", "words"), 2, "'words' is no evidence"),
        (("locate", "--nonsense"), 2, "No such option"),
        (("locate", "--model", "none.gguf"), 3, "none.gguf"),
        (("weights", "--model", liars.MODEL, "--only", "nonesuch"), 2, "no lane has 'nonesuch' in its name"),
        (("minimise", "--model", liars.MODEL, "--only", "b158"), 2, "lanes are meant where one must be"),
        (("noise",), 2, "0 models are named"),
        (("infer", "absent.npz"), 2, "0 models are named"),
        (("infer", "absent.npz", "--model", liars.MODEL), 2, "cannot be read"),
        (("infer", "absent.npz", "--model", liars.MODEL, "--numerics", "kv"), 2, "no name=value"),
        (("infer", "absent.npz", "--model", liars.MODEL, "--numerics", "kv=int3"), 2, "int3"),
    ],
)
def test_mistakes(call, arguments, code, message):
    done = call(*arguments)
    assert done.code == code, done.err
    assert message in done.err
    assert "Traceback" not in done.err


# ---- help ----------------------------------------------------------------------------------------------------------


def test_the_commands_are_these():
    assert set(typer.main.get_command(app).commands) == set(NAMES)


def help_of(*words):
    done = command_line.run("validate", *words, "--help")
    assert done.code == 0
    return done.out


@pytest.mark.parametrize("name", NAMES)
def test_help_has_exit_codes_a_format_and_an_example(name):
    text = help_of(name)
    assert "Exit codes: 0" in text
    assert "--format" in text
    assert f"bitnet validate {name}" in text.rpartition("Example:\n")[2]


def test_importing_the_commands_imports_nothing_heavy():
    program = f"import sys, crossval.validate_cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", *NAMES])
def test_the_examples_work(name, tmp_path, monkeypatch):
    """As a user would; what finds a fault leaves with 1, and what needs llama.cpp with 4 where there is none."""
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures", ignore=shutil.ignore_patterns("fuzz", "receipts"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.fspath(ROOT))
    for line in help_of(*([name] if name else [])).rpartition("Example:\n")[2].strip().splitlines():
        arguments = shlex.split(line)
        assert arguments[:2] == ["bitnet", "validate"]
        done = command_line.run(*arguments[1:])
        expected = {0, 1, 4} if "llama.cpp" in line else {0, 1} if name in ("drift", "infer") else {0}
        assert done.code in expected, (line, done.out, done.err)
        assert not re.search("Traceback|fault of this program", done.err)


def test_spans_of_special_tokens_have_no_text():
    from crossval.spans import differences

    tokenizer = liars.Liar().tokenizer
    ids = tokenizer.encode("the quick brown fox")
    assert differences(tokenizer, ids, ids) == ()
    doubled = (ids[0], *ids)
    [span] = differences(tokenizer, ids, doubled)
    assert (len(span.ours), span.theirs) == (0, (ids[0],))
    cut = differences(tokenizer, ids, ids[:-2])
    assert cut[0].ours == ids[-2:]
    assert cut[0].theirs == ()
    assert "the quick brown fox".endswith(cut[0].text.strip())


def test_failures_of_references_are_typed():
    from crossval.validate_lanes import UnavailableError, typed

    def refuses():
        raise ReferenceUnavailableError("no such library", remedy="build it")

    with pytest.raises(UnavailableError, match="no such library") as caught:
        typed(refuses)()
    assert (caught.value.exit_code, caught.value.remedy) == (4, "build it")


@pytest.mark.parametrize("command", ["crossval", "locate", "explain", "minimise"])
def test_names_of_lanes_are_printed_harmlessly(call, monkeypatch, tmp_path, command):
    """They hold the name of a file, which may hold anything."""
    use(monkeypatch, liars.Liar, name="evil\x1b[2J\n::error::x")
    more = {"crossval": ("--receipt", tmp_path / "r.json", "--no-measure"), "minimise": ("--only", "evil")}
    printed = call(command, *more.get(command, ()))
    both = printed.out + printed.err
    assert "evil⟨U+001B⟩[2J⟨U+000A⟩⟨U+003A⟩:error::x" in both
    assert "\x1b" not in both
