"""Tiny random models for llama.cpp, written by the `gguf` package: seeded, a few hundred kilobytes, quick to make.

Ternary weights with block scale 1 and their true scale in a `.scale` tensor, so that the same model exists in
every type without loss (Q8_0 excepted: its f16 block scale 1/127 is inexact).
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from reference.process import ProcessRunner

N_EMBD, N_FF, N_LAYER, N_HEAD, N_HEAD_KV = 256, 512, 2, 4, 2
HEAD_DIM = N_EMBD // N_HEAD
N_VOCAB = 320
TYPES = ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0")


def write(
    path: Path,
    *,
    arch: str = "bitnet",
    weight_type: str = "F32",
    head_type: str = "F32",
    scales: bool = True,
    pre: str = "llama-bpe",
    seed: int = 0,
    mixed: str | None = None,
) -> Path:
    """Write a model.

    Args:
        arch: `bitnet` (sub-norms, tied head, byte-level BPE) or `llama` (own head, SPM).
        weight_type: Type of the seven projections.
        head_type: Type of the head, and of the token embedding.
        scales: Whether each projection has a `.scale` tensor.
        pre: Name of the pre-tokenizer.
        mixed: Type of ffn_down alone, if it differs.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(N_LAYER)
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    (_bpe if arch.startswith("bitnet") else _spm)(writer, pre)

    def add(name: str, values: np.ndarray, of: str) -> None:
        kind = gguf.GGMLQuantizationType[of]
        writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)

    def norm(name: str, width: int) -> None:
        add(name, rng.uniform(0.5, 1.5, width), "F32")

    def projection(name: str, rows: int, columns: int, of: str = weight_type) -> None:
        trits = rng.integers(-1, 2, (rows, columns))
        trits[:, ::256] = 1  # no block without a non-zero: the package's encoder takes max|w| as block scale
        scale = rng.uniform(0.5, 1.5) / np.sqrt(columns)
        add(f"{name}.weight", trits if scales else trits * scale, of)
        if scales:
            add(f"{name}.scale", np.array([scale]), "F32")

    add("token_embd.weight", rng.normal(0, 1, (N_VOCAB, N_EMBD)), head_type)
    norm("output_norm.weight", N_EMBD)
    if arch == "llama":
        add("output.weight", rng.normal(0, 0.1, (N_VOCAB, N_EMBD)), head_type)
    for il in range(N_LAYER):
        norm(f"blk.{il}.attn_norm.weight", N_EMBD)
        norm(f"blk.{il}.ffn_norm.weight", N_EMBD)
        if arch == "bitnet":
            norm(f"blk.{il}.attn_sub_norm.weight", N_EMBD)
            norm(f"blk.{il}.ffn_sub_norm.weight", N_FF)
        projection(f"blk.{il}.attn_q", N_EMBD, N_EMBD)
        projection(f"blk.{il}.attn_k", N_HEAD_KV * HEAD_DIM, N_EMBD)
        projection(f"blk.{il}.attn_v", N_HEAD_KV * HEAD_DIM, N_EMBD)
        projection(f"blk.{il}.attn_output", N_EMBD, N_EMBD)
        projection(f"blk.{il}.ffn_gate", N_FF, N_EMBD)
        projection(f"blk.{il}.ffn_up", N_FF, N_EMBD)
        projection(f"blk.{il}.ffn_down", N_EMBD, N_FF, mixed or weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Models:
    """Models by architecture, weight type and head type, each written once into a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, arch: str, weight_type: str, head_type: str = "F32") -> Path:
        path = self.folder / f"{arch}.{weight_type}.{head_type}.gguf"
        if path.exists():
            return path
        return write(path, arch=arch, weight_type=weight_type, head_type=head_type)


def live(model: Path, *, timeout: float = 120.0, **options) -> ProcessRunner:
    """llama.cpp on a model, in a child process."""
    return ProcessRunner("reference.llama_cpp:LlamaCpp", {"model": str(model), **options}, timeout=timeout)


def _bpe(writer: gguf.GGUFWriter, pre: str) -> None:
    """Every byte, two merges, and special tokens up to the size of the vocabulary."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in letters]
    spelled = {byte: chr(byte) for byte in letters} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [spelled[byte] for byte in range(256)] + ["th", "the"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    while len(tokens) < N_VOCAB:
        tokens.append(f"<|special_{len(tokens)}|>")
        kinds.append(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    writer.add_add_bos_token(True)  # noqa: FBT003  # the writer's own signature


def _spm(writer: gguf.GGUFWriter, _pre: str) -> None:
    """Unknown, begin and end, every byte, and a few pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "th", "▁the"]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))
    while len(tokens) < N_VOCAB:
        tokens.append(f"[piece {len(tokens)}]")
        kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)  # noqa: FBT003  # the writer's own signature
