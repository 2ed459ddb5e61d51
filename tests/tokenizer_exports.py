"""A GGUF's vocabulary written as the other formats: `tokenizer.json`, tiktoken's ranks, SentencePiece's message.

None of it uses the readers under test. The protocol buffer is spelled byte by byte.
"""

from __future__ import annotations

import base64
import json
import struct

LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2_SPLIT = LLAMA_3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

_SPLIT = {"llama-bpe": LLAMA_3_SPLIT, "qwen2": QWEN_2_SPLIT}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_OWN_RULES = _BYTES | {"use_regex": True}
PRE_TOKENIZERS = {
    "gpt-2": _OWN_RULES,
    "starcoder": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _OWN_RULES]},
    "falcon": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            _OWN_RULES,
            {"type": "Digits", "individual_digits": False},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
        ],
    },
} | {
    name: {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            _BYTES | {"use_regex": False},
        ],
    }
    for name, pattern in _SPLIT.items()
}


def texts(keys):
    tokens = keys["tokenizer.ggml.tokens"]
    return [token.decode() if isinstance(token, bytes) else token for token in tokens]


def added_tokens(keys):
    types = keys["tokenizer.ggml.token_type"]
    return [
        {"id": i, "content": text, "special": int(types[i]) != USER_DEFINED, "lstrip": False, "rstrip": False,
         "single_word": False, "normalized": False}
        for i, text in enumerate(texts(keys))
        if int(types[i]) in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip


def tokenizer_json(keys, *, rules="llama-bpe", pairs=True):
    """The vocabulary as Hugging Face writes it."""
    tokens, added = texts(keys), added_tokens(keys)
    spm = keys["tokenizer.ggml.model"] == "llama"
    special = {token["id"] for token in added}
    merges = _spm_merges(keys) if spm else [_text(merge).split(" ") for merge in keys["tokenizer.ggml.merges"]]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>" if spm else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": spm,
        "byte_fallback": spm,
        "ignore_merges": rules == "llama-bpe" and not spm,
        "vocab": {text: i for i, text in enumerate(tokens) if spm or i not in special},
        "merges": merges if pairs else [" ".join(merge) for merge in merges],
    }
    bos = tokens[int(keys["tokenizer.ggml.bos_token_id"])]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [int(keys["tokenizer.ggml.bos_token_id"])], "tokens": [bos]}},
    }
    marks = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": marks} if spm else None,
        "pre_tokenizer": None if spm else PRE_TOKENIZERS[rules],
        "post_processor": {"type": "Sequence", "processors": [_OWN_RULES, template]},
        "decoder": None,
        "model": model,
    }


def tokenizer_config(keys, **changes):
    """What stands beside it."""
    tokens = texts(keys)
    listed = {str(token["id"]): {"content": token["content"], "special": token["special"]}
              for token in added_tokens(keys)}  # fmt: skip
    return {
        "bos_token": tokens[int(keys["tokenizer.ggml.bos_token_id"])],
        "eos_token": {"content": tokens[int(keys["tokenizer.ggml.eos_token_id"])]},
        "added_tokens_decoder": listed,
    } | changes


def ranks(keys):
    """tiktoken's file of the ordinary tokens."""
    byte = {symbol: value for value, symbol in enumerate(_symbols())}
    ordinary = len(texts(keys)) - len(added_tokens(keys))
    lines = []
    for i, text in enumerate(texts(keys)[:ordinary]):
        lines.append(base64.b64encode(bytes(byte[symbol] for symbol in text)) + b" %d\n" % i)
    return b"".join(lines)


def sentencepiece_model(keys, *, model_type=2, add_dummy_prefix=True, charsmap=b""):
    """The vocabulary as a SentencePiece message, with fields that no reader here knows."""
    scores, types = keys["tokenizer.ggml.scores"], keys["tokenizer.ggml.token_type"]
    raw = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", scores[i]) + b"\x18" + _varint(int(types[i])))
        for i, text in enumerate(texts(keys))
    )
    bos, eos = int(keys["tokenizer.ggml.bos_token_id"]), int(keys["tokenizer.ggml.eos_token_id"])
    trainer = b"\x18" + _varint(model_type) + _field(2, b"prefix") + b"\x98\x02\x01" + b"\xc0\x02\x00"
    trainer += b"\xc8\x02" + _varint(bos) + b"\xd0\x02" + _varint(eos)
    normaliser = _field(1, b"identity") + _field(2, charsmap) + b"\x18" + _varint(int(add_dummy_prefix)) + b"\x20\x00"
    return raw + _field(2, trainer) + _field(3, normaliser)


def write(folder, name, content):
    """A file of text, bytes or JSON."""
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _spm_merges(keys):
    """Every split of every piece into two pieces, best-scored piece first, as converters write it."""
    scores, types, tokens = keys["tokenizer.ggml.scores"], keys["tokenizer.ggml.token_type"], texts(keys)
    ids = {text: i for i, text in enumerate(tokens) if int(types[i]) == NORMAL}
    found = [
        (-float(scores[i]), ids[text[:at]], ids[text[at:]], [text[:at], text[at:]])
        for text, i in ids.items()
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    return [merge for *_, merge in sorted(found)]


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def _symbols():
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(number, content):
    return bytes([number << 3 | 2]) + _varint(len(content)) + content
