"""Checkpoints that this project writes: what transformers reads in them, and what cannot be written."""

import json

import checkpoints as ck
import golden_models
import numpy as np
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st

import bitnet
from bitnet.convert import convert
from bitnet.errors import UsageError
from bitnet.gguf import GGMLType, TensorData, read, write
from bitnet.hf_write import divisor

SOURCE = golden_models.model("b158_a")


def test_the_configuration_says_what_the_model_is(tmp_path):
    convert(SOURCE, tmp_path / "m", type="hf")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    config = bitnet.load(SOURCE).config
    assert values["model_type"] == "bitnet"
    assert values["hidden_act"] == config.activation
    assert values["rms_norm_eps"] == 1e-5
    assert values["quantization_config"]["linear_class"] == "autobitlinear"
    assert values["tie_word_embeddings"] is config.tied_head


def test_packed_bytes_and_scales_are_those_of_the_gguf(tmp_path):
    convert(SOURCE, tmp_path / "m", type="hf")
    tensors = ck.load(tmp_path / "m" / ck.SINGLE)
    dtype, shape, raw = tensors[ck.Q]
    packed = np.frombuffer(raw, np.uint8).reshape(shape)
    trits = np.concatenate([((packed >> (2 * i)) & 3).astype(np.int8) - 1 for i in range(4)])
    matrix = bitnet.load(SOURCE).weights.layers[0].q
    scale = np.frombuffer(tensors[f"{ck.Q}_scale"][2], "<f4")[0]
    assert dtype == "U8"
    assert scale == matrix.scale
    from bitnet.codecs.i2_s import codes_to_trits

    assert (codes_to_trits(matrix.codes) == trits).all()


def test_a_width_of_heads_that_transformers_does_not_know(tmp_path):
    keys, tensors = small_models.parts("bitnet-b1.58", GGMLType.F16, 64)
    keys |= {"bitnet-b1.58.attention.key_length": 32, "bitnet-b1.58.attention.value_length": 32}
    keys["bitnet-b1.58.rope.dimension_count"] = 32
    for name, shape in (("q", (128, 64)), ("k", (32, 64)), ("v", (32, 64)), ("output", (64, 128))):
        full = f"blk.0.attn_{name}.weight"
        tensors[full] = TensorData(name=full, shape=shape, type=GGMLType.F16, data=np.eye(*shape, dtype=np.float16))
    full = "blk.0.attn_sub_norm.weight"
    tensors[full] = TensorData(name=full, shape=(128,), type=GGMLType.F32, data=np.ones(128, np.float32))
    write(tmp_path / "a.gguf", keys | small_models.vocabulary(), tensors.values())
    with pytest.raises(UsageError, match="heads as wide as n_embd"):
        convert(tmp_path / "a.gguf", tmp_path / "m", type="hf")


def test_a_tokenizer_that_cannot_be_written_is_said(tmp_path):
    keys, tensors = small_models.parts("llama", GGMLType.F16, 16, tokenizer="llama")
    write(tmp_path / "a.gguf", keys | small_models.vocabulary("llama"), tensors.values())
    done = convert(tmp_path / "a.gguf", tmp_path / "m", type="hf")
    assert any("no tokenizer is written" in notice for notice in done.notices)
    assert read(tmp_path / "a.gguf").metadata["tokenizer.ggml.model"] == "llama"


@given(st.floats(2**-40, 2**40, width=32))
def test_the_divisor_is_the_best_there_is(scale):
    scale = np.float32(scale)
    found = divisor(scale)
    apart = abs(np.float32(1) / found - scale)
    assert apart <= np.spacing(scale)
    near = np.float32(1) / scale
    for _ in range(4):
        near = np.nextafter(near, np.float32(0))
    for _ in range(9):
        assert abs(np.float32(1) / near - scale) >= apart
        near = np.nextafter(near, np.float32(np.inf))


@pytest.mark.hf
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    ("golden", "form"),
    [
        ("b158_a", "hf"),
        ("b158_a", "hf-bitlinear"),
        ("b158_hd128", "hf"),
        ("bitnet_silu", "hf"),
        ("llama_tied", "hf"),
        ("llama_tied", "hf-bitlinear"),
    ],
)
def test_transformers_computes_the_same_logits(tmp_path, monkeypatch, golden, form):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = golden_models.model(golden)
    convert(source, tmp_path / "m", type=form)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager")
    ids = (3, 1, 4, 1, 5, 9, 2, 6)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].float().numpy()
    ours = bitnet.load(tmp_path / "m").logits(ids)
    apart = np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart[0] <= 1e-6
    assert apart.max() <= 5e-2  # one int8 rounding that falls the other way is seen by every later position
