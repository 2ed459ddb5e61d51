"""`tokenizer.model` and its like as `tokenizer.ggml.*` keys: tiktoken's ranks, and SentencePiece.

Tiktoken keeps one rank a token and merges the pair whose union ranks best. As merges that is every split of every
token into two tokens, in the order of the unions' ranks; Hugging Face's converter writes the same list, and
so do the published GGUFs. Neither the splitting rules nor the special tokens are in the file.

SentencePiece's file is a protocol buffer. The well-kept `protobuf` reads it from the few field numbers below; the
`sentencepiece` package does not say which pieces are user-defined, and it is one of the engines this one is compared
with, which must not share its code.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from functools import cache
from typing import Any

import numpy as np

from bitnet.errors import TokenizerError
from bitnet.pretokenizers import BYTE_SYMBOLS
from bitnet.tokenizer_files import Companions, damaged
from bitnet.vocabulary import TokenType

LLAMA_3_RANKS = 128_000
"""Tokens in Llama 3's file; 256 special tokens follow them."""

_RANKED = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,9}\r?\n")
_MAX_TOKEN = 1024  # bytes; the longest published token has 128, and every split of each is tried
_BPE, _UNIGRAM = 2, 1  # SentencePiece's TrainerSpec.model_type


def is_ranked(raw: bytes) -> bool:
    """Whether a file begins as tiktoken's do."""
    return _RANKED.match(raw) is not None


def parse_ranked(raw: bytes, beside: Companions, *, where: str) -> tuple[dict[str, Any], list[str]]:
    """Keys and notices of a file of base64 tokens and ranks.

    Raises:
        TokenizerError: It is damaged, or nothing says what its special tokens are.
    """
    ranks = _ranks(raw, where=where)
    notices: list[str] = []
    if beside.added:
        added = {i: token for i, token in beside.added.items() if i >= len(ranks)}
    elif len(ranks) == LLAMA_3_RANKS:
        added = {LLAMA_3_RANKS + i: (text, True) for i, text in enumerate(_llama_3_specials())}
        notices.append(f"the file has Llama 3's {LLAMA_3_RANKS} tokens, so Llama 3's 256 special tokens are assumed")
    else:
        raise TokenizerError(
            f"has {len(ranks)} tokens and no special ones, and is not Llama 3's",
            where=where,
            remedy="put the tokenizer_config.json that lists its added tokens beside it, or use a tokenizer.json",
        )
    if sorted(added) != list(range(len(ranks), len(ranks) + len(added))):
        raise damaged(f"the added tokens' ids do not go on from {len(ranks)}", where=where)
    symbols = {byte: symbol for symbol, byte in BYTE_SYMBOLS.items()}
    spelled = {token: "".join(symbols[byte] for byte in token) for token in ranks}
    tokens = [*spelled.values(), *(added[i][0] for i in sorted(added))]
    kinds = [TokenType.CONTROL if added[i][1] else TokenType.USER_DEFINED for i in sorted(added)]
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([int(TokenType.NORMAL)] * len(ranks) + kinds, np.int32),
        "tokenizer.ggml.merges": [f"{spelled[a]} {spelled[b]}" for a, b in _merges(ranks)],
    }
    ends = (("bos", beside.bos or "<|begin_of_text|>"), ("eos", beside.eos or "<|end_of_text|>"))
    ids = {text: i for i, (text, _) in added.items()}
    for role, text in ends:
        if text in ids:
            keys[f"tokenizer.ggml.{role}_token_id"] = ids[text]
    return keys | _flags(beside), notices


def parse_sentencepiece(raw: bytes, beside: Companions, *, where: str) -> tuple[dict[str, Any], list[str]]:
    """Keys and notices of a SentencePiece model.

    Raises:
        TokenizerError: It is damaged, or not byte pairs.
    """
    from google.protobuf.message import DecodeError

    model = _message_type()()
    try:
        model.ParseFromString(raw)
    except DecodeError:
        raise damaged("is neither a tiktoken nor a SentencePiece model", where=where) from None
    trainer, normaliser = model.trainer_spec, model.normalizer_spec
    if not model.pieces:
        raise damaged("is neither a tiktoken nor a SentencePiece model: it has no pieces", where=where)
    if trainer.model_type != _BPE:
        kind = "unigram" if trainer.model_type == _UNIGRAM else f"of type {trainer.model_type}"
        raise TokenizerError(
            f"is {kind}; only byte pairs are supported",
            where=where,
            remedy="BitNet models use byte pairs (BPE); use the tokenizer in the model's GGUF",
        )
    notices = []
    if normaliser.precompiled_charsmap or normaliser.remove_extra_whitespaces:
        name = normaliser.name or "its own"
        notices.append(f"the file's normalisation ({name}) is not applied, as in llama.cpp")
    texts = [piece.piece for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    for i in sorted(beside.added):
        text, special = beside.added[i]
        if i < len(texts) and texts[i] == text:
            continue
        if i != len(texts):
            raise damaged(f"added token {text!r} has id {i}, and the vocabulary has {len(texts)} tokens", where=where)
        texts.append(text)
        scores.append(0.0)
        types.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_space_prefix": bool(normaliser.add_dummy_prefix),
    }
    for role, declared, named in (("bos", trainer.bos_id, beside.bos), ("eos", trainer.eos_id, beside.eos)):
        i = texts.index(named) if named in texts else declared
        if 0 <= i < len(texts):
            keys[f"tokenizer.ggml.{role}_token_id"] = i
    return keys | _flags(beside), notices


def _flags(beside: Companions) -> dict[str, Any]:
    said = {"add_bos_token": beside.add_bos, "add_eos_token": beside.add_eos}
    return {f"tokenizer.ggml.{name}": value for name, value in said.items() if value is not None}


def _ranks(raw: bytes, *, where: str) -> dict[bytes, int]:
    """Tokens in order of their ranks, which are 0, 1, 2 and on."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        token, _, rank = line.partition(b" ")
        try:
            decoded = a2b_base64(token, strict_mode=True)
        except Base64Error:
            raise damaged(f"line {number} is not a base64 token and a rank", where=where) from None
        if not rank.isdigit() or int(rank[:10]) != len(ranks):
            raise damaged(f"line {number} has rank {rank[:20]!r}, not {len(ranks)}", where=where)
        if not decoded or len(decoded) > _MAX_TOKEN or decoded in ranks:
            raise damaged(f"line {number} has a token that is empty, too long or a repetition", where=where)
        ranks[decoded] = len(ranks)
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    merges = []
    for token in ranks:
        cuts = range(1, len(token))
        found = [(token[:i], token[i:]) for i in cuts if token[:i] in ranks and token[i:] in ranks]
        merges += found if len(found) < 2 else sorted(found, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def _llama_3_specials() -> list[str]:
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    reserved = iter(range(256))
    return [f"<|{named[i] if i in named else f'reserved_special_token_{next(reserved)}'}|>" for i in range(256)]


@cache
def _message_type() -> type[Any]:
    """The message of a SentencePiece file, of the fields that are read here; others are passed over."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    f = descriptor_pb2.FieldDescriptorProto
    fields = {
        "Piece": (("piece", 1, f.TYPE_STRING, ""), ("score", 2, f.TYPE_FLOAT, ""), ("type", 3, f.TYPE_INT32, "1")),
        "Trainer": (
            ("model_type", 3, f.TYPE_INT32, str(_UNIGRAM)),
            ("bos_id", 41, f.TYPE_INT32, "1"),
            ("eos_id", 42, f.TYPE_INT32, "2"),
        ),
        "Normalizer": (
            ("name", 1, f.TYPE_STRING, ""),
            ("precompiled_charsmap", 2, f.TYPE_BYTES, ""),
            ("add_dummy_prefix", 3, f.TYPE_BOOL, "true"),
            ("remove_extra_whitespaces", 4, f.TYPE_BOOL, "true"),
        ),
    }
    file = descriptor_pb2.FileDescriptorProto(name="sentencepiece_subset.proto", package="subset", syntax="proto2")
    for name, entries in fields.items():
        message = file.message_type.add(name=name)
        for field, number, kind, default in entries:
            added = message.field.add(name=field, number=number, type=kind, label=f.LABEL_OPTIONAL)
            if default:
                added.default_value = default
    model = file.message_type.add(name="Model")
    for field, number, kind_name, label in (
        ("pieces", 1, "Piece", f.LABEL_REPEATED),
        ("trainer_spec", 2, "Trainer", f.LABEL_OPTIONAL),
        ("normalizer_spec", 3, "Normalizer", f.LABEL_OPTIONAL),
    ):
        model.field.add(name=field, number=number, type=f.TYPE_MESSAGE, type_name=f".subset.{kind_name}", label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("subset.Model"))
