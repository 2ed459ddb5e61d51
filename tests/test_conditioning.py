"""What data do to rounding: limits grow with the noise of honest engines and no further; no defect hides in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest

from bitnet.config import Numerics
from bitnet.gguf import read
from bitnet.rope import rotary_tables
from crossval import envelope
from crossval.case import SHORT_PROMPTS, read_prompts
from crossval.catalogue import BY_NAME, hypothesis
from crossval.conditioning import judged, noise
from crossval.drift import SHAPES, Subject
from crossval.engine import EngineRunner
from crossval.environment import now
from crossval.fits import variant_of
from crossval.locate import MAX_TOKENS
from crossval.metrics import difference
from crossval.mutants import Mutant
from crossval.replay import Replay
from crossval.run import Run
from receipts.verify import verify
from reference import rounding
from reference.oracle import Oracle
from reference.runner import Request

FIXTURES = Path(__file__).parents[1] / "fixtures"
IDS = tuple(range(40, 64))
LIMIT = envelope.LOCKED_OPERATION.limit


@cache
def subject(name):
    """A trained model: its scores go up to 50."""
    texts = tuple(p.text for p in (*read_prompts(FIXTURES / "prompts.json", name), *SHORT_PROMPTS))
    return Subject(name, FIXTURES / "models" / f"{name}.i2_s.gguf", texts)


def captured(oracle, *hypotheses, seed=1, n_batch=None):
    """What an engine in float32 arithmetic of its own captures of itself."""
    mutant = Mutant.of(variant_of(oracle, *hypotheses), seed)
    return mutant.run(Request(ids=IDS, n_batch=n_batch, taps=True)).taps


def entry(name, value=None):
    return hypothesis(BY_NAME[name], value)


# ---- honest engines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seed"), [("tiny-relu2", seed) for seed in (1000, 1008, 1009, 1011, 1012)] + [("tiny-llama", 1006)]
)
def test_honest_attention_with_large_scores_is_no_alarm(monkeypatch, name, seed):
    """Each is more than 1e-6 from the engine, by the order of float32 sums alone."""
    assert not subject(name).trial("clean", seed).detected
    monkeypatch.setattr("crossval.conditioning.noise", lambda *_: 0.0)
    assert subject(name).trial("clean", seed).found.startswith("kqv_out of layer")


@pytest.mark.parametrize("name", ["tiny-relu2", "tiny-llama"])
def test_noise_is_predicted(name):
    """Over many orders of summation the largest difference is below the bound, and not far below."""
    oracle = subject(name).oracle
    for key in [("kqv_out", il) for il in range(oracle.n_layer)]:
        shares = []
        for seed in range(12):
            taps = captured(oracle, seed=seed)
            replay = Replay(oracle, IDS, taps)
            found = np.abs(subject(name).engine.run(Request(ids=IDS, taps=True, lock=taps)).taps[key] - taps[key])
            shares.append(found.max() / replay.noise(key))
        assert 0.05 < max(shares) < 0.8, (key, shares)


def test_ordinary_scores_leave_the_limit_as_it_is(tmp_path):
    """Within a factor of two: what is random has scores of 5."""
    from bitnet.synthetic import make

    for name, shape in SHAPES.items():
        oracle = Oracle(str(make(tmp_path / f"{name}.gguf", shape, seed=7)))
        taps = captured(oracle)
        replay = Replay(oracle, IDS, taps)
        for key in replay.keys:
            assert replay.noise(key) <= 2 * LIMIT * np.abs(taps[key]).max(), (name, key)


def random_attention(scale, *, n=16, seed=0):
    oracle = Oracle(golden_models.model("b158_a"))
    rng = np.random.default_rng(seed)
    h = oracle.hyper
    q, k, v = (rng.standard_normal((n, heads * h.head_dim)) for heads in (h.n_head, h.n_head_kv, h.n_head_kv))
    return oracle, [(scale * q).astype(np.float32).astype(float), k.astype(np.float32).astype(float), v]


def test_the_bound_grows_with_the_scores_and_with_nothing_else():
    oracle, inputs = random_attention(1.0)
    small = noise(oracle, ("kqv_out", 0), inputs, [0, 16])
    large = noise(oracle, ("kqv_out", 0), random_attention(10.0)[1], [0, 16])
    assert large > 4 * small
    louder = [inputs[0], inputs[1], 8.0 * inputs[2]]  # values, not scores: the reference grows as the noise does
    assert noise(oracle, ("kqv_out", 0), louder, [0, 16]) == pytest.approx(8 * small)


def test_where_one_key_takes_all_the_weight_its_score_does_not_matter():
    oracle, inputs = random_attention(1.0)
    own = oracle.per_query_head(inputs[1]).transpose(1, 0, 2)  # each query finds its own key
    inputs[0] = (1e3 * own / np.linalg.norm(own, axis=2, keepdims=True)).reshape(16, -1)
    scores = oracle.attention_scores(inputs[0], inputs[1], 0)
    assert scores.max() > 200
    size = np.abs(oracle.operation(("kqv_out", 0), inputs, np.arange(16), 0)).max()
    assert noise(oracle, ("kqv_out", 0), inputs, [0, 16]) < 2 * LIMIT * size


# ---- liars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        entry("attention_scale_factor", 1.001),
        entry("attention_scale_factor", 0.98),
        entry("attention_scale_factor", float(np.log2(np.e))),  # softmax in base 2
        entry("causal=no"),
        entry("mask_offset=1"),
        entry("window", 6),
        entry("head_grouping=stride"),
        entry("head_grouping=first"),
        entry("numerics.probs=f16"),
        entry("numerics.query=f16"),
        entry("numerics.kv=f16"),
    ],
    ids=lambda lie: lie.name,
)
def test_no_defect_of_attention_hides_in_the_limit(lie):
    """In every layer of the model with the largest scores, by a factor of ten and more."""
    engine, oracle = subject("tiny-relu2").engine, subject("tiny-relu2").oracle
    for seed in (1, 2):
        taps = captured(oracle, lie, seed=seed)
        ours = engine.run(Request(ids=IDS, taps=True, lock=taps)).taps
        replay = Replay(oracle, IDS, taps)
        ratios = [replay.judged(key, ours[key], taps[key]).ratio for key in replay.keys if key[0] == "kqv_out"]
        assert min(ratios) > 10 * LIMIT, ratios


@pytest.mark.parametrize("factor", [1 + 2.0**-11, 1 - 2.0**-11])
def test_no_operation_is_so_badly_conditioned_that_float16_would_pass(factor):
    value = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    assert judged(value * np.float32(factor), value, lambda: float("inf")).ratio > LIMIT
    assert judged(value * np.float32(1 + 1e-5), value, lambda: float("inf")).ratio <= LIMIT
    assert judged(value * np.float32(1 + 1e-5), value, lambda: 0.0).ratio > LIMIT


def test_what_is_no_number_is_never_noise():
    value = np.ones((2, 8), np.float32)
    for broken in (np.nan, np.inf):
        odd = value.copy()
        odd[1, 3] = broken
        assert judged(odd, value, lambda: float("inf")).ratio == float("inf")
    oracle, (q, k, v) = random_attention(1.0)
    assert noise(oracle, ("kqv_out", 0), [np.full_like(q, np.nan), k, v], [0, 16]) == 0.0


def test_noise_is_asked_for_only_where_it_decides():
    value = np.ones((2, 8), np.float32)

    def never():
        raise AssertionError

    assert judged(value, value, never).ratio == 0.0
    assert judged(value * np.float32(2), value, never).ratio > LIMIT


# ---- float16 probabilities -----------------------------------------------------------------------------------------


def test_a_probability_between_two_float16_may_fall_to_either_side():
    oracle = Oracle(golden_models.model("b158_a"), numerics={"probs": "f16"})
    plain, inputs = random_attention(4.0, n=48)
    at = ("kqv_out", 0)
    allowed = noise(oracle, at, inputs, [0, 48])
    assert allowed > noise(plain, at, inputs, [0, 48])
    single = Oracle(golden_models.model("b158_a"), numerics={"probs": "f16_decode"})
    assert noise(single, at, inputs, [0, 48]) == noise(plain, at, inputs, [0, 48])  # a batch is not rounded
    assert noise(single, at, inputs, range(49)) == allowed
    moved = [(1 + 2.0**-22) * inputs[0], *inputs[1:]]
    a, b = (oracle.operation(at, x, np.arange(48), 0) for x in (inputs, moved))
    assert np.abs(a - b).max() <= allowed


# ---- the other operations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-8, 1e-3, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_a_norm_is_well_conditioned_at_any_variance(size, eps):
    """Squares cannot cancel, and epsilon keeps the root from zero: no limit has to grow."""
    from bitnet.kernels.cpu import rms_norm

    rng = np.random.default_rng(3)
    x = (size * rng.standard_normal((16, 6912))).astype(np.float32)
    x[:, 7] *= 50.0  # an outlier, as trained models have them
    weight = rng.standard_normal(6912).astype(np.float32)
    found = np.empty_like(x)
    rms_norm(x, weight, np.float32(eps), found)
    exact = x.astype(float) / np.sqrt((x.astype(float) ** 2).mean(axis=1, keepdims=True) + np.float32(eps)) * weight
    assert difference(found, exact.astype(np.float32)).ratio < LIMIT


@pytest.mark.parametrize("kind", rounding.NUMERICS["rope"])
@pytest.mark.parametrize("position", [47, 4095, 131_071])
def test_a_rotation_is_as_exact_at_large_positions(kind, position):
    """Angles are numerics: both sides start from the same, to the last bit, however far they have turned."""
    config = EngineRunner(golden_models.model("b158_a")).model.config
    cos, sin = rotary_tables(config, Numerics(rope=kind), position, 4)
    positions = np.arange(position, position + 4)
    angles = rounding.rope_angles(positions, config.head_dim, config.rope_theta, kind)
    assert np.abs(cos - np.cos(angles)).max() < 2.0**-24
    assert np.abs(sin - np.sin(angles)).max() < 2.0**-24


@pytest.mark.parametrize("head", ["f32", "f16", "bf16"])
def test_a_head_whose_logits_cancel(head):
    """Every row meets an input that is almost orthogonal to it: noise stays, the reference all but vanishes."""
    oracle = Oracle(golden_models.model("b158_a"), numerics={"head": head})
    table = oracle.matrix(oracle.hyper.head).values.astype(float)
    at = ("result_output", -1)
    _, _, right = np.linalg.svd(table)
    ordinary = np.random.default_rng(1).standard_normal((4, table.shape[1]))
    hidden = np.tile(right[-1], (4, 1)) * 1e3
    ratios = []
    for x in (ordinary, hidden):
        size = np.abs(oracle.operation(at, [x], np.arange(4), 0)).max()
        ratios.append(noise(oracle, at, [x], [0, 4]) / size)
    assert ratios[0] < 2 * LIMIT
    assert ratios[1] > ratios[0]


def test_integers_have_no_noise():
    oracle, _ = random_attention(1.0)
    x = np.random.default_rng(1).standard_normal((4, oracle.hyper.n_embd))
    assert noise(oracle, ("q", 0), [x], [0, 4]) == 0.0
    floats = Oracle(golden_models.model("b158_a"), numerics={"activation": "none"})
    assert noise(floats, ("q", 0), [x], [0, 4]) > 0.0
    assert read(golden_models.model("b158_a")).tensors["blk.0.attn_q.weight"].type.name == "I2_S"


def test_float_products_stay_inside_their_bound():
    oracle = Oracle(golden_models.model("b158_a"), numerics={"activation": "none"})
    for seed in range(6):
        taps = captured(oracle, seed=seed)
        replay = Replay(oracle, IDS, taps)
        for key in replay.keys:
            if key[0] in ("q", "ffn_down", "result_output"):
                error = np.abs(replay.operation(key, oracle) - taps[key]).max()
                assert error <= 0.8 * replay.noise(key), key


@pytest.mark.slow
def test_a_receipt_with_ill_conditioned_operations_is_valid(monkeypatch, tmp_path):
    """Errors are then measured against more than the largest value, and every rule holds all the same."""

    class Rough(liars.Liar):
        """An honest engine with sums in an order of its own."""

        def run(self, request):
            return Mutant.of(self.oracle, 1000).run(request)

    model = FIXTURES / "models" / "tiny-relu2.i2_s.gguf"
    monkeypatch.setattr("crossval.run.N_GREEDY", 2)
    monkeypatch.setattr(liars, "PROMPTS", read_prompts(FIXTURES / "prompts.json", "tiny-relu2"))
    run = Run(liars.options(tmp_path), liars.quiet)
    lane = run.climb(liars.plan(lambda: Rough(model), model=model))
    assert lane.rung("operations").outcome == "pass"
    by_case = {
        case.name: Rough(model).run(Request(ids=case.prompt_ids[:MAX_TOKENS], taps=True)).taps
        for case in run.evidence.cases.values()
    }
    widened = [
        row
        for row in run.evidence.operations
        if row["max_abs_ref"] > np.abs(by_case[row["case"].split(", ")[0]][row["tap"], row["layer"]]).max()
    ]
    assert {row["tap"] for row in widened} == {"kqv_out"}
    run.receipt(now(), 1.0)
    report = verify(tmp_path / "ci" / "inference.json")
    assert report.valid, report.failures
