"""Configuration is checked where it enters, and its records never change."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.config import BITNET_CPP, ModelConfig, Numerics
from bitnet.errors import UsageError

CHOICES = {
    "activation": ("int8_token", "q8_k", "q8_0", "f16", "bf16", "none"),
    "kv": ("f32", "f16"),
    "query": ("f32", "f16"),
    "probs": ("f32", "f16", "f16_decode"),
    "head": ("f32", "f16", "bf16", "f16_decode"),
    "rope": ("f64", "f32_iterated", "f32"),
}
NUMERICS = st.fixed_dictionaries({name: st.sampled_from(choices) for name, choices in CHOICES.items()})


def model_config(**changes):
    values = {
        "arch": "bitnet-b1.58",
        "activation": "relu2",
        "activation_source": "architecture",
        "rope_style": "half_split",
        "sub_norms": True,
        "tied_head": True,
        "n_layer": 4,
        "n_embd": 256,
        "n_ff": 768,
        "n_head": 8,
        "n_head_kv": 2,
        "head_dim": 64,
        "n_vocab": 512,
        "n_ctx": 256,
        "rope_theta": 500_000.0,
        "rms_eps": 1e-5,
    }
    return ModelConfig(**(values | changes))


def test_widths_follow_the_heads_and_not_the_embedding():
    config = model_config()
    assert (config.n_q, config.n_kv) == (512, 128)


@pytest.mark.parametrize("record", [model_config(), Numerics()])
def test_records_are_frozen_and_slotted(record):
    name = fields(record)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(record, name, None)
    assert not hasattr(record, "__dict__")


def test_the_engine_rounds_only_where_bitnet_says_so():
    assert Numerics().to_dict() == {
        "activation": "int8_token",
        "kv": "f32",
        "query": "f32",
        "probs": "f32",
        "head": "f32",
        "rope": "f64",
    }


def test_the_choices_of_numerics_are_these_and_no_others():
    assert {field.name for field in fields(Numerics)} == set(CHOICES)


@given(NUMERICS)
def test_numerics_round_trip(values):
    numerics = Numerics.from_dict(values)
    assert numerics.to_dict() == values
    assert Numerics.from_dict(numerics.to_dict()) == numerics


def test_the_recorded_engine_has_valid_numerics():
    assert Numerics.from_dict(BITNET_CPP.to_dict()) == BITNET_CPP
    assert Numerics() != BITNET_CPP


@given(st.sampled_from(sorted(CHOICES)), st.text())
def test_an_unknown_choice_is_refused_by_name(name, value):
    if value in CHOICES[name]:
        return
    with pytest.raises(UsageError) as caught:
        Numerics.from_dict({name: value})
    assert f"numerics.{name}" in caught.value.what
    assert all(choice in caught.value.remedy for choice in CHOICES[name])


def test_an_unknown_field_of_numerics_is_refused():
    with pytest.raises(UsageError, match="unknown numerics field 'kv_type'") as caught:
        Numerics.from_dict({"kv_type": "f16"})
    assert "kv" in caught.value.remedy
