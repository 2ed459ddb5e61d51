"""The command line: exit codes, one message for a mistake, the old receipt kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest

import crossval.__main__ as command
from bitnet.gguf import TensorData, write
from crossval import commands
from receipts.verify import verify
from reference.process import ProcessRunner

ROOT = Path(__file__).parents[1]
OLD = '{"an": "old receipt"}\n'


@pytest.fixture
def receipt(tmp_path):
    path = tmp_path / "ci" / "inference.json"
    path.parent.mkdir()
    path.write_text(OLD)
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("BITNET_GGUF", "BITNET_NUM_THREADS", "BITNET_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("crossval.run.N_GREEDY", 4)
    monkeypatch.setattr("crossval.run.N_QUALITY", 32)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, receipt):
    """Runs `python -m crossval …` in this process: its exit code, standard output and standard error."""

    def main(*arguments):
        places = ["--receipt", receipt, "--work", tmp_path / "work", "--threads", "1", "--no-measure"]
        typed = ["crossval", *arguments[:1], *(places if arguments[:1] == ("run",) else ()), *arguments[1:]]
        typed = [str(part) for part in typed]
        monkeypatch.setattr(sys, "argv", typed)
        with pytest.raises(SystemExit) as ended:
            command.main()
        seen = capsys.readouterr()
        assert "Traceback" not in seen.out + seen.err
        return ended.value.code, seen.out, seen.err

    return main


def test_a_run_that_passes(call, receipt):
    code, out, err = call("run", "--model", liars.MODEL, "--only", "recorded")
    assert code == 0, err
    assert out == f"wrote {receipt}: 1 lanes, ok\n"
    assert "1/1 ok" in err
    assert "b158_a · bitnet.cpp (recorded)" in err
    report = verify(receipt)
    assert report.valid
    assert report.exit_code == 0


def test_the_model_may_be_named_by_the_environment(call, monkeypatch):
    monkeypatch.setenv("BITNET_GGUF", golden_models.model("llama_tied"))
    code, out, _ = call("run", "--only", "recorded")
    assert (code, "1 lanes, ok" in out) == (0, True)


def use(monkeypatch, reference, **changes):
    monkeypatch.setattr("crossval.run.lanes", lambda *_, **__: [liars.plan(reference, **changes)])


def test_a_parity_failure(call, receipt, monkeypatch):
    use(monkeypatch, liars.DoublesAScale)
    code, out, err = call("run", "--model", liars.MODEL)
    assert (code, out) == (1, f"wrote {receipt}: 1 lanes, failed\n")
    assert "1/1 FAIL           liar" in err
    assert verify(receipt).valid
    assert verify(receipt).exit_code == 1


def test_a_reference_that_is_not_there(call, receipt, monkeypatch):
    use(monkeypatch, lambda: ProcessRunner("process_fakes:refuses_to_start", timeout=120.0))
    code, out, err = call("run", "--model", liars.MODEL)
    assert (code, out) == (4, f"wrote {receipt}: 1 lanes, failed\n")
    assert "unsupported    liar" in err
    assert verify(receipt).valid


def test_a_reference_that_dies(call, receipt, monkeypatch):
    use(monkeypatch, lambda: ProcessRunner("liars:in_child", {"kind": "kill", "after": 1}, timeout=120.0))
    code, _, err = call("run", "--model", liars.MODEL)
    assert code == 4
    assert "ERROR          liar" in err
    report = verify(receipt)
    assert report.valid
    assert "killed by signal 9" in report.receipt.lanes[0].rung("operations").why


def unknown_architecture(path: Path) -> None:
    data = np.zeros((4, 16), np.float32)
    tensors = [TensorData(name="token_embd.weight", shape=data.shape, type=0, data=data.view(np.uint8).reshape(-1))]
    write(path, {"general.architecture": "mamba"}, tensors)


BAD = {
    "absent.gguf": (lambda path: None, "absent.gguf"),
    "text.gguf": (lambda path: path.write_text("not a model\n" * 50), "text.gguf"),
    "cut.gguf": (lambda path: path.write_bytes(liars.MODEL.read_bytes()[:400_000]), "cut.gguf"),
    "empty.gguf": (lambda path: path.write_bytes(b""), "empty.gguf"),
    "mamba.gguf": (unknown_architecture, "architecture 'mamba' is not one this engine knows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_file(call, receipt, tmp_path, name):
    make, message = BAD[name]
    make(tmp_path / name)
    code, out, err = call("run", "--model", tmp_path / name)
    assert (code, out) == (3, "")
    told = [line for line in err.splitlines() if line.strip()]
    assert told[0].startswith("crossval: ")
    assert message in told[0]
    assert len(told) <= 2
    assert all("hint:" in line for line in told[1:])
    assert receipt.read_text() == OLD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--nonesuch"), "No such option"),
        (("run", "--threads", "0"), "--threads"),
        (("run", "--model", str(liars.MODEL), "--only", "nonesuch"), "no lane has 'nonesuch' in its name"),
        (("walk",), "No such command"),
    ],
)
def test_wrong_usage(call, receipt, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert receipt.read_text() == OLD


def test_a_variable_without_meaning(call, monkeypatch, tmp_path, receipt):
    monkeypatch.setenv("BITNET_NUM_THREADS", "many")
    monkeypatch.setattr(sys, "argv", ["crossval", "run", "--model", str(liars.MODEL), "--receipt", str(receipt)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert receipt.read_text() == OLD


def test_a_receipt_that_cannot_be_written_is_told_at_once(call, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    argv = ["crossval", "run", "--model", str(liars.MODEL), "--receipt", str(tmp_path / "file" / "r.json")]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr("crossval.run.load", lambda _: pytest.fail("it began to work"))
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2


def test_an_interruption(call, receipt, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("crossval.run.Run.climb", interrupted)
    code, out, err = call("run", "--model", liars.MODEL)
    assert (code, out) == (130, "")
    assert "crossval: interrupted; the old receipt is untouched" in err
    assert receipt.read_text() == OLD


def test_help_says_the_exit_codes(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "rung by rung" in out


def test_a_lane_that_deviates_as_declared_is_marked_so():
    lane = type("Lane", (), {"deviates_as_declared": True, "outcome": "fail"})
    assert commands.mark(lane) == "as declared"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(tmp_path, receipt):
    arguments = ["--model", str(liars.MODEL), "--only", "oracle", "--receipt", str(receipt)]
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "crossval", "run", *arguments, "--work", str(tmp_path / "work")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "work").is_dir():  # it has begun
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted; the old receipt is untouched" in err
    assert receipt.read_text() == OLD
