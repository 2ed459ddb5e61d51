"""What a configuration says, field by field; what it may not say is tried on whole checkpoints in test_hf."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ModelFileError
from bitnet.hf_config import MAX_SIZE, read_config

BASE = {
    "model_type": "bitnet",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def read(**changes):
    return read_config(BASE | changes, Path("config.json"))


def test_the_architecture_follows_the_graph_and_the_activation():
    assert read(hidden_act="relu2").arch == "bitnet-b1.58"
    assert read(hidden_act="silu").arch == "bitnet"
    assert read().arch == "bitnet-b1.58"  # transformers' default
    assert read(model_type="llama").arch == "llama"
    assert read(model_type="llama", architectures=["BitNetForCausalLM"]).family == "bitnet"


def test_what_is_not_declared_is_not_told_as_declared():
    assert "bitnet-b1.58.hidden_activation" not in read().metadata
    assert read(hidden_act="relu2").metadata["bitnet-b1.58.hidden_activation"][1] == "relu2"


def test_defaults_are_those_of_transformers_and_said():
    changed = {k: v for k, v in BASE.items() if k not in ("rope_theta", "num_key_value_heads")}
    found = read_config(changed, Path("config.json"))
    assert found.n_head_kv == 4
    assert any("500000" in notice for notice in found.notices)


@pytest.mark.parametrize(
    ("quantisation", "expected"),
    [
        ({"quant_method": "bitnet"}, ("bitlinear", False)),
        ({"quant_method": "bitnet", "linear_class": "autobitlinear"}, ("autobitlinear", False)),
        (
            {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
            ("autobitlinear", True),
        ),
        (None, ("none", True)),
    ],
)
def test_whose_linear_layers_they_are(quantisation, expected):
    found = read(quantization_config=quantisation)
    assert (found.linear_class, found.online) == expected


def test_an_ordinary_llama_is_not_made_ternary():
    found = read(model_type="llama")
    assert (found.linear_class, found.online) == ("none", False)


def test_linear_scaling_divides_every_frequency():
    found = read(rope_scaling={"type": "linear", "factor": 4.0})
    assert (found.rope_factors == np.full(16, 4, np.float32)).all()


def test_llama_3_scaling_against_transformers_formula():
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    found = read(rope_scaling=scaling).rope_factors
    for i in range(16):
        frequency = 10000.0 ** (-2 * i / 32)
        wavelength = 2 * np.pi / frequency
        if wavelength < 32 / 4:
            expected = frequency
        elif wavelength > 32 / 1:
            expected = frequency / 8
        else:
            smooth = (32 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * frequency / 8 + smooth * frequency
        assert found[i] == pytest.approx(frequency / expected, rel=1e-6)


def test_scaling_bounds_in_the_wrong_order():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}
    with pytest.raises(ModelFileError, match="high_freq_factor"):
        read(rope_scaling=scaling | {"original_max_position_embeddings": 32})
    with pytest.raises(ModelFileError, match="factor is missing"):
        read(rope_scaling={"rope_type": "llama3"})


LINEAR = {"rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "parameters", "different"),
    [
        (LINEAR, {"rope_type": "default", "rope_theta": 1e4}, "factor, rope_type"),
        (LINEAR, {"rope_theta": 1e4}, "factor, rope_type"),
        ({"type": "yarn", "factor": 4.0}, LINEAR, "rope_type"),
        ({"type": "dynamic"}, {"rope_type": "default"}, "rope_type"),
        (LINEAR, LINEAR | {"factor": 2.0}, "factor"),
        (LINEAR, LINEAR | {"rope_theta": 5e5}, "rope_theta"),
    ],
)
def test_what_is_said_twice_is_said_alike(scaling, parameters, different):
    """Transformers 5 takes `rope_scaling` in place of all of `rope_parameters`."""
    with pytest.raises(ModelFileError, match=f"rope_scaling differs from rope_parameters in {different}\n"):
        read(rope_scaling=scaling, rope_parameters=parameters)


@pytest.mark.parametrize("other", [LINEAR, {"type": "linear", "factor": 4, "rope_theta": 1e4}, {}, None])
def test_what_is_said_twice_alike_is_read(other):
    for one, two in ((LINEAR, other), (other, LINEAR)):
        assert (read(rope_scaling=one, rope_parameters=two).rope_factors == 4).all()


@pytest.mark.parametrize("factor", [1e-300, 0.5, 1e300])
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_a_factor_that_stretches_nothing(kind, factor):
    with pytest.raises(ModelFileError, match=r"factor is .*, not a number from 1 to"):
        read(rope_scaling={"rope_type": kind, "factor": factor})


def test_llama_3_bounds_that_are_close_to_nothing():
    bounds = {"low_freq_factor": 1e-309, "high_freq_factor": 2e-309, "original_max_position_embeddings": 1e300}
    assert (read(rope_scaling={"rope_type": "llama3", "factor": 8.0, **bounds}).rope_factors == 1).all()


def test_heads_wider_than_the_model_are_told():
    found = read(head_dim=64)
    assert found.metadata["bitnet-b1.58.attention.key_length"][1] == 64


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    *BASE,
    *("head_dim", "hidden_act", "rope_scaling", "rope_parameters", "quantization_config", "tie_word_embeddings"),
    *("architectures", "partial_rotary_factor", "attention_bias"),
)
ROPE = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
QUANTISATION = ("quant_method", "linear_class", "quantization_mode", "use_rms_norm")
INSIDE = st.dictionaries(
    st.sampled_from((*ROPE, "rope_theta", *QUANTISATION)),
    JSON | st.sampled_from(("llama3", "linear", "bitnet", "bitlinear", "online", 1.0, 8.0)),
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | INSIDE, max_size=4))
def test_any_value_in_any_field_is_read_or_refused(changes):
    with suppress(ModelFileError):
        found = read(**changes)
        assert found.n_head * found.head_dim <= MAX_SIZE
        assert found.n_head % found.n_head_kv == 0
        assert found.rope_factors is None or np.isfinite(found.rope_factors).all()
