"""Every rung against references that lie: which rung catches each, how, and what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest
from liars import Liar

from bitnet import gguf as container
from bitnet.codecs import pack_i2_s, unpack_i2_s
from bitnet.errors import UsageError
from bitnet.gguf import TensorData, write
from crossval.engine import EngineRunner, source_digest
from crossval.ladder import CLIMB, failed_reference, unsupported
from receipts.record import RUNGS
from reference.oracle import Oracle
from reference.runner import Observation, ReferenceUnavailableError, Request
from reference.semantics import Semantics

IDS = (1, 45, 300, 7, 7, 19)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few tokens, and no search for causes: that is what test_attribute is for."""
    monkeypatch.setattr("crossval.run.N_GREEDY", 8)
    monkeypatch.setattr("crossval.run.cause_of", lambda *_, **__: None)


def test_the_ladder_is_the_agreed_one():
    assert tuple(CLIMB) == RUNGS


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossval.run.N_GREEDY", 8)
        return liars.climb(Liar(), tmp_path_factory.mktemp("honest"))


def test_an_honest_reference_climbs_to_the_top(honest):
    lane = honest
    assert [rung.outcome for rung in lane.rungs] == ["pass"] * 8, lane
    assert (lane.outcome, lane.climbed, lane.located, lane.blame, lane.cause) == ("pass", "quality", None, None, None)
    assert all(rung.compared > 0 for rung in lane.rungs)
    [vote] = lane.votes
    assert set(vote.witnesses.values()) == {"agrees"}
    assert lane.noise_floor is not None
    assert lane.noise_floor.value < 1e-2


def altered(tmp_path, name="blk.1.ffn_up.weight", row=3, column=70):
    """A copy of the model with one trit flipped."""
    source = container.read(liars.MODEL)
    tensors = []
    for key, info in source.tensors.items():
        data = source.raw(key).copy()
        if key == name:
            ternary = unpack_i2_s(data, info.shape)
            trits = ternary.trits.copy()
            trits[row, column] = 1 if trits[row, column] < 1 else -1
            data = pack_i2_s(trits, float(ternary.scale))
        tensors.append(TensorData(name=key, shape=info.shape, type=info.type, data=data))
    path = tmp_path / "flipped.gguf"
    write(path, {k: (source.types[k], v) if np.isscalar(v) else v for k, v in source.metadata.items()}, tensors)
    return path


#: Liar → (rung that catches it, how it ends, words of its reason).
CAUGHT = {
    "nan": (lambda: Liar(change=liars.nan), "operations", "fail", "the first wrong one is embd"),
    "zero rows": (lambda: Liar(change=liars.zero_rows), "operations", "fail", "different shapes"),
    "zero rows of taps": (lambda: Liar(change=liars.zero_row_taps), "operations", "fail", "embd: ours has shape"),
    "narrow taps": (lambda: Liar(change=liars.narrow_taps), "operations", "fail", r"theirs \[\d+, 255\]"),
    "narrow logits": (lambda: Liar(change=liars.narrow_logits), "operations", "fail", r"theirs \[\d+, 511\]"),
    "captures are not its logits": (
        lambda: Liar(change=liars.scaled_logits_only),
        "operations",
        "error",
        "result_output is not the logits",
    ),
    "shows next to nothing": (
        lambda: Liar(change=liars.embd_only),
        "operations",
        "inconclusive",
        "nothing was captured of layer 0, layer 1, layer 2",
    ),
    "hides the head": (lambda: Liar(change=liars.without_the_head), "operations", "inconclusive", "of the head"),
    "shows nothing": (lambda: Liar(change=liars.without_taps), "operations", "unsupported", "offers no intermediates"),
    "says other ids": (lambda: Liar(change=liars.ids_of_another_answer), "operations", "error", "evaluated other ids"),
    "evaluates other ids": (lambda: liars.OffByOne(), "operations", "fail", "the first wrong one is embd"),
    "token outside": (
        lambda: Liar(change=liars.token_that_does_not_exist),
        "logits",
        "error",
        "token 1000000000 from a vocabulary of 512",
    ),
    "tokens of the same length": (lambda: liars.OtherIds(), "tokens", "fail", "different ids: 'the quick"),
    "doubles a scale": (lambda: liars.DoublesAScale(), "weights", "fail", r"blk\.1\.ffn_gate\.weight row \d+ column"),
    "fewer weights": (lambda: liars.FewerWeights(), "weights", "fail", "different shapes"),
    "NaN weights": (lambda: liars.NaNWeights(), "weights", "fail", "differs by inf"),
    "same library": (
        lambda: Liar(info={"library_sha256": source_digest()}),
        "identity",
        "fail",
        "both sides run the same code",
    ),
    "same family": (lambda: Liar(info={"family": "bitnet"}), "identity", "fail", "the same code"),
    "no file": (lambda: Liar(info={"model_sha256": ""}), "identity", "inconclusive", "which file"),
    "unlikely choice": (lambda: liars.OtherChoice(), "greedy", "fail", r"2 of 16 .*one, step 5: .* margin -"),
    "dies at once": (lambda: liars.Dies(requests=0), "operations", "error", "SIGSEGV.*reading address 0"),
    "dies later": (lambda: liars.Dies(requests=4), "logits", "error", "SIGSEGV"),
    "single steps": (
        lambda: Liar(change=liars.wrong_when_single_after(9)),
        "decode",
        "fail",
        "the reference differs from itself between a batch and single tokens",
    ),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_liar_is_caught(tmp_path, name):
    reference, rung, outcome, why = CAUGHT[name]
    lane = liars.climb(reference, tmp_path)
    assert liars.first_fault(lane) == (rung, outcome), lane.rung(rung)
    assert re.search(why, lane.rung(rung).why), lane.rung(rung).why
    assert lane.outcome == outcome
    above = lane.rungs[RUNGS.index(rung) + 1 :]
    assert all((r.outcome, r.why) == ("inconclusive", f"not tried: {rung} did not hold") for r in above)
    assert lane.climbed == ((None, *RUNGS)[RUNGS.index(rung)])


def test_one_flipped_trit_is_caught_by_name(tmp_path):
    lane = liars.climb(Liar(altered(tmp_path)), tmp_path)
    assert liars.first_fault(lane) == ("weights", "fail")
    assert "blk.1.ffn_up.weight row 3 column 70" in lane.rung("weights").why
    [vote] = lane.votes
    assert (vote.rung, vote.odd, lane.blame) == ("weights", lane.reference, "reference")
    assert vote.witnesses == {"bitnet": "agrees", "oracle · liar": "agrees", lane.reference: "differs"}


def test_one_flipped_trit_is_caught_though_the_weights_are_shown_as_they_should_be(tmp_path):
    lane = liars.climb(Liar(altered(tmp_path), reads=liars.MODEL), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer, lane.located.worst_index) == ("ffn_up", 1, 3)
    assert lane.blame == "reference"


def test_a_doubled_scale_of_ffn_gate_is_invisible_in_the_logits(tmp_path):
    """Hence the weights rung: the sub-norm divides the scale out, but for its epsilon."""
    honest = EngineRunner(liars.MODEL, n_threads=1)
    layers = list(honest.model.weights.layers)
    doubled = EngineRunner(liars.MODEL, n_threads=1)
    gate = layers[1].gate
    doubled.model.network.weights = replace(
        doubled.model.weights,
        layers=(layers[0], replace(layers[1], gate=replace(gate, scale=gate.scale * np.float32(2))), *layers[2:]),
    )
    a, b = honest.run(Request(ids=IDS)).logits, doubled.run(Request(ids=IDS)).logits
    assert not np.array_equal(a, b)
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 5e-2  # the size of one flipped rounding
    assert np.array_equal(a.argmax(axis=1), b.argmax(axis=1))


def test_another_file_passes_only_if_its_weights_are_compared(tmp_path):
    rungs = tuple(r for r in RUNGS if r not in ("weights", "tokens"))
    lane = liars.climb(Liar(altered(tmp_path)), tmp_path, required_rungs=rungs)
    assert liars.first_fault(lane) == ("identity", "fail")
    assert "its weights are not compared" in lane.rung("identity").why


# ---- without roundings, where one position counts -----------------------------------------------------------------

FLOATS = {"activation": "none"}


def floats(change=None):
    return Liar(numerics=FLOATS, change=change)


def test_floats_agree(tmp_path):
    lane = liars.climb(floats(), tmp_path)
    assert lane.outcome == "pass", lane
    assert lane.rung("logits").limit <= 1e-5


def test_one_per_cent_at_one_position_of_the_prompt(tmp_path):
    lane = liars.climb(floats(liars.one_row(2, 1.01)), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer, lane.located.positions) == ("result_output", -1, (2,))
    assert lane.blame == "reference"


def test_one_per_cent_at_one_position_of_the_prompt_with_int8(tmp_path):
    """A flipped rounding moves a row by as much; on locked inputs nothing does."""
    lane = liars.climb(Liar(change=liars.one_row(2, 1.01)), tmp_path)
    assert (lane.located.tap, lane.located.positions) == ("result_output", (2,))


def test_one_per_cent_at_one_position_of_the_continuation(tmp_path):
    n = len(EngineRunner(liars.MODEL).tokenize(liars.PROMPTS[0].text))
    lane = liars.climb(floats(liars.one_row(n + 3, 1.01)), tmp_path)
    assert liars.first_fault(lane) == ("decode", "fail")
    assert "largest 9.9e-03" in lane.rung("decode").why or "largest 1.0e-02" in lane.rung("decode").why


def test_logits_times_one_and_a_half(tmp_path):
    """The choice of every token, and every cosine, is as it was."""
    lane = liars.climb(Liar(semantics=Semantics(logit_scale=1.5)), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("result_output", -1, "reference")


# ---- an engine that is wrong --------------------------------------------------------------------------------------


def test_logits_that_its_operations_do_not_explain_are_put_to_a_vote(tmp_path):
    """What it shows is honest; what it answers when nobody looks is not."""

    def unwatched(request: Request, seen: Observation) -> Observation:
        return seen if request.taps else replace(seen, logits=np.roll(seen.logits, 1, axis=1))

    lane = liars.climb(Liar(change=unwatched), tmp_path)
    assert liars.first_fault(lane) == ("logits", "fail")
    assert (lane.rung("operations").outcome, lane.located, lane.blame) == ("pass", None, "reference")
    assert [(vote.rung, vote.odd) for vote in lane.votes] == [("operations", None), ("logits", lane.reference)]


class Restless(EngineRunner):
    """Adds noise of its own to what it decodes: it would excuse itself if its own noise were its limit."""

    size = 0.05

    def run(self, request: Request) -> Observation:
        seen = super().run(request)
        if request.lock:
            return seen
        rng = np.random.default_rng(len(request.ids) + (request.n_batch or 0))
        noise = 1 + self.size * rng.standard_normal(seen.logits.shape).astype(np.float32)
        return replace(seen, logits=seen.logits * noise)


def test_an_engine_cannot_raise_the_limit_it_is_judged_by(tmp_path, monkeypatch, honest):
    monkeypatch.setattr("crossval.run.EngineRunner", Restless)
    for size in (0.1, 5.0):
        monkeypatch.setattr(Restless, "size", size)
        lane = liars.climb(Liar(), tmp_path)
        assert liars.first_fault(lane) == ("logits", "fail")
        assert lane.noise_floor == honest.noise_floor


def test_a_reference_cannot_raise_the_limit_it_is_judged_by(tmp_path, honest):
    lane = liars.climb(Liar(change=liars.wrong_when_single_after(9)), tmp_path)
    assert lane.rung("decode").outcome == "fail"
    assert lane.noise_floor == honest.noise_floor


class Undecided(EngineRunner):
    """Chooses another token when it runs freely than on the same ids given to it."""

    def run(self, request: Request) -> Observation:
        seen = super().run(request)
        if not request.n_greedy:
            return seen
        second = int(np.argsort(seen.logits[-1])[-2])
        return replace(seen, generated=(*seen.generated[:-1], second))


def test_an_engine_that_contradicts_itself_is_no_near_tie(tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.run.EngineRunner", Undecided)
    monkeypatch.setattr("crossval.noise.Noise.margin", property(lambda _: 1e9))
    lane = liars.climb(Liar(), tmp_path)
    assert liars.first_fault(lane) == ("greedy", "fail")
    assert "though the engine itself chose" in lane.rung("greedy").why


def test_a_near_tie_is_named_and_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.noise.Noise.margin", property(lambda _: 1e9))

    class SecondBest(liars.OtherChoice):
        def run(self, request: Request) -> Observation:
            seen = super().run(request)
            if not seen.generated:
                return seen
            # its own logits say that the two are level, but for less than any noise
            logits = seen.logits.copy()
            row = logits[len(request.ids) - 1 + self.at]
            row[seen.generated[self.at]] = np.nextafter(row.max(), np.float32(np.inf))
            return Observation(ids=seen.ids, logits=logits, generated=seen.generated)

    monkeypatch.setattr("crossval.envelope.LARGEST_LIMIT", 1e9)
    monkeypatch.setattr("crossval.noise.Noise.largest", property(lambda _: 1e6))
    lane = liars.climb(SecondBest(), tmp_path)
    rung = lane.rung("greedy")
    assert rung.outcome == "pass", lane
    assert [(tie.case, tie.floor) for tie in rung.near_ties] == [("one", 1e9), ("two", 1e9)]
    assert "14 of 16 greedy tokens are equal; 2 near-tie(s)" in rung.why


def test_an_engine_that_refuses_is_wrong(tmp_path, monkeypatch):
    class Refuses(EngineRunner):
        def run(self, request: Request) -> Observation:
            if request.n_batch == 1 and not request.taps:
                raise UsageError("no single tokens today")
            return super().run(request)

    monkeypatch.setattr("crossval.run.EngineRunner", Refuses)
    lane = liars.climb(Liar(), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert lane.rung("operations").why == "the engine refused what the reference computed: no single tokens today"


# ---- lanes that cannot be climbed ---------------------------------------------------------------------------------


def test_a_reference_that_refuses_to_start(tmp_path):
    def refuse():
        raise ReferenceUnavailableError("no library", remedy="build it")

    lane = liars.climb(refuse, tmp_path)
    assert lane.outcome == "unsupported"
    assert lane.rungs == unsupported("no library hint: build it")


def test_a_reference_that_dies_at_its_start(tmp_path):
    def die():
        raise liars.ReferenceFailedError("ended with exit code 4", last_words="out")

    lane = liars.climb(die, tmp_path)
    assert lane.outcome == "error"
    assert lane.rungs == failed_reference("the reference failed: ended with exit code 4; its last words: out")


def test_no_prompt_is_no_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("crossval.run.text_cases", lambda *_, **__: ())
    lane = liars.climb(Liar(), tmp_path)
    assert liars.first_fault(lane) == ("operations", "inconclusive")
    assert lane.rung("operations").why == "there is no prompt to evaluate"


@pytest.mark.parametrize(
    ("numerics", "model", "why"),
    [
        ({"activation": "int4"}, "b158_a", "int4"),
        ({"sleep": "none"}, "b158_a", "unknown numerics field 'sleep'"),
        ({"activation": "q8_k"}, "bitnet_silu", "rows of a multiple of 256"),
    ],
)
def test_numerics_that_the_engine_does_not_have(tmp_path, numerics, model, why):
    path = Path(golden_models.model(model))
    info = {"numerics": {**Oracle(str(path)).info.numerics, **numerics}}
    lane = liars.climb(Liar(path, info=info), tmp_path, model=path)
    assert lane.outcome == "unsupported"
    assert why in lane.rungs[0].why
