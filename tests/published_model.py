"""A file shaped as the published BitNet-b1.58-2B-4T: its keys, names, shapes, types and size, with made-up contents.

The vocabulary is every string over ten symbols up to five, and some of six, so that every token has merges. It has no
`tokenizer.ggml.pre`, as the published one has none, and the chat template is as long as the header needs to be.
"""

from __future__ import annotations

import struct
from itertools import islice, product
from pathlib import Path

import gguf_bytes
import numpy as np
import small_models

from bitnet.gguf import GGMLType, ValueType
from bitnet.gguf_types import align_up, tensor_bytes

N_LAYER, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM = 30, 2560, 6912, 20, 5, 128
N_VOCAB, N_MERGES, N_SPECIAL = 128_256, 280_147, 256
N_BYTES = 1_187_801_280
SYMBOLS = "ĠetĉĊÃĪâðļ"  # some of one byte, some of two, so that the header is a little shorter than the published one
TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges."""
    single = small_models.byte_symbols()
    n = N_VOCAB - N_SPECIAL - len(single)
    longer = list(islice(("".join(p) for length in range(2, 7) for p in product(SYMBOLS, repeat=length)), n))
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{i}|>" for i in range(N_SPECIAL - 3)),
    ]
    known = {*single, *longer}
    merges = (f"{t[:i]} {t[i:]}" for t in longer for i in range(1, len(t)) if t[i:] in known and t[:i] in known)
    kept = list(islice(merges, N_MERGES))
    return [*single, *longer, *special[:9], "<|eot_id|>", *special[9:]], kept


def tensors() -> list[tuple[str, tuple[int, ...], GGMLType]]:
    """Name, shape (slowest first) and type of all 332, in order."""
    kv = N_HEAD_KV * HEAD_DIM
    layer = {
        "attn_norm": (N_EMBD,),
        "ffn_down": (N_EMBD, N_FF),
        "ffn_sub_norm": (N_FF,),
        "ffn_gate": (N_FF, N_EMBD),
        "ffn_up": (N_FF, N_EMBD),
        "ffn_norm": (N_EMBD,),
        "attn_sub_norm": (N_EMBD,),
        "attn_k": (kv, N_EMBD),
        "attn_output": (N_EMBD, N_EMBD),
        "attn_q": (N_EMBD, N_EMBD),
        "attn_v": (kv, N_EMBD),
    }
    found = [("token_embd.weight", (N_VOCAB, N_EMBD), GGMLType.F16)]
    for il in range(N_LAYER):
        for name, shape in layer.items():
            found.append((f"blk.{il}.{name}.weight", shape, GGMLType.F32 if len(shape) == 1 else GGMLType.I2_S))
    return [*found, ("output_norm.weight", (N_EMBD,), GGMLType.F32)]


def header(template: str) -> bytes:
    """Everything before the data."""
    arch, tokens, merges = "bitnet-b1.58", *vocabulary()
    strings = {name: b"".join(map(gguf_bytes.string, values)) for name, values in (("t", tokens), ("m", merges))}
    types = np.array([1] * (N_VOCAB - N_SPECIAL) + [3] * N_SPECIAL, "<i4").tobytes()
    text, u32, array, key = gguf_bytes.text_key, gguf_bytes.u32_key, gguf_bytes.array, gguf_bytes.key
    keys = (
        text("general.architecture", arch),
        text("general.name", "bitnet2b"),
        u32(f"{arch}.vocab_size", N_VOCAB),
        u32(f"{arch}.context_length", 4096),
        u32(f"{arch}.embedding_length", N_EMBD),
        u32(f"{arch}.block_count", N_LAYER),
        u32(f"{arch}.feed_forward_length", N_FF),
        u32(f"{arch}.rope.dimension_count", HEAD_DIM),
        u32(f"{arch}.attention.head_count", N_HEAD),
        u32(f"{arch}.attention.head_count_kv", N_HEAD_KV),
        key("tokenizer.ggml.add_bos_token", ValueType.BOOL, b"\1"),
        key(f"{arch}.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, struct.pack("<f", 1e-5)),
        key(f"{arch}.rope.freq_base", ValueType.FLOAT32, struct.pack("<f", 500_000.0)),
        u32("general.file_type", 40),
        text("tokenizer.ggml.model", "gpt2"),
        key("tokenizer.ggml.tokens", ValueType.ARRAY, array(ValueType.STRING, len(tokens), strings["t"])),
        key("tokenizer.ggml.scores", ValueType.ARRAY, array(ValueType.FLOAT32, N_VOCAB, bytes(4 * N_VOCAB))),
        key("tokenizer.ggml.token_type", ValueType.ARRAY, array(ValueType.INT32, N_VOCAB, types)),
        key("tokenizer.ggml.merges", ValueType.ARRAY, array(ValueType.STRING, len(merges), strings["m"])),
        u32("tokenizer.ggml.bos_token_id", N_VOCAB - N_SPECIAL),
        u32("tokenizer.ggml.eos_token_id", N_VOCAB - N_SPECIAL + 1),
        u32("tokenizer.ggml.padding_token_id", N_VOCAB - N_SPECIAL + 1),
        text("tokenizer.chat_template", template),
        u32("general.quantization_version", 2),
    )
    described, offset = [], 0
    for name, shape, type_ in tensors():
        described.append(gguf_bytes.tensor(name, shape[::-1], type_, offset))
        offset = align_up(offset + tensor_bytes(type_, shape), 32)
    return gguf_bytes.file(keys, tuple(described))


def write(path: Path, *, weights: bool = False) -> Path:
    """The file, sparse unless it is to have weights: random trits, a random embedding, norms near 1."""
    data = sum(align_up(tensor_bytes(type_, shape), 32) for _, shape, type_ in tensors())
    short = N_BYTES - data - len(header(TEMPLATE))
    assert 4 <= short < 200_000, short
    head = header(TEMPLATE + "{#" + "-" * (short - 4) + "#}")
    with path.open("wb") as out:
        out.write(head)
        if weights:
            _fill(out)
        out.truncate(N_BYTES)
    return path


def _fill(out) -> None:
    """Made from one block of random numbers, shifted for each tensor, since a billion of them would take minutes."""
    rng = np.random.default_rng(4)
    codes = sum(rng.integers(0, 3, 1 << 22).astype(np.uint8) << shift for shift in (0, 2, 4, 6)).astype(np.uint8)
    halves = rng.normal(0, 1, 1 << 20).astype(np.float16).view(np.uint8)
    for i, (_, shape, type_) in enumerate(tensors()):
        out.seek(align_up(out.tell(), 32))
        n = tensor_bytes(type_, shape)
        if type_ is GGMLType.F32:
            out.write(rng.uniform(0.5, 1.5, shape).astype("<f4").tobytes())
            continue
        source = np.roll(codes, 4099 * i) if type_ is GGMLType.I2_S else halves
        n_codes = n - 32 if type_ is GGMLType.I2_S else n
        for begin in range(0, n_codes, len(source)):
            out.write(source[: n_codes - begin].data)
        if type_ is GGMLType.I2_S:
            out.write(struct.pack("<f28x", 1.5 / np.sqrt(shape[1])))
