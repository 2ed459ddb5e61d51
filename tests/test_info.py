"""What a model says it is, is what it is."""

from __future__ import annotations

import json
from dataclasses import replace

import golden_models
import pytest

import bitnet
from bitnet.config import ModelConfig


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_a_model_described(name):
    model = bitnet.load(golden_models.model(name), n_threads=1)
    info, c = model.info, model.config
    assert info.config == c
    assert info.bytes_per_token == model.weights.n_bytes
    assert info.n_bytes == model.gguf.n_bytes
    assert sum(info.tensor_types.values()) == len(model.gguf.tensors)
    projections = c.n_layer * (2 * c.n_q * c.n_embd + 2 * c.n_kv * c.n_embd + 3 * c.n_ff * c.n_embd)
    norms = c.n_layer * (2 * c.n_embd + (c.n_q + c.n_ff if c.sub_norms else 0)) + c.n_embd
    tables = (1 if c.tied_head else 2) * c.n_vocab * c.n_embd
    extra = sum(1 for tensor in model.gguf.tensors if tensor.endswith(".scale"))
    assert info.parameters == projections + norms + tables + extra
    plain = json.loads(json.dumps(info.to_dict()))
    assert ModelConfig(**plain["config"]) == c
    assert (plain["device"], plain["threads"], plain["notices"]) == ("cpu", 1, list(model.notices))


def test_for_a_notebook():
    model = bitnet.load(golden_models.model("b158_a"), n_threads=1)
    assert model._repr_html_() == model.info._repr_html_()
    assert "relu2 (architecture)" in model._repr_html_()
    nasty = replace(model.info, path="<b>.gguf", notices=("<script>",))._repr_html_()
    assert "&lt;b&gt;.gguf" in nasty
    assert "<script>" not in nasty
