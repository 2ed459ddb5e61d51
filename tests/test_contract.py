"""Architectures, declared activations, and the tensors a file must and must not have."""

from __future__ import annotations

import pytest

from reference.contract import ABSENT, ARCHITECTURES, PROJECTIONS, hyper_parameters, weight_names
from reference.runner import ReferenceUnavailableError
from reference.semantics import CONTRACT, Semantics


def metadata(arch="bitnet-b1.58", **changes):
    base = {
        "block_count": 1,
        "embedding_length": 256,
        "feed_forward_length": 512,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 500000.0,
    }
    base |= {key.replace("__", "."): value for key, value in changes.items()}
    return {"general.architecture": arch} | {f"{arch}.{k}": v for k, v in base.items() if v is not None}


def shapes(arch="bitnet-b1.58"):
    layer = {
        "attn_q": (256, 256),
        "attn_k": (128, 256),
        "attn_v": (128, 256),
        "attn_output": (256, 256),
        "ffn_gate": (512, 256),
        "ffn_up": (512, 256),
        "ffn_down": (256, 512),
        "attn_norm": (256,),
        "ffn_norm": (256,),
    }
    if ARCHITECTURES[arch].sub_norms:
        layer |= {"attn_sub_norm": (256,), "ffn_sub_norm": (512,)}
    return {f"blk.0.{k}.weight": v for k, v in layer.items()} | {
        "token_embd.weight": (320, 256),
        "output_norm.weight": (256,),
    }


@pytest.mark.parametrize(
    ("arch", "activation", "sub_norms", "rope_style"),
    [
        ("bitnet-b1.58", "relu2", True, "half_split"),
        ("bitnet-25", "relu2", True, "half_split"),
        ("bitnet", "silu", True, "half_split"),
        ("llama", "silu", False, "interleaved"),
    ],
)
def test_each_architecture_means_what_its_contract_says(arch, activation, sub_norms, rope_style):
    hyper = hyper_parameters(metadata(arch), shapes(arch), CONTRACT)
    assert (hyper.activation, hyper.sub_norms, hyper.rope_style) == (activation, sub_norms, rope_style)
    assert weight_names(hyper, shapes(arch)) == sorted(shapes(arch))


def test_a_declared_activation_wins_and_a_hypothesis_wins_over_that():
    declared = metadata("bitnet", hidden_activation="relu2")
    assert hyper_parameters(declared, shapes(), CONTRACT).activation == "relu2"
    assert hyper_parameters(metadata("bitnet", hidden_act="relu2"), shapes(), CONTRACT).activation == "relu2"
    assert hyper_parameters(declared, shapes(), Semantics(activation="silu")).activation == "silu"


def test_an_output_weight_is_used_by_llama_alone():
    for arch, head in (("llama", "output.weight"), ("bitnet-b1.58", "token_embd.weight")):
        with_output = shapes(arch) | {"output.weight": (320, 256)}
        hyper = hyper_parameters(metadata(arch), with_output, CONTRACT)
        assert hyper.head == head
        assert ("output.weight" in weight_names(hyper, with_output)) == (arch == "llama")
        assert hyper_parameters(metadata(arch), with_output, Semantics(head="tied")).head == "token_embd.weight"
        assert hyper_parameters(metadata(arch), shapes(arch), Semantics(head="declared")).head == "token_embd.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "no bitnet-b1.58.block_count"),
        ({"block_count": 0}, "not a positive number"),
        ({"embedding_length": "256"}, "'256', not a positive number"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "not a positive number"),
        ({"attention__head_count_kv": 3}, "heads must share keys evenly"),
        ({"rope__dimension_count": 32}, "rotary must turn whole heads"),
        ({"rope__scaling__type": "yarn"}, "'yarn' has no contract"),
        ({"rope__scaling__factor": 4.0}, "rope.scaling.factor 4.0 has no contract"),
        ({"rope__scale_linear": 8.0}, "rope.scale_linear 8.0 has no contract"),
        ({"rope__scaling__attn_factor": 0.0}, "attn_factor 0.0 has no contract"),
        ({"attention__scale": 0.5}, "attention.scale 0.5 has no contract"),
        ({"context_length": 64, "attention__sliding_window": 32}, "sliding_window 32 has no contract"),
        ({"attention__causal": False}, "attention.causal False has no contract"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 has no contract"),
        ({"expert_count": 8}, "expert_count 8 has no contract"),
        ({"logit_scale": "2"}, "logit_scale '2' has no contract"),
        ({"hidden_activation": "swish9"}, "activation 'swish9'"),
    ],
)
def test_what_has_no_contract_is_refused(changes, message):
    with pytest.raises(ReferenceUnavailableError, match=message):
        hyper_parameters(metadata(**changes), shapes(), CONTRACT)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope__scaling__factor": 1.0},
        {"rope__scaling__type": "none", "rope__scale_linear": 8.0},
        {"rope__scaling__type": "linear", "rope__scale_linear": 0.0},
        {"attention__scale": 0.125, "context_length": 64, "attention__sliding_window": 64},
        {key: values[-1] for key, values in ABSENT.items()},
    ],
)
def test_what_asks_for_nothing_is_read(changes):
    assert hyper_parameters(metadata(**changes), shapes(), CONTRACT) == hyper_parameters(metadata(), shapes(), CONTRACT)


def test_an_unknown_architecture_is_named():
    for arch in ("qwen3", None):
        with pytest.raises(ReferenceUnavailableError, match=f"architecture {arch!r}"):
            hyper_parameters({"general.architecture": arch}, shapes(), CONTRACT)


def test_tensors_are_all_there_all_used_and_of_the_right_shape():
    hyper = hyper_parameters(metadata(), shapes(), CONTRACT)
    for name in PROJECTIONS.values():
        key = f"blk.0.{name}.weight"
        with pytest.raises(ReferenceUnavailableError, match=f"lacks 1 tensors of the contract, as {key}"):
            weight_names(hyper, {k: v for k, v in shapes().items() if k != key})
        with pytest.raises(ReferenceUnavailableError, match=f"{key} has shape"):
            weight_names(hyper, shapes() | {key: (8, 256)})
    assert weight_names(hyper, shapes() | {"blk.0.attn_q.scale": (1,)}) == sorted(shapes())
    with pytest.raises(ReferenceUnavailableError, match=r"nothing in the contract consumes 1 tensors, as rope_freqs"):
        weight_names(hyper, shapes() | {"rope_freqs.weight": (32,)})
