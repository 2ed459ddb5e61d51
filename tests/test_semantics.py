"""Every field of `Semantics` is a defect: it changes the result, and first at the operation it belongs to."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import golden_models
import numpy as np
import pytest

from reference import rounding
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, Request, tap_order
from reference.semantics import CONTRACT, Semantics, WeightChange

IDS = (508, 17, 301, 44, 44, 255)

#: (field, value) → the first tap that differs from the contract's.
FIRST_DIFFERENCE = [
    ("activation", "silu", "ffn_act"),
    ("activation", "gelu", "ffn_act"),
    ("activation", "relu", "ffn_act"),
    ("rope_style", "interleaved", "q_rope"),
    ("rope_theta_factor", 0.02, "q_rope"),
    ("position_offset", 1, "q_rope"),
    ("rms_eps", 1e-6, "attn_norm"),
    ("norm", "layernorm", "attn_norm"),
    ("sub_norms", False, "attn_out"),
    ("activation_quantised", False, "q"),
    ("activation_rounding", "truncate", "q"),
    ("activation_scale", "tensor", "q"),
    ("weight_scale", "divide", "q"),
    ("weight_scale", "drop", "q"),
    ("code_map", (-2, -1, 1, 2), "q"),
    ("unpack_order", "sequential", "q"),
    ("unpack_order", "sequential_reversed", "q"),
    ("unpack_order", "interleaved_64", "q"),
    ("reternarised", True, "q"),
    ("head_grouping", "stride", "kqv_out"),
    ("attention_scale_factor", 1.05, "kqv_out"),
    ("causal", False, "kqv_out"),
    ("embedding_scale", 16.0, "embd"),
    ("ffn_type", "f16", "ffn_act"),
    ("logit_scale", 1.5, "result_output"),
    ("logit_softcap", 30.0, "result_output"),
    ("activation", "gelu_erf", "ffn_act"),
    ("activation", "gelu_quick", "ffn_act"),
    ("gating", "swapped", "ffn_act"),
    ("gating", "none", "ffn_act"),
    ("rope_target", "none", "q_rope"),
    ("rope_target", "q", "k_rope"),
    ("rope_direction", -1, "q_rope"),
    ("rope_share", 0.5, "q_rope"),
    ("rope_position_factor", 0.5, "q_rope"),
    ("token_offset", 1, "embd"),
    ("norm", "l2", "attn_norm"),
    ("norm_weight", "ignore", "attn_norm"),
    ("norm_weight", "plus_one", "attn_norm"),
    ("norm_eps", "outside", "attn_norm"),
    ("norm_type", "bf16", "attn_norm"),
    ("skipped_norm", "attn_norm", "q"),
    ("skipped_norm", "result_norm", "result_output"),
    ("residual", "parallel", "ffn_norm"),
    ("residual", "normed", "ffn_inp"),
    ("residual", "none", "ffn_inp"),
    ("residual_type", "bf16", "ffn_inp"),
    ("activation_rounding", "floor", "q"),
    ("activation_levels", 63, "q"),
    ("projections", "empty", "q"),
    ("batch_rows", 4, "q"),
    ("weight_scale", "twice", "q"),
    ("scale_type", "bf16", "q"),
    ("weights", (WeightChange(tensor="blk.0.attn_q.weight", kind="scaled", factor=2.0),), "q"),
    ("head_grouping", "first", "kqv_out"),
    ("mask_offset", 1, "kqv_out"),
    ("window", 2, "kqv_out"),
]
#: Fields that need their own model or input; each has a test below.
ELSEWHERE = {"head", "activation_rounding", "accumulator"}


@pytest.fixture(scope="module")
def contract():
    oracle = Oracle(golden_models.model("b158_a"))
    return oracle.run(Request(ids=IDS, taps=True)), tap_order(oracle.n_layer)


def test_every_field_is_tried():
    assert {name for name, _, _ in FIRST_DIFFERENCE} | ELSEWHERE == {f.name for f in fields(Semantics)}


@pytest.mark.parametrize(("field", "value", "first"), FIRST_DIFFERENCE)
def test_a_changed_field_shows_first_where_it_belongs(contract, field, value, first):
    right, order = contract
    wrong = Oracle(golden_models.model("b158_a"), semantics=Semantics(**{field: value})).run(
        Request(ids=IDS, taps=True)
    )
    differing = [key for key in order if key in wrong.taps and not np.array_equal(wrong.taps[key], right.taps[key])]
    assert differing[0] == (first, -1 if first in ("embd", "result_output") else 0)
    if field != "position_offset":
        assert not np.array_equal(wrong.logits, right.logits)


def test_a_position_offset_is_equivalent_end_to_end():
    """Rotary attention sees differences of positions only, so nothing but `q_rope` and `k_rope` can show it."""
    right, wrong = (
        Oracle(golden_models.model("b158_a"), semantics=s, numerics={"activation": "none"}).run(Request(ids=IDS))
        for s in (CONTRACT, Semantics(position_offset=1))
    )
    # Float32 storage is all that differs: 3 layers of roundings of 6e-8, an order of magnitude of room.
    assert np.abs(right.logits - wrong.logits).max() <= 1e-5 * np.abs(right.logits).max()


def test_sums_wrap_at_16_bits_only_where_they_are_large():
    sums = np.array([[32767.0, 32768.0, -32769.0, 5.0]])
    assert rounding.wrapped(sums, "int32").tolist() == sums.tolist()
    assert rounding.wrapped(sums, "int16").tolist() == [[32767.0, -32768.0, 32767.0, 5.0]]


def test_one_tensor_can_be_other_than_the_file_says():
    name, other = "blk.0.attn_q.weight", "blk.1.attn_q.weight"
    path = golden_models.model("b158_a")
    right = Oracle(path)
    rows = len(right.weights(name))

    def changed(**values):
        return Oracle(path, semantics=Semantics(weights=(WeightChange(tensor=name, **values),))).weights(name)

    assert np.array_equal(changed(kind="zero"), np.zeros_like(right.weights(name)))
    assert np.array_equal(changed(kind="negated"), -right.weights(name))
    assert np.array_equal(changed(kind="transposed"), right.weights(name).T)
    assert np.array_equal(changed(kind="other", other=other), right.weights(other))
    assert np.array_equal(changed(kind="rows", order=tuple(range(rows))[::-1]), right.weights(name)[::-1])
    np.testing.assert_allclose(changed(kind="scaled", factor=2.0), 2.0 * right.weights(name), rtol=1e-6)
    with pytest.raises(ReferenceUnavailableError, match="rows"):
        changed(kind="rows", order=(0, 1))
    with pytest.raises(ReferenceUnavailableError, match="cannot stand for"):
        changed(kind="other", other="output_norm.weight")


def test_ties_away_from_zero_show_on_a_locked_tie():
    """s is exactly 1 for a largest value of 127, so that halves are ties: even and away differ."""
    x = np.full((len(IDS), 256), 0.5, np.float32)
    x[:, 0] = 127.0
    oracles = [
        Oracle(golden_models.model("b158_a"), semantics=Semantics(activation_rounding=r)) for r in ("half_even", "away")
    ]
    even, away = (o.run(Request(ids=IDS, taps=True, lock={("attn_norm", 0): x})).taps["q", 0] for o in oracles)
    assert not np.array_equal(even, away)


def test_the_head_follows_the_contract_unless_told(tmp_path):
    output = np.random.default_rng(1).standard_normal((512, 256))
    logits = {}
    for name in ("b158_a", "llama_tied"):
        path = golden_models.retyped(name, tmp_path / f"{name}.gguf", "I2_S", output=output)
        for head in (None, "declared", "tied"):
            logits[name, head] = Oracle(path, semantics=Semantics(head=head)).run(Request(ids=IDS)).logits
        assert not np.array_equal(logits[name, "declared"], logits[name, "tied"])
    assert np.array_equal(logits["b158_a", None], logits["b158_a", "tied"])
    assert np.array_equal(logits["llama_tied", None], logits["llama_tied", "declared"])


def test_relu2_overflows_f16_as_infinity_not_as_a_number():
    gate = np.full((len(IDS), 768), 400.0, np.float32)
    observed = Oracle(golden_models.model("b158_a"), semantics=Semantics(ffn_type="f16")).run(
        Request(ids=IDS, taps=True, lock={("ffn_gate", 0): gate})
    )
    assert np.isinf(observed.taps["ffn_act", 0]).any()
    assert np.isnan(observed.logits).any()


def test_sub_norms_cannot_be_invented():
    with pytest.raises(ReferenceUnavailableError, match="attn_sub_norm"):
        Oracle(golden_models.model("llama_tied"), semantics=Semantics(sub_norms=True))


def test_the_default_is_the_contract():
    assert CONTRACT.changes() == {}
    assert Semantics(activation="silu", causal=False).changes() == {"activation": "silu", "causal": False}
    with pytest.raises(FrozenInstanceError):
        CONTRACT.causal = False


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activation", "tanh"),
        ("rope_theta_factor", 0.0),
        ("attention_scale_factor", float("nan")),
        ("logit_scale", float("inf")),
        ("rms_eps", -1.0),
        ("code_map", (0, 1, 2)),
        ("code_map", (0, 1, 2, 99)),
        ("norm", None),
        ("rope_share", 2.0),
        ("window", 0),
        ("batch_rows", -1),
        ("activation_levels", 0),
        ("mask_offset", -1),
    ],
)
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"semantics.{field}"):
        Semantics(**{field: value})
