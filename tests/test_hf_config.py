"""What a configuration says, field by field; what it may not say is tried on whole checkpoints in test_hf."""

from pathlib import Path

import numpy as np
import pytest

from bitnet.errors import ModelFileError
from bitnet.hf_config import read_config

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


def test_heads_wider_than_the_model_are_told():
    found = read(head_dim=64)
    assert found.metadata["bitnet-b1.58.attention.key_length"][1] == 64
