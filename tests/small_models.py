"""Whole models of a few kilobytes: what a test breaks, and what a fuzzer starts from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.codecs import CODECS, Ternary
from bitnet.gguf import GGMLType, TensorData, ValueType, write

N_VOCAB = 270
_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]


def byte_symbols() -> list[str]:
    """GPT-2's spelling of all bytes, in the order of the bytes."""
    others = [byte for byte in range(256) if byte not in _BYTES]
    spelled = {byte: chr(byte) for byte in _BYTES} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]


def vocabulary(model: str = "gpt2") -> dict[str, Any]:
    """Keys of a tokenizer; `gpt2` and `llama` can spell everything, `tiny` (also of the second kind) very little."""
    pre: dict[str, Any] = {}
    n_vocab = 8 if model == "tiny" else N_VOCAB
    if model == "gpt2":
        tokens = [*byte_symbols(), "th", "the", "he"]
        pre = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": ["t h", "th e", "h e"]}
    elif model == "tiny":
        tokens = ["<unk>", "▁", "t", "h", "e", "th"]
    else:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "th"]
    kinds = {"gpt2": [1] * len(tokens), "llama": [2, 3, 3, *[6] * 256, *[1] * 5], "tiny": [2, 1, 1, 1, 1, 1]}[model]
    while len(tokens) < n_vocab:
        tokens.append(f"<|{len(tokens)}|>")
        kinds.append(3)
    return {
        "tokenizer.ggml.model": "gpt2" if model == "gpt2" else "llama",
        **pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(n_vocab, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": n_vocab - 2,
        "tokenizer.ggml.eos_token_id": n_vocab - 1,
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def parts(
    arch: str = "llama", kind: GGMLType = GGMLType.F16, width: int = 16, *, tokenizer: str = "gpt2"
) -> tuple[dict[str, Any], dict[str, TensorData]]:
    """Keys and tensors of a model of one layer.

    Args:
        arch: Name of its contract.
        kind: Type of the projections whose rows suit it; the others are F16.
        width: n_embd and n_ff; a head has 16.
        tokenizer: `gpt2`, `llama` or `tiny`.
    """
    rng = np.random.default_rng(7)
    n_vocab = 8 if tokenizer == "tiny" else N_VOCAB
    keys = {
        "general.architecture": arch,
        f"{arch}.context_length": 64,
        f"{arch}.embedding_length": width,
        f"{arch}.block_count": 1,
        f"{arch}.feed_forward_length": width,
        f"{arch}.rope.dimension_count": 16,
        f"{arch}.attention.head_count": max(1, width // 16),
        f"{arch}.attention.head_count_kv": 1,
        f"{arch}.attention.layer_norm_rms_epsilon": (ValueType.FLOAT32, 1e-5),
        f"{arch}.rope.freq_base": (ValueType.FLOAT32, 10000.0),
    }
    tensors: dict[str, TensorData] = {}

    def add(name: str, shape: tuple[int, ...], of: GGMLType, values: Any) -> None:
        tensors[name] = TensorData(name=name, shape=shape, type=of, data=CODECS[of].encode(values))

    def projection(name: str, n_row: int, n_col: int) -> None:
        of = kind if n_col % CODECS[kind].block == 0 else GGMLType.F16
        trits = rng.integers(-1, 2, (n_row, n_col)).astype(np.int8)
        if CODECS[of].ternary:
            block_scale = np.full((n_row, n_col // 256), 0.25, np.float32) if of != GGMLType.I2_S else None
            values: Any = Ternary(trits=trits, scale=0.25 if block_scale is None else None, block_scale=block_scale)
        else:
            values = trits * np.float32(0.25)
        add(name, (n_row, n_col), of, values)

    def norm(name: str, n: int) -> None:
        add(name, (n,), GGMLType.F32, rng.uniform(0.5, 1.5, (1, n)).astype(np.float32))

    add("token_embd.weight", (n_vocab, width), GGMLType.F16, rng.normal(0, 1, (n_vocab, width)).astype(np.float32))
    for name in ("attn_norm", "ffn_norm", *(("attn_sub_norm", "ffn_sub_norm") if arch != "llama" else ())):
        norm(f"blk.0.{name}.weight", width)
    for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        projection(f"blk.0.{name}.weight", width, width)
    for name in ("attn_k", "attn_v"):
        projection(f"blk.0.{name}.weight", 16, width)
    norm("output_norm.weight", width)
    return keys | vocabulary(tokenizer), tensors


def model_bytes(keys: dict[str, Any], tensors: dict[str, TensorData]) -> bytes:
    """The file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write(path, keys, tensors.values())
        return path.read_bytes()
