"""The engine as a witness: a receipt of this machine replays to the bit, and not on a model with another bit."""

from __future__ import annotations

import shutil
from dataclasses import replace

import liars
import pytest

from crossval.plan import ORACLE_RUNGS
from crossval.run import run
from crossval.witness import EngineReplayer, open_runner
from receipts.errors import ReceiptError, UnavailableError
from receipts.verify import ReplayRequest, verify
from reference.oracle import Oracle


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A receipt of one oracle lane, and the folder it lies in."""
    folder = tmp_path_factory.mktemp("run")
    planned = liars.plan(lambda: Oracle(str(liars.MODEL)), name="oracle", as_default=True, required_rungs=ORACLE_RUNGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossval.run.N_GREEDY", 4)
        patch.setattr("crossval.run.lanes", lambda *_, **__: [planned])
        options = liars.options(folder, models=(liars.MODEL,))
        return run(options, liars.quiet, lambda *_: None), options.receipt


def codes(path, runner):
    report = verify(path, gate=False, replay=ReplayRequest(runner=runner, k=None))
    return report.exit_code, {c.name: c.outcome for c in report.checks if c.level == "replay"}


def test_a_receipt_replays(made):
    code, found = codes(made[1], open_runner([liars.MODEL]))
    assert code == 0
    assert found["replay.model"] == found["replay.case"] == "pass"


def test_one_bit_of_the_weights_is_noticed(made, tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.witness.FOLDERS", ())
    raw = bytearray(liars.MODEL.read_bytes())
    raw[-100] ^= 1
    other = tmp_path / liars.MODEL.name
    other.write_bytes(raw)
    code, found = codes(made[1], open_runner([other]))
    assert code == 5
    assert found["replay.model"] == "fail"


def test_a_missing_model_is_inconclusive(made, tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.witness.FOLDERS", ())
    assert codes(made[1], open_runner([tmp_path]))[0] == 4


def test_a_renamed_model_is_found_by_its_hash(made, tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.witness.FOLDERS", ())
    shutil.copy(liars.MODEL, tmp_path / "renamed.gguf")
    assert codes(made[1], open_runner([tmp_path]))[0] == 0


def test_what_the_engine_refuses_is_no_traceback(made):
    receipt, _ = made
    runner = EngineReplayer([liars.MODEL])
    model, case = receipt.models[0], receipt.cases[0]
    with pytest.raises(ReceiptError, match="refuses"):
        runner.case(model, replace(case, prompt_ids=(2**30,)))
    with pytest.raises(ReceiptError, match="context"):
        runner.case(model, replace(case, prompt_ids=(1,) * 10**5))
    with pytest.raises(UnavailableError, match="numerics"):
        runner.case(model, replace(case, numerics={"activation": "int3"}))
