"""What a file is, from its header."""

from __future__ import annotations

import pytest
from command_line import MODELS, ROOT

from bitnet.file_info import describe, is_projection
from bitnet.gguf import read
from bitnet.hf import open_model


def test_a_gguf():
    found = describe(read(MODELS / "tiny-relu2.i2_s.gguf"))
    assert (found.name, found.main_type, found.fault) == ("tiny-relu2", "I2_S", None)
    assert found.types["I2_S"].n_tensors == 28
    assert found.n_weights == sum(t.n_weights for t in found.types.values())
    assert found.tokenizer.pre == "llama-bpe"
    assert found.tokenizer.chat_template


@pytest.mark.parametrize("name", ["tiny-silu.i2_s", "tiny-llama.f32", "tiny-llama.tq2_0"])
def test_bytes_for_each_token_are_those_of_the_loaded_model(name):
    import bitnet

    path = MODELS / f"{name}.gguf"
    loaded, found = bitnet.load(path, isa="generic"), describe(read(path))
    if "i2_s" in name:  # two bits a weight here as there, without the 32 bytes of the scale
        tails = 32 * found.types["I2_S"].n_tensors
        assert found.bytes_per_token - tails == loaded.info.bytes_per_token
    assert found.n_weights == loaded.info.parameters
    assert found.config == loaded.config


def test_a_checkpoint():
    found = describe(open_model(ROOT / "fixtures/hf/bitnet-bitlinear"))
    assert found.main_type == "I2_S"
    assert found.config.arch.startswith("bitnet")


def test_projections():
    assert is_projection("blk.3.ffn_up.weight")
    assert not is_projection("blk.3.ffn_norm.weight")
    assert not is_projection("blk.3.attn_q.scale")
    assert not is_projection("output.weight")
