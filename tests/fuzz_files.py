"""The other files that come from outside: checkpoints, their configurations and indices, tokenizers of every format.

An input is one file. What it looks like says which, and the files beside it are sound.
"""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path

import checkpoints as ck
import small_models
import tokenizer_exports as exports

from bitnet.architecture import read_config
from bitnet.errors import BitNetError
from bitnet.hf import open_model
from bitnet.tokenizer_files import read
from bitnet.tokenizer_model import is_ranked
from bitnet.validate import validate_weights
from bitnet.weights import read_weights

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
JSON, MODEL, RANKS = "tokenizer.json", "tokenizer.model", "ranks"
SHARD = "model-00001-of-00001.safetensors"
_WORDS = ((b"weight_map", ck.INDEX), (b"hidden_size", CONFIG), (b"added_tokens_decoder", TOKENIZER_CONFIG))


@lru_cache(1)
def sound() -> dict[str, bytes]:
    """A checkpoint of one layer with two tokenizers, by name of the file."""
    spm, bpe = small_models.vocabulary("llama"), small_models.vocabulary("gpt2")
    tensors = _tensors(len(spm["tokenizer.ggml.tokens"]))
    with tempfile.TemporaryDirectory() as folder:
        ck.save(Path(folder) / SHARD, tensors)
        weights = (Path(folder) / SHARD).read_bytes()
    texts = {
        CONFIG: _CONFIGURATION | {"vocab_size": len(spm["tokenizer.ggml.tokens"])},
        ck.INDEX: {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(tensors, SHARD)},
        JSON: exports.tokenizer_json(bpe),
        TOKENIZER_CONFIG: exports.tokenizer_config(spm),
    }
    files = {name: json.dumps(values).encode() for name, values in texts.items()}
    files |= {ck.SINGLE: weights, MODEL: exports.sentencepiece_model(spm), RANKS: exports.ranks(bpe)}
    return files | {f"{RANKS} {TOKENIZER_CONFIG}": json.dumps(exports.tokenizer_config(bpe)).encode()}


_CONFIGURATION = {
    "model_type": "bitnet",
    "architectures": ["BitNetForCausalLM"],
    "hidden_act": "relu2",
    "hidden_size": 16,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "quantization_config": {"linear_class": "bitlinear", "quant_method": "bitnet", "quantization_mode": "offline"},
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
}


def _tensors(n_vocab: int) -> ck.Tensors:
    """Of BitLinear: four rows a byte."""
    layer = "model.layers.0."
    tensors: ck.Tensors = {
        "model.embed_tokens.weight": ck.floats([n_vocab, 16], [float(i) for i in range(16)], "F16"),
        "model.norm.weight": ck.floats([16], 1.0),
    }
    for name in ("input_layernorm", "post_attention_layernorm", "self_attn.attn_sub_norm", "mlp.ffn_sub_norm"):
        tensors[f"{layer}{name}.weight"] = ck.floats([16], 1.0)
    codes = (0b00_01_10_01, 0b10_00_01_10, 0b01_10_00_10)
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        packed = bytes(codes[i % 3] for i in range(64))
        tensors[f"{layer}{name}_proj.weight"] = ("U8", [4, 16], packed)
        tensors[f"{layer}{name}_proj.weight_scale"] = ck.floats([1], 2.0)
    return tensors


def name_of(raw: bytes) -> str:
    """Which file an input is."""
    if raw[8:9] == b"{":
        return ck.SINGLE
    if raw[:1] != b"{":
        return MODEL
    return next((name for word, name in _WORDS if word in raw), JSON)


@lru_cache(1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


def _beside(name: str, raw: bytes) -> dict[str, bytes]:
    """The sound files that a file needs."""
    all_ = sound()
    if name == MODEL:
        return {TOKENIZER_CONFIG: all_[f"{RANKS} {TOKENIZER_CONFIG}" if is_ranked(raw) else TOKENIZER_CONFIG]}
    if name == TOKENIZER_CONFIG:
        return {MODEL: all_[MODEL]}
    if name == JSON:
        return {}
    weights = {SHARD: all_[ck.SINGLE]} if name == ck.INDEX else {ck.SINGLE: all_[ck.SINGLE]}
    return {CONFIG: all_[CONFIG], MODEL: all_[MODEL]} | weights


def stages(raw: bytes) -> str:
    """The last stage that the folder with this file in it passes: nothing, file, or weights."""
    folder, name = Path(_folder().name), name_of(raw)
    for path in folder.iterdir():
        path.unlink()  # not written over: what was mapped stays as it was
    for kept, content in _beside(name, raw).items():
        (folder / kept).write_bytes(content)
    (folder / name).write_bytes(raw)
    try:
        if name in (JSON, MODEL, TOKENIZER_CONFIG):
            found = read(folder / (JSON if name == JSON else MODEL)).tokenizer
            found.decode(found.encode("Once, <s> upon a time\n"))
            return "file"
        model = open_model(folder)
    except BitNetError as error:
        str(error)  # a message can always be made
        return "nothing"
    try:
        config, _ = read_config(model)
        validate_weights(model, config)
        read_weights(model, config)
    except BitNetError as error:
        str(error)
        return "file"
    return "weights"
