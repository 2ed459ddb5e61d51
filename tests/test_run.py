"""Whole runs: what is written, what is refused, and that an old receipt outlives every accident."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest
from liars import Liar
from model_edits import edited, with_tail_scale

from bitnet import gguf as container
from bitnet.errors import GGUFError, ModelFileError, ResourceLimitError, UsageError
from crossval.engine import EngineRunner, source_digest
from crossval.environment import now
from crossval.plan import ORACLE_RUNGS, RECORDED_RUNGS
from crossval.run import Run, run
from crossval.verdict import exit_code
from receipts import ReceiptError
from receipts.tables import COLUMNS
from receipts.verify import verify
from reference.llama_cpp_build import ensure_library
from reference.oracle import Oracle
from reference.process import ProcessRunner
from reference.recorded import Recorded
from reference.runner import Observation, ReferenceUnavailableError, Request
from reference.semantics import Semantics

OLD = '{"an": "old receipt"}\n'


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 4)


@pytest.fixture
def lanes(monkeypatch):
    """Gives a run the lanes of a test instead of those planned for its models."""

    def use(*planned):
        monkeypatch.setattr("crossval.run.lanes", lambda *_, **__: list(planned))

    return use


def old_receipt(folder: Path) -> Path:
    path = folder / "ci" / "inference.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OLD)
    return path


def finished(folder: Path, say=liars.quiet, **changes):
    """Run, and check what must hold of any receipt whatever it says."""
    options = liars.options(folder, **{"models": (liars.MODEL,), **changes})
    told = []
    receipt = run(options, say, lambda lane, number, total: told.append((lane.name, number, total)))
    assert told == [(lane.name, i, len(receipt.lanes)) for i, lane in enumerate(receipt.lanes, 1)]
    report = verify(options.receipt)
    assert report.valid, [(check.name, check.path, check.message) for check in report.failures]
    assert report.gate_passed == (exit_code(receipt) == 0)
    assert json.loads(options.receipt.read_text())["digest"] == receipt.digest
    assert not list(options.receipt.parent.glob("**/*.part"))
    return receipt


# ---- runs that end ------------------------------------------------------------------------------------------------


def test_everything_passes(tmp_path, lanes):
    lanes(
        liars.plan(Liar, name="other"),
        liars.plan(lambda: Oracle(str(liars.MODEL)), name="oracle", as_default=True, required_rungs=ORACLE_RUNGS),
    )
    old_receipt(tmp_path)
    receipt = finished(tmp_path, measure=True)
    assert exit_code(receipt) == 0
    assert receipt.parity.status == "ok"
    assert receipt.deterministic
    assert [trial.what for trial in receipt.determinism] == ["threads", "repeat", "batch"]
    assert receipt.compute_path == "real"
    assert {side.table for side in receipt.side_files} == set(COLUMNS)
    assert [record.passed for record in receipt.accuracy] == [True]
    assert {lane.noise_floor.how for lane in receipt.lanes} == {
        "the oracle with itself, what float32 leaves open moved by one unit in the last place"
    }


def test_a_recorded_lane_passes(tmp_path, lanes):
    def replay():
        return Recorded(liars.MODEL, golden_models.FOLDER)

    lanes(liars.plan(replay, name="recorded", required_rungs=RECORDED_RUNGS))
    receipt = finished(tmp_path)
    assert exit_code(receipt) == 0
    [lane] = receipt.lanes
    assert lane.rung("operations").compared == 65
    assert lane.rung("tokens").compared == 6


LIARS = {
    "nan": (lambda: Liar(change=liars.nan), 1),
    "zero rows": (lambda: Liar(change=liars.zero_rows), 1),
    "narrow taps": (lambda: Liar(change=liars.narrow_taps), 1),
    "silu": (lambda: Liar(semantics=Semantics(activation="silu")), 1),
    "single steps": (lambda: Liar(change=liars.wrong_when_single_after(9)), 1),
    "nan in single steps": (lambda: Liar(change=liars.only_single(liars.nan)), 1),
    "unlikely choice": (lambda: liars.OtherChoice(at=2), 1),
    "same library as the engine": (lambda: Liar(info={"library_sha256": source_digest()}), 1),
    "fewer weights": (liars.FewerWeights, 1),
    "NaN weights": (liars.NaNWeights, 1),
    "shows next to nothing": (lambda: Liar(change=liars.embd_only), 4),
    "dies": (lambda: liars.Dies(requests=2), 4),
    "other numerics": (lambda: Liar(info={"numerics": {"activation": "int4"}}), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", LIARS)
def test_the_receipt_of_a_liar_is_valid_and_its_gate_is_shut(tmp_path, lanes, monkeypatch, name):
    reference, code = LIARS[name]
    if name != "silu":
        monkeypatch.setattr("crossval.run.cause_of", lambda *_, **__: None)
    lanes(liars.plan(reference, name=name))
    receipt = finished(tmp_path)
    assert exit_code(receipt) == code
    assert receipt.parity.status != "ok"


def test_the_receipt_of_an_engine_that_contradicts_itself_is_valid_and_its_gate_is_shut(tmp_path, lanes, monkeypatch):
    """Its decoding loop goes wrong at the third token, though its logits on given ids are right."""

    class Wanders(EngineRunner):
        def run(self, request: Request) -> Observation:
            seen = super().run(request)
            generated = tuple(i ^ (step == 2) for step, i in enumerate(seen.generated))
            return replace(seen, generated=generated, ids=(*request.ids, *generated))

    monkeypatch.setattr("crossval.run.EngineRunner", Wanders)
    lanes(liars.plan(Liar))
    receipt = finished(tmp_path)
    assert liars.first_fault(receipt.lanes[0]) == ("greedy", "fail")
    assert "though the engine itself chose" in receipt.lanes[0].rung("greedy").why
    assert receipt.lanes[0].rung("greedy").measured == 2.0
    assert exit_code(receipt) == 1


def test_the_same_run_twice_gives_the_same_digests(tmp_path, lanes):
    lanes(liars.plan(Liar))
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", n_threads=3)
    assert [(c.logits_sha256, c.ids_sha256) for c in one.cases] == [(c.logits_sha256, c.ids_sha256) for c in two.cases]
    assert len(one.cases) == 2
    assert [side.sha256 for side in one.side_files] == [side.sha256 for side in two.side_files]
    assert [lane.rungs for lane in one.lanes] == [lane.rungs for lane in two.lanes]
    assert one.identity.run_id != two.identity.run_id


# ---- references in a process of their own -------------------------------------------------------------------------


class Child:
    """A liar in a child process, which a test can kill."""

    def __init__(self, kind="good", after=10**6, timeout=120.0):
        self.runner = ProcessRunner("liars:in_child", {"kind": kind, "after": after}, timeout=120.0)
        assert self.runner.info.name == "other"
        self.runner.timeout = timeout

    def kill_at(self, rung):
        def say(what):
            if what == f"liar: {rung}" and self.runner.pid:
                os.kill(self.runner.pid, signal.SIGKILL)

        return say


@pytest.mark.parametrize("rung", ["weights", "operations", "logits"])
def test_a_reference_killed_in_the_middle(tmp_path, lanes, rung):
    """The next request finds it dead, and starts no other in its place."""
    child = Child()
    lanes(liars.plan(lambda: child.runner))
    old = old_receipt(tmp_path)
    before = child.runner.pid
    receipt = finished(tmp_path, child.kill_at(rung), models=(liars.MODEL,))
    [lane] = receipt.lanes
    assert (lane.outcome, exit_code(receipt)) == ("error", 4)
    assert liars.first_fault(lane) == (rung, "error")
    assert "killed by signal 9 (SIGKILL)" in lane.rung(rung).why
    assert "Traceback" not in lane.rung(rung).why
    assert old.read_text() != OLD
    assert child.runner.pid != before


def test_a_reference_that_ends_itself_at_its_third_request(tmp_path, lanes):
    lanes(liars.plan(lambda: Child("kill", 2).runner))
    [lane] = finished(tmp_path).lanes
    assert (lane.outcome, lane.climbed) == ("error", "operations")


def test_a_reference_that_hangs(tmp_path, lanes):
    lanes(liars.plan(lambda: Child("hang", 0, timeout=2.0).runner))
    receipt = finished(tmp_path)
    assert liars.first_fault(receipt.lanes[0]) == ("operations", "error")
    assert "no answer within 2 s, killed" in receipt.lanes[0].rung("operations").why
    assert exit_code(receipt) == 4


def test_a_reference_that_refuses_to_start(tmp_path, lanes):
    lanes(liars.plan(lambda: ProcessRunner("process_fakes:refuses_to_start", timeout=120.0)))
    receipt = finished(tmp_path)
    assert receipt.lanes[0].outcome == "unsupported"
    assert receipt.lanes[0].rungs[0].why == "no library hint: build it"
    assert receipt.references[0].obtained == "unavailable"
    assert exit_code(receipt) == 4


def test_what_cannot_run_by_plan_is_told_and_not_required(tmp_path, lanes):
    never = replace(liars.plan(Liar, name="never"), impossible="it would take 9 GB", required=False)
    lanes(never, liars.plan(Liar))
    receipt = finished(tmp_path)
    assert [lane.outcome for lane in receipt.lanes] == ["unsupported", "pass"]
    assert receipt.lanes[0].rungs[0].why == "it would take 9 GB"
    assert exit_code(receipt) == 0


# ---- runs that are refused or broken off --------------------------------------------------------------------------


def refused(folder, error, match, **changes):
    old = old_receipt(folder)
    with pytest.raises(error, match=match):
        run(liars.options(folder, **changes), liars.quiet, lambda *_: None)
    assert old.read_text() == OLD
    assert list(old.parent.iterdir()) == [old]


def test_models_that_cannot_be_read(tmp_path):
    whole = liars.MODEL.read_bytes()
    (tmp_path / "text.gguf").write_text("this is not a model\n" * 100)
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.gguf").write_bytes(whole[:40])
    refused(tmp_path, ModelFileError, "absent", models=(tmp_path / "absent.gguf",))
    for name in ("text", "empty", "cut", "header"):
        refused(tmp_path, GGUFError, name, models=(tmp_path / f"{name}.gguf",))
    refused(tmp_path, GGUFError, "cut", models=(liars.MODEL, tmp_path / "cut.gguf"))
    refused(tmp_path, ModelFileError, tmp_path.name, models=(tmp_path,))


def test_usage_that_makes_no_sense(tmp_path):
    refused(tmp_path, UsageError, "no lane has 'nonesuch' in its name", models=(liars.MODEL,), only="nonesuch")
    refused(tmp_path, UsageError, "no models to compare")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(liars.MODEL, tmp_path / "elsewhere")
    both = (liars.MODEL, tmp_path / "elsewhere" / liars.MODEL.name)
    refused(tmp_path, UsageError, "two models are called 'b158_a'", models=both)


@pytest.mark.parametrize("which", ["receipt", "work"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, which):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("crossval.run.load", lambda _: pytest.fail("it began to work"))
    where = tmp_path / "file" / "below" / "inference.json"
    refused(tmp_path, UsageError, f"cannot be written .*\n  hint: name another place with --{which}", **{which: where})


def test_an_interruption_leaves_the_old_receipt_and_no_child(tmp_path, lanes):
    child = Child()
    lanes(liars.plan(lambda: child.runner))
    old = old_receipt(tmp_path)

    def interrupt(what):
        if what == "liar: operations":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(liars.options(tmp_path, models=(liars.MODEL,)), interrupt, lambda *_: None)
    assert old.read_text() == OLD
    assert child.runner.pid is None


def test_a_receipt_that_cannot_be_moved_into_place_leaves_the_old_one(tmp_path, lanes, monkeypatch):
    lanes(liars.plan(lambda: (_ for _ in ()).throw(ReferenceUnavailableError("no"))))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(tmp_path, ReceiptError, "No space left on device", models=(liars.MODEL,))


def test_a_limit_of_this_machine_ends_the_run(tmp_path, lanes, monkeypatch):
    class Full(EngineRunner):
        def run(self, request: Request):
            raise ResourceLimitError("a KV cache of 9 tokens needs 9.0 GB")

    monkeypatch.setattr("crossval.run.EngineRunner", Full)
    lanes(liars.plan(Liar))
    refused(tmp_path, ResourceLimitError, "needs 9", models=(liars.MODEL,))


# ---- the parts ----------------------------------------------------------------------------------------------------


def test_an_engine_is_loaded_once_for_a_file_and_numerics(tmp_path):
    this = Run(liars.options(tmp_path), liars.quiet)
    one, two = this.climb(liars.plan(Liar, name="a")), this.climb(liars.plan(Liar, name="b"))
    assert (one.outcome, two.outcome) == ("pass", "pass")
    assert len({id(engine) for _, engine in this.evidence.engines.values()}) == 1
    this.climb(liars.plan(lambda: Liar(numerics={"activation": "none"}), name="c"))
    assert len({id(engine) for _, engine in this.evidence.engines.values()}) == 2


def test_a_copy_has_no_name_of_a_model(tmp_path, lanes):
    """Though both would be called b158_a.other, and are not the same: neither engine stands in for the other."""
    model, copy = tmp_path / "b158_a.other.gguf", tmp_path / "b158_a.1.other.gguf"
    edited(liars.MODEL, model, tensors={"blk.0.attn_q.weight": with_tail_scale(0.5)})
    edited(liars.MODEL, copy, keys={"general.name": "a copy"})
    wrong = liars.plan(lambda: Liar(model), model=model, name="the other")
    copied = replace(liars.plan(lambda: Liar(copy), name="the copy"), engine_file=copy, reference_file=copy)
    lanes(copied, wrong, replace(copied, name="the copy again", reference="once more"))
    receipt = finished(tmp_path, models=(liars.MODEL, model))
    assert exit_code(receipt) == 0
    assert {lane.name: lane.model for lane in receipt.lanes} == {
        "the copy": "b158_a.other.copy",
        "the other": "b158_a.other",
        "the copy again": "b158_a.other.copy",
    }
    hashes = {m.name: m.sha256 for m in receipt.models}
    assert set(hashes) == {"b158_a", "b158_a.other", "b158_a.other.copy"}
    assert hashes["b158_a.other"] == container.read(model).sha256()


def test_a_copy_that_is_a_model_too_has_its_name(tmp_path, lanes):
    copy = edited(liars.MODEL, tmp_path / "other.gguf", keys={"general.name": "a copy"})
    copied = replace(liars.plan(lambda: Liar(copy), name="the copy"), engine_file=copy, reference_file=copy)
    lanes(copied, liars.plan(lambda: Liar(copy), model=copy, name="the other"))
    receipt = finished(tmp_path, models=(liars.MODEL, copy))
    assert [lane.model for lane in receipt.lanes] == ["other", "other"]


def test_one_file_under_two_names_and_two_under_one_are_refused(tmp_path, lanes):
    shutil.copy(liars.MODEL, tmp_path / "again.gguf")
    both = (liars.MODEL, tmp_path / "again.gguf")
    refused(tmp_path, UsageError, "'b158_a' and 'again' are the same file", models=both)
    other = tmp_path / "below" / liars.MODEL.name
    other.parent.mkdir()
    edited(liars.MODEL, other, keys={"general.name": "a copy"})
    lanes(replace(liars.plan(Liar), engine_file=other))
    refused(tmp_path, UsageError, "two files are called 'b158_a.gguf'", models=(liars.MODEL,))


@pytest.mark.parametrize(
    ("changes", "what"), [({}, "lanes are called 'liar'"), ({"name": "b"}, "references are called 'liar · reference'")]
)
def test_lanes_and_references_of_one_name_are_refused_before_the_work(tmp_path, lanes, changes, what):
    one = liars.plan(lambda: pytest.fail("it began to work"))
    lanes(one, replace(one, **changes))
    refused(tmp_path, UsageError, f"two {what}", models=(liars.MODEL,))


def test_a_context_too_short_for_any_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.run.N_GREEDY", 1 << 20)
    with pytest.raises(UsageError, match="is too short"):
        Run(liars.options(tmp_path), liars.quiet).climb(liars.plan(Liar))


# ---- llama.cpp itself ---------------------------------------------------------------------------------------------

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.slow
def test_llama_cpp_is_blamed_for_silu_and_the_gate_holds(tmp_path):
    ensure_library()
    receipt = finished(tmp_path, models=(), fixtures=FIXTURES, only="tiny-relu2 · llama.cpp")
    [lane] = receipt.lanes
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("ffn_act", 0, "reference")
    assert lane.cause.name == "activation=silu"
    assert lane.known_deviation.status == "proven"
    assert exit_code(receipt) == 0


@pytest.mark.slow
@pytest.mark.parametrize("rung", ["operations", "quality"])
def test_llama_cpp_killed_in_the_middle(tmp_path, monkeypatch, rung):
    ensure_library()
    started = []

    class Watched(ProcessRunner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("crossval.plan.ProcessRunner", Watched)

    def kill(what):
        if what.endswith(f": {rung}"):
            os.kill(started[0].pid, signal.SIGKILL)

    receipt = finished(tmp_path, kill, models=(), fixtures=FIXTURES, only="tiny-silu · llama.cpp TQ2_0")
    assert liars.first_fault(receipt.lanes[0]) == (rung, "error")
    assert "killed by signal 9" in receipt.lanes[0].rung(rung).why
    assert exit_code(receipt) == 4


def test_a_model_whose_logits_are_no_numbers_fails_and_leaves_a_receipt(tmp_path):
    huge = {name: np.full(256, 3e38, np.float32) for name in ("blk.1.attn_norm.weight", "output_norm.weight")}
    model = edited(liars.MODEL, tmp_path / "huge.gguf", tensors=huge)
    run = Run(liars.options(tmp_path, measure=True), liars.quiet)
    lane = run.climb(liars.plan(lambda: liars.Liar(model), model=model))
    assert lane.outcome == "fail"
    written = run.receipt(now(), 1.0)
    assert {case.generated_ids for case in written.cases} == {()}
    assert verify(run.options.receipt, gate=False).failures == ()
