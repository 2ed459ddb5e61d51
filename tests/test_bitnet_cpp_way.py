"""The interface first, then the server, each with its reason; and a lane of a server climbs what it can."""

from __future__ import annotations

import fake_llama_server as fake
import liars
import pytest
from test_bitnet_cpp_build import tree

from crossval.live import Live
from crossval.plan import SERVER_RUNGS
from crossval.run import run
from receipts.read import read
from receipts.verify import verify
from reference import bitnet_cpp_build
from reference.bitnet_cpp_way import choose, open_bitnet_cpp
from reference.runner import ReferenceUnavailableError


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Whether there is one."""

    def compiled(found):
        if not answers["here"]:
            raise ReferenceUnavailableError("there is no C++ compiler here", remedy="install one")
        return tmp_path / "shim.so"

    answers = {"here": True}
    monkeypatch.setattr(bitnet_cpp_build, "compile_shim", compiled)
    return answers


def test_the_interface_comes_first(tmp_path, compiler):
    fake.place(tree(tmp_path))
    assert (choose(tmp_path).kind, choose(tmp_path).why, choose(tmp_path).binary) == ("shim", "", None)
    assert choose(tmp_path, "shim").kind == "shim"
    wished = choose(tmp_path, "server")
    assert (wished.kind, wished.why) == ("server", "as wished")


def test_the_server_where_there_is_no_compiler_or_no_header(tmp_path, compiler):
    binary = fake.place(tree(tmp_path))
    compiler["here"] = False
    found = choose(tmp_path)
    assert (found.kind, found.binary, found.why) == ("server", binary, "there is no C++ compiler here")
    alone = tmp_path / "alone"
    fake.place(alone)
    assert choose(alone).why.startswith("there is no llama.h")


def test_neither_is_told_with_both_reasons(tmp_path, compiler, monkeypatch):
    with pytest.raises(ReferenceUnavailableError, match=r"no llama\.h in .*; and there is no llama-server"):
        choose(tmp_path)
    fake.place(tmp_path)
    with pytest.raises(ReferenceUnavailableError, match=r"no llama\.h"):
        choose(tmp_path, "shim")
    monkeypatch.delenv(bitnet_cpp_build.DIRECTORY_VARIABLE, raising=False)
    with pytest.raises(ReferenceUnavailableError, match=r"no bitnet\.cpp here"):
        choose()
    monkeypatch.setenv(bitnet_cpp_build.DIRECTORY_VARIABLE, str(tmp_path))
    assert choose().root == tmp_path
    with pytest.raises(ReferenceUnavailableError, match="no model file"):
        open_bitnet_cpp(tmp_path / "none.gguf")


MODEL = liars.MODEL


@pytest.fixture
def climbed(tmp_path, monkeypatch):
    """The lane of a server that computes as the oracle does, or a lie in it."""
    monkeypatch.setattr("crossval.run.N_GREEDY", 3)
    monkeypatch.setattr("crossval.run.N_QUALITY", 8)
    monkeypatch.setattr("crossval.plan.PROMPTS", liars.PROMPTS)
    fake.place(tmp_path)

    def climb(activation=""):
        monkeypatch.setenv("FAKE_ORACLE", activation or "contract")
        options = liars.options(tmp_path, models=(MODEL,), only="bitnet.cpp (server)", live=Live(bitnet_cpp=tmp_path))
        [lane] = run(options, liars.quiet, lambda *_: None).lanes
        return lane, options.receipt

    return climb


@pytest.mark.slow
def test_a_lane_of_a_server_climbs_and_its_receipt_is_valid(climbed):
    lane, receipt = climbed()
    assert {rung.name: rung.outcome for rung in lane.rungs if rung.name in SERVER_RUNGS} == dict.fromkeys(
        SERVER_RUNGS, "pass"
    )
    for name in ("weights", "operations"):
        assert lane.rung(name).outcome == "unsupported"
        assert "llama-server" in lane.rung(name).why
    [reference] = [one for one in read(receipt).references if one.key == lane.reference]
    assert reference.obtained == "server"
    assert "llama.h" in reference.detail["chosen"]
    report = verify(receipt)
    assert report.valid, [(check.name, check.path, check.message) for check in report.failures]


@pytest.mark.slow
def test_the_defect_of_a_server_is_named_from_its_log_probabilities(climbed):
    lane, receipt = climbed("silu")
    assert (lane.outcome, lane.rung("logits").outcome, lane.climbed) == ("fail", "fail", "tokens")
    assert (lane.blame, lane.cause.name, lane.cause.evidence) == ("reference", "activation=silu", "logits")
    assert lane.cause.explained > 0.95
    assert verify(receipt).valid
