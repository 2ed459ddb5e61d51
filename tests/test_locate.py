"""Locked operations: the first wrong one is located, the odd engine named, exact integers told from close floats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import liars
import numpy as np
import pytest
from liars import Liar

from bitnet.config import Numerics
from crossval.case import Prompt
from crossval.engine import EngineRunner
from crossval.locate import _vote, place
from crossval.mutants import Mutant
from crossval.plan import ORACLE_RUNGS
from crossval.run import Run
from crossval.self_check import _nearest
from reference.runner import Observation, ReferenceFailedError, Request
from reference.semantics import Semantics


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """No continuation, and no search for causes: test_attribute has that."""
    monkeypatch.setattr("crossval.run.N_GREEDY", 2)
    monkeypatch.setattr("crossval.run.cause_of", lambda *_, **__: None)


#: One changed field of the contract → where it must be found first.
WRONG = {
    "activation": ({"activation": "silu"}, "ffn_act", 0),
    "rope style": ({"rope_style": "interleaved"}, "q_rope", 0),
    "rope theta": ({"rope_theta_factor": 0.02}, "q_rope", 0),
    "position": ({"position_offset": 1}, "q_rope", 0),
    "epsilon": ({"rms_eps": 1e-3}, "attn_norm", 0),
    "layer norm": ({"norm": "layernorm"}, "attn_norm", 0),
    "no activation quantiser": ({"activation_quantised": False}, "q", 0),
    "truncation": ({"activation_rounding": "truncate"}, "q", 0),
    "one scale for all tokens": ({"activation_scale": "tensor"}, "q", 0),
    "scale dropped": ({"weight_scale": "drop"}, "q", 0),
    "scale divides": ({"weight_scale": "divide"}, "q", 0),
    "re-ternarised": ({"reternarised": True}, "q", 0),
    "packing": ({"unpack_order": "sequential"}, "q", 0),
    "head grouping": ({"head_grouping": "stride"}, "kqv_out", 0),
    "attention scale": ({"attention_scale_factor": 1.05}, "kqv_out", 0),
    "not causal": ({"causal": False}, "kqv_out", 0),
    "embedding scale": ({"embedding_scale": 2.0}, "embd", -1),
    "logit scale": ({"logit_scale": 1.5}, "result_output", -1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reference_is_located_and_blamed(tmp_path, name):
    changes, tap, layer = WRONG[name]
    reference = Liar(semantics=Semantics(**changes))
    reference.shown = Liar().oracle  # its weights are shown as they should be: the operation gives it away
    lane = liars.climb(reference, tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer) == (tap, layer)
    assert lane.located.max_abs_err > lane.located.limit * lane.located.max_abs_ref
    assert lane.located.positions
    assert place(tap, layer) in lane.rung("operations").why
    assert lane.blame == "reference"
    [vote] = lane.votes
    assert vote.odd == lane.reference
    assert vote.witnesses == {"bitnet": "agrees", "oracle · liar": "agrees", lane.reference: "differs"}


def test_skipped_sub_norms_are_located(tmp_path):
    lane = liars.climb(Liar(semantics=Semantics(sub_norms=False)), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.blame) == ("attn_out", "reference")


def test_numerics_that_it_only_claims(tmp_path):
    """It says float16 and computes int8."""
    honest = Liar().info.numerics
    lane = liars.climb(Liar(info={"numerics": {**honest, "activation": "f16"}}), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("q", 0, "reference")


def broken_engine(monkeypatch, **config):
    """Every engine of the run computes something else than its file says."""

    class Broken(EngineRunner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.model.network.config = replace(self.model.network.config, **config)

    monkeypatch.setattr("crossval.run.EngineRunner", Broken)


def test_a_wrong_engine_is_blamed(tmp_path, monkeypatch):
    broken_engine(monkeypatch, activation="silu")
    lane = liars.climb(Liar(), tmp_path)
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("ffn_act", 0, "engine")
    assert lane.votes[0].odd == "bitnet"


def test_two_that_differ_have_no_majority(tmp_path, monkeypatch):
    broken_engine(monkeypatch, activation="silu")
    reference = liars.Oracle(str(liars.MODEL))
    lane = liars.climb(reference, tmp_path, as_default=True, required_rungs=ORACLE_RUNGS)
    assert (lane.located.tap, lane.blame) == ("ffn_act", None)
    [vote] = lane.votes
    assert vote.odd is None
    assert vote.witnesses == {"bitnet": "agrees", lane.reference: "differs"}


def test_when_all_three_differ_nobody_is_blamed(tmp_path, monkeypatch):
    broken_engine(monkeypatch, activation="silu")
    lane = liars.climb(Liar(semantics=Semantics(activation="gelu")), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert lane.blame is None
    assert set(lane.votes[0].witnesses.values()) == {"differs"}
    assert lane.votes[0].odd is None


def test_a_fault_of_single_tokens_alone_has_its_vote(tmp_path):
    """The vote of the batch, in which all agreed, must not stand for it."""

    def wrong(request: Request, seen: Observation) -> Observation:
        if request.n_batch != 1 or not request.taps:
            return seen
        return replace(seen, taps={**seen.taps, ("ffn_up", 2): seen.taps["ffn_up", 2] * np.float32(1.001)})

    lane = liars.climb(Liar(change=wrong), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("ffn_up", 2, "reference")
    assert len(lane.votes) == 1


def test_unequal_integers_are_exact_faults(tmp_path, monkeypatch):
    """Off by one in one sum: no float limit would see it among thousands."""

    class Wraps(EngineRunner):
        def integer_sums(self, tap, layer, x):
            sums = super().integer_sums(tap, layer, x)
            if (tap, layer) == ("attn_out", 1):
                sums[2, 5] += 1
            return sums

    monkeypatch.setattr("crossval.run.EngineRunner", Wraps)
    lane = liars.climb(Liar(), tmp_path)
    rung = lane.rung("operations")
    assert (rung.outcome, rung.measured, rung.limit) == ("fail", 1.0, 0.0)
    assert "1 of 21 ternary × int8 products differ" in rung.why
    assert lane.located.integer
    assert (lane.located.tap, lane.located.layer, lane.located.worst_token, lane.located.worst_index) == (
        "attn_out",
        1,
        2,
        5,
    )


def test_nan_is_located_where_it_begins(tmp_path):
    def poisoned(_: Request, seen: Observation) -> Observation:
        if ("v", 1) not in seen.taps:
            return seen
        v = seen.taps["v", 1].copy()
        v[1, 3] = np.nan
        return replace(seen, taps={**seen.taps, ("v", 1): v})

    lane = liars.climb(Liar(change=poisoned), tmp_path)
    assert (lane.located.tap, lane.located.layer, lane.located.positions) == ("v", 1, (1,))
    assert (lane.located.worst_token, lane.located.worst_index) == (1, 3)
    assert lane.located.max_abs_err == np.finfo(np.float64).max
    assert "differ from the exact integers" not in lane.rung("operations").why


def test_what_a_reference_computes_is_asked_of_its_own_intermediates(tmp_path):
    for semantics, question, expected, found in (
        ({"activation": "silu"}, "activation", "relu2", "silu"),
        ({"rope_style": "interleaved"}, "rotary style", "half_split", "interleaved"),
        ({"logit_scale": 1.5}, "head", "token_embd.weight", "none of token_embd.weight"),
    ):
        run = Run(liars.options(tmp_path), liars.quiet)
        run.climb(liars.plan(lambda s=semantics: Liar(semantics=Semantics(**s))))
        checks = {c.question: c for c in run.evidence.references["liar · reference"].self_check}
        assert (checks[question].expected, checks[question].found) == (expected, found)
        assert [c.outcome for q, c in checks.items() if q != question] == ["pass", "pass"]
        assert checks[question].outcome == "fail"


def test_the_nearest_candidate_must_be_near():
    value = np.ones((2, 2))
    assert _nearest({"a": value * 1.001, "b": value * 1.005}, value) == "a"
    assert _nearest({"a": value * 1.1, "b": value * 2}, value) == "none of a, b"
    assert _nearest({"a": value, "b": value}, value * np.nan) == "none of a, b"


@pytest.mark.parametrize(
    ("ours", "oracle", "theirs", "odd", "words"),
    [
        (1.0, 1.0, 1.0, None, ("agrees", "agrees", "agrees")),
        (1.0, 1.0, 2.0, "r", ("agrees", "agrees", "differs")),
        (2.0, 1.0, 1.0, "bitnet", ("differs", "agrees", "agrees")),
        (1.0, 2.0, 1.0, "o", ("agrees", "differs", "agrees")),
        (1.0, 2.0, 3.0, None, ("differs", "differs", "differs")),
        (1.0, 1.0 + 8e-7, 1.0 + 1.6e-6, None, ("differs", "agrees", "differs")),  # each is near the one between
    ],
)
def test_every_constellation_of_three(ours, oracle, theirs, odd, words):
    class Fake:
        oracle_key = "o"
        plan = type("P", (), {"reference": "r"})
        reference = type("R", (), {"info": type("I", (), {"family": "x", "library_sha256": "y"})})

    said = [{("q", 0): np.full((1, 1), value, np.float64)} for value in (ours, theirs, oracle)]
    vote = _vote(Fake(), Request(ids=(1,)), *said)
    assert (vote.odd, tuple(vote.witnesses.values())) == (odd, words)


class Further:
    """A witness that answers with one value, or dies."""

    def __init__(self, value, numerics):
        self._value, self.info = value, type("I", (), {"numerics": numerics, "family": "w", "library_sha256": "z"})

    def run(self, _request):
        if self._value is None:
            raise ReferenceFailedError("it died")
        taps = {key: np.full((1, 1), self._value, np.float32) for key in (("q", 0), ("ffn_act", 0))}
        return Observation(ids=(), logits=np.empty(0), taps=taps)


@pytest.mark.parametrize(
    ("witness", "odd", "word"),
    [
        (Further(1.0, Numerics().to_dict()), "r", "agrees"),
        (Further(3.0, Numerics().to_dict()), None, "differs"),
        (Further(None, Numerics().to_dict()), "r", "absent"),
        (None, "r", "absent"),
    ],
)
def test_a_further_witness_is_heard(witness, odd, word):
    vote = further_vote(witness, {("q", 0): 1.0, ("ffn_act", 0): 1.0}, {("q", 0): 2.0, ("ffn_act", 0): 2.0})
    assert (vote.odd, vote.witnesses["w"]) == (odd, word)


def test_of_what_a_witness_computes_in_other_numerics_it_says_nothing():
    other = Numerics().to_dict() | {"activation": "q8_k"}
    ours, theirs = {("q", 0): 5.0, ("ffn_act", 0): 1.0}, {("q", 0): 5.0, ("ffn_act", 0): 2.0}
    assert further_vote(Further(1.0, other), ours, theirs).witnesses["w"] == "agrees"
    assert further_vote(Further(1.0, Numerics().to_dict()), ours, theirs).witnesses["w"] == "differs"


def further_vote(witness, ours, theirs):
    def taps(values):
        return {key: np.full((1, 1), value, np.float32) for key, value in values.items()}

    class Fake:
        oracle_key = "o"
        numerics = Numerics()
        plan = type("P", (), {"reference": "r"})
        reference = type("R", (), {"info": type("I", (), {"family": "x", "library_sha256": "y"})})

    return _vote(Fake(), Request(ids=(1,)), taps(ours), taps(theirs), taps(ours), {"w": witness})


def late(layer=1, first=16, *, single=False):
    """A fault of tokens from `first` on, in a batch or, with `single`, of those that come one at a time alone."""

    def change(request: Request, seen: Observation) -> Observation:
        if not request.taps:
            return seen
        begin = first if not single else max(request.n_batch or len(request.ids), first)
        value = seen.taps["ffn_up", layer].copy()
        value[begin:, 3:5] = value[begin:, [4, 3]]
        return replace(seen, taps={**seen.taps, ("ffn_up", layer): value})

    return change


def long_prompts(monkeypatch):
    words = " ".join(["the quick brown fox jumps over a sea of green hills"] * 6)
    monkeypatch.setattr(liars, "PROMPTS", (*liars.PROMPTS, Prompt(name="long", text=words)))


@pytest.mark.parametrize("single", [False, True])
def test_a_fault_that_shows_late_is_located(tmp_path, monkeypatch, single):
    long_prompts(monkeypatch)
    lane = liars.climb(Liar(change=late(first=40, single=single)), tmp_path)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("ffn_up", 1, "reference")
    assert min(lane.located.positions) >= 40


def test_values_that_are_not_numbers_have_one_culprit(tmp_path):
    """What is fed NaN makes NaN, in every engine: that is no difference between them."""

    def broken(request: Request, seen: Observation) -> Observation:
        return replace(seen, taps={k: v * np.float32("nan") if k == ("l_out", 0) else v for k, v in seen.taps.items()})

    lane = liars.climb(Liar(change=broken), tmp_path)
    assert (lane.located.tap, lane.located.layer, lane.blame) == ("l_out", 0, "reference")
    [vote] = lane.votes
    assert vote.odd == lane.reference
    assert "which is not finite" in lane.rung("operations").why


class Rough(Liar):
    """An honest engine with an order of sums of its own, which shows some of its operations."""

    def __init__(self, model, shows):
        super().__init__(model)
        self.shows = shows
        self.semantics = self.oracle.semantics

    def run(self, request):
        seen = Mutant.of(self.oracle.under(self.semantics), 10).run(request)
        return replace(seen, taps={key: value for key, value in seen.taps.items() if self.shows(key[0])})


SHOWN = {
    "all but attention": lambda tap: tap != "kqv_out",
    "layers alone": lambda tap: tap in ("embd", "l_out", "result_norm", "result_output"),
}
TRAINED = Path(__file__).parents[1] / "fixtures" / "models" / "tiny-llama.i2_s.gguf"


@pytest.mark.slow
@pytest.mark.parametrize("shown", SHOWN)
def test_an_honest_reference_that_shows_less_is_not_blamed(tmp_path, monkeypatch, shown):
    """Each side then rounds inputs of its own to integers, and one of them may fall to the other side."""
    long_prompts(monkeypatch)
    lane = liars.climb(Rough(TRAINED, SHOWN[shown]), tmp_path, model=TRAINED)
    assert lane.rung("operations").outcome == "pass", lane.rung("operations")


@pytest.mark.slow
@pytest.mark.parametrize("shown", SHOWN)
def test_a_wrong_one_that_shows_less_is(tmp_path, shown):
    reference = Rough(TRAINED, SHOWN[shown])
    reference.semantics = replace(reference.semantics, activation="gelu")
    lane = liars.climb(reference, tmp_path, model=TRAINED)
    assert liars.first_fault(lane) == ("operations", "fail")
    assert (lane.located.layer, lane.blame) == (0, "reference")
