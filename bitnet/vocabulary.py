"""What a GGUF's `tokenizer.ggml.*` keys say, read once and checked: a frozen `Vocabulary`.

The rules are those of llama.cpp's loader, because ids must equal its ids: which defaults apply when a key is absent,
which texts make a token a control token or an end of generation whatever its declared type, and which token types
are matched inside running text. Where llama.cpp warns and carries on with a wrong value (an id outside the
vocabulary, BOS 11 for a byte-pair vocabulary that names none), this reader refuses instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import add
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import TokenizerError
from bitnet.gguf_types import StringArray
from bitnet.pre_evidence import guess
from bitnet.pretokenizers import ADD_BOS, rules_of

Kind = Literal["bpe", "spm"]

KINDS: Mapping[str, Kind] = {"gpt2": "bpe", "llama": "spm"}
_PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`: how a token takes part in encoding and decoding."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL = frozenset({TokenType.CONTROL, TokenType.UNKNOWN})
MATCHED = SPECIAL | {TokenType.USER_DEFINED}

_END_TEXTS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~["
)
# Fill-in-the-middle roles: the key that names the token, the texts it is found by when the key is absent, and whether
# it ends a generation. The token found by text becomes a control token.
_FILL_ROLES: tuple[tuple[tuple[str, ...], str, bool], ...] = (
    (
        ("fim_pre_token_id", "prefix_token_id"),
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
        False,
    ),
    (
        ("fim_suf_token_id", "suffix_token_id"),
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
        False,
    ),
    (
        ("fim_mid_token_id", "middle_token_id"),
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
        False,
    ),
    (("fim_pad_token_id",), "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]", True),
    (("fim_rep_token_id",), "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>", True),
    (("fim_sep_token_id",), "<|file_sep|>", True),
)
# Channel markers of one chat format, which llama.cpp always matches and always prints.
_ALWAYS_USER_DEFINED = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
# Formats where <|end|> ends a message inside an answer, not the answer; known by the tokens that do end one.
_TOOL_CALL_ENDS = (
    {"<|return|>", "<|call|>"},
    {"<|return|>", "<|calls|>"},
    {"<|call|>", "<|flush|>"},
    {"<|calls|>", "<|flush|>"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A checked vocabulary.

    Attributes:
        kind: "bpe" or "spm".
        pre: Name of the pre-tokenizer as the file gives it, or the one assumed ("" for SPM, which has none).
        pre_source: "declared", or "assumed: …" with the reason.
        tokens: Piece of each id, as bytes; a piece may be invalid UTF-8.
        types: Type of each id, after the corrections llama.cpp makes by text.
        scores: [n_vocab] f32; zeros when the file has none.
        merges: Byte-pair merges, best first; empty for SPM.
        ids: Piece to id.
        bos_id: Beginning of sequence, or None.
        eos_id: End of sequence, or None.
        end_ids: Every id that ends a generation.
        add_bos: Whether `encode` prepends `bos_id`.
        add_eos: Whether `encode` appends `eos_id`.
        add_space_prefix: SPM: whether text at the start, or after a special token, gets a space in front.
        rstrip: Whether special tokens swallow the whitespace after them (the Phi-3 family).
    """

    kind: Kind
    pre: str
    pre_source: str
    tokens: tuple[bytes, ...]
    types: tuple[TokenType, ...]
    scores: NDArray[np.float32]
    merges: tuple[tuple[str, str], ...]
    ids: Mapping[bytes, int]
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    rstrip: frozenset[int]


def read_vocabulary(metadata: Mapping[str, Any], *, where: str) -> Vocabulary:
    """Read and check the tokenizer keys of a GGUF.

    Args:
        metadata: All keys of the file.
        where: File name for messages.

    Raises:
        TokenizerError: A key is missing, of the wrong type or length, or contradicts another; the key is named.
    """
    keys = _Keys(metadata, where)
    model = keys.text("model", required=True)
    if model not in KINDS:
        raise keys.error("model", f"is {model!r}, which is not supported", f"supported: {', '.join(sorted(KINDS))}")
    kind = KINDS[model]
    tokens = tuple(keys.pieces("tokens", required=True))
    if not tokens:
        raise keys.error("tokens", "is empty")
    if b"" in tokens:
        tokens = tuple(piece or b"[EMPTY_%d]" % i for i, piece in enumerate(tokens))
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        twice = next(piece for i, piece in enumerate(tokens) if ids[piece] != i)
        raise keys.error("tokens", f"holds {_show(twice)} twice, so its id is ambiguous")
    types = _types(keys, len(tokens))
    bos_id = keys.token_id("bos_token_id", len(tokens), default=1 if kind == "spm" else None)
    eos_id = keys.token_id("eos_token_id", len(tokens), default=2 if kind == "spm" else None)
    end_ids = _correct_types(keys, ids, types, eos_id)
    merges = _merges(keys, ids) if kind == "bpe" else ()
    pre, pre_source = ("", "declared") if kind == "spm" else _pre(keys, ids, types, merges)
    add_bos = keys.flag("add_bos_token", default=kind == "spm" or rules_of(pre, where=where) in ADD_BOS)
    add_eos = keys.flag("add_eos_token", default=False)
    for wanted, found, key in ((add_bos, bos_id, "bos_token_id"), (add_eos, eos_id, "eos_token_id")):
        if wanted and found is None:
            flag = f"{_PREFIX}add_{key[:3]}_token"
            raise keys.error(key, "is missing, but the tokenizer is to add that token", f"set it, or set {flag}=false")
    return Vocabulary(
        kind=kind,
        pre=pre,
        pre_source=pre_source,
        tokens=tokens,
        types=tuple(types),
        scores=_scores(keys, len(tokens)),
        merges=merges,
        ids=ids,
        bos_id=bos_id,
        eos_id=eos_id,
        end_ids=end_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=keys.flag("add_space_prefix", default=True) if kind == "spm" else False,
        rstrip=_rstrip(keys, ids, types),
    )


def _types(keys: _Keys, n_vocab: int) -> list[TokenType]:
    declared = keys.numbers("token_type", n_vocab)
    if declared is None:
        return [TokenType.NORMAL] * n_vocab
    known = {int(t): t for t in TokenType}
    return [t or TokenType.UNDEFINED for t in map(known.get, declared.tolist())]  # UNDEFINED itself is 0


def _scores(keys: _Keys, n_vocab: int) -> NDArray[np.float32]:
    declared = keys.numbers("scores", n_vocab)
    scores = np.zeros(n_vocab, np.float32) if declared is None else declared.astype(np.float32)
    if np.isnan(scores).any():
        raise keys.error("scores", f"is not a number at id {int(np.isnan(scores).argmax())}")
    return scores


def _correct_types(keys: _Keys, ids: Mapping[bytes, int], types: list[TokenType], eos_id: int | None) -> frozenset[int]:
    """Give tokens known by their text the type they must have, in llama.cpp's order; return the end ids."""
    n_vocab = len(types)
    by_text = {text: ids[text.encode()] for text in _END_TEXTS.split() if text.encode() in ids}
    ends = set(by_text.values())
    for names, texts, ends_generation in _FILL_ROLES:
        named = [i for name in names if (i := keys.token_id(name, n_vocab, default=None)) is not None]
        found = [] if named else [ids[text.encode()] for text in texts.split() if text.encode() in ids][:1]
        for i in found:
            types[i] = TokenType.CONTROL
        if ends_generation:
            ends.update((named or found)[:1])
    for i in by_text.values():
        types[i] = TokenType.CONTROL
    for text in _ALWAYS_USER_DEFINED:
        if text.encode() in ids:
            types[ids[text.encode()]] = TokenType.USER_DEFINED
    for name in ("eot_token_id", "eom_token_id"):
        if (named_id := keys.token_id(name, n_vocab, default=None)) is not None:
            ends.add(named_id)
    if eos_id is not None:
        ends.add(eos_id)
    if "<|end|>" in by_text and any(pair <= by_text.keys() for pair in _TOOL_CALL_ENDS):
        ends.discard(by_text["<|end|>"])
        types[by_text["<|end|>"]] = TokenType.USER_DEFINED
    return frozenset(ends)


def _pre(
    keys: _Keys, ids: Mapping[bytes, int], types: Sequence[TokenType], merges: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    declared = keys.text("pre", required=False)
    if declared:
        return declared, "declared"
    arch = keys.metadata.get("general.architecture")
    ordinary = [piece for piece, i in ids.items() if types[i] is TokenType.NORMAL]
    found = guess(ids, len(merges), ordinary, arch=arch if isinstance(arch, str) else "")
    return found.pre, f"assumed: tokenizer.ggml.pre is missing, and {found.reason}"


def _merges(keys: _Keys, ids: Mapping[bytes, int]) -> tuple[tuple[str, str], ...]:
    pieces = keys.pieces("merges", required=True)
    return tuple(dict.fromkeys(_usual_merges(pieces, ids) or _any_merges(keys, pieces, ids)))  # the first rank counts


def _usual_merges(pieces: Sequence[bytes], ids: Mapping[bytes, int]) -> list[tuple[str, str]] | None:
    """Merges looked at all together; None where one is not two known texts with a space between."""
    try:
        known = set(map(bytes.decode, ids))
        pairs = [tuple(piece.decode().split(" ")) for piece in pieces]
        firsts, seconds = zip(*pairs, strict=True)  # refuses pairs of several lengths, and of others than two
    except ValueError:  # of which UnicodeDecodeError is one
        return None
    if known.issuperset(firsts) and known.issuperset(seconds) and known.issuperset(map(add, firsts, seconds)):
        return list(zip(firsts, seconds, strict=True))
    return None


def _any_merges(keys: _Keys, pieces: Sequence[bytes], ids: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Merges looked at one by one."""
    merges = []
    for i, raw in enumerate(pieces):
        space = raw.find(b" ", 1)  # from 1: a first part may itself begin with a space
        first, second = raw[:space], raw[space + 1 :]
        if space < 0:
            raise keys.error("merges", f"entry {i} is {_show(raw)}, which is not two parts with a space between")
        if first not in ids or second not in ids or first + second not in ids:
            unknown = next(part for part in (first, second, first + second) if part not in ids)
            raise keys.error("merges", f"entry {i} names the token {_show(unknown)}, which the vocabulary lacks")
        try:
            merges.append((first.decode(), second.decode()))
        except UnicodeDecodeError:
            raise keys.error("merges", f"entry {i} is {_show(raw)}, which is not UTF-8") from None
    return merges


def _rstrip(keys: _Keys, ids: Mapping[bytes, int], types: Sequence[TokenType]) -> frozenset[int]:
    """Ids that swallow whitespace to their right: llama.cpp decides it by the model's name."""
    name = keys.metadata.get("general.name")
    if not isinstance(name, str) or not any(family in name.lower() for family in ("phi-3", "phi3")):
        return frozenset()
    kept = {ids.get(text) for text in (b"<unk>", b"<s>", b"<|endoftext|>")}
    return frozenset(i for i, t in enumerate(types) if t in MATCHED and i not in kept)


def _show(piece: bytes) -> str:
    return repr(piece.decode("utf-8", "backslashreplace"))


class _Keys:
    """Typed access to `tokenizer.ggml.*`, with errors that name the key."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata = metadata
        self.where = where

    def error(self, name: str, what: str, remedy: str | None = None) -> TokenizerError:
        remedy = remedy or "the file is damaged or was converted wrongly; convert it again"
        return TokenizerError(f"{_PREFIX}{name} {what}", where=self.where, remedy=remedy)

    def _get(self, name: str, *, required: bool) -> Any:  # noqa: ANN401  # the value is whatever the file holds
        value = self.metadata.get(_PREFIX + name)
        if value is None and required:
            raise self.error(name, "is missing", "use a file with an embedded tokenizer")
        return value

    def text(self, name: str, *, required: bool) -> str:
        value = self._get(name, required=required)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(name, f"is {type(value).__name__}, not a string")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._get(name, required=False)
        if value is None:
            return default
        if not isinstance(value, bool | np.bool_):
            raise self.error(name, f"is {type(value).__name__}, not a boolean")
        return bool(value)

    def token_id(self, name: str, n_vocab: int, *, default: int | None) -> int | None:
        value = self._get(name, required=False)
        if value is None:
            return default if default is None or default < n_vocab else None
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise self.error(name, f"is {type(value).__name__}, not an integer")
        if not 0 <= value < n_vocab:
            raise self.error(name, f"is {value}, outside the vocabulary of {n_vocab} tokens")
        return int(value)

    def pieces(self, name: str, *, required: bool) -> list[bytes]:
        value = self._get(name, required=required)
        if isinstance(value, StringArray):
            return value.tolist()
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise self.error(name, f"is {type(value).__name__}, not an array of strings")
        pieces = list(value)
        if not all(isinstance(piece, str | bytes) for piece in pieces):
            raise self.error(name, "is not an array of strings")
        return [piece.encode("utf-8", "surrogateescape") if isinstance(piece, str) else piece for piece in pieces]

    def numbers(self, name: str, n_vocab: int) -> NDArray[Any] | None:
        value = self._get(name, required=False)
        if value is None:
            return None
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.ndim != 1:
            raise self.error(name, "is not an array of numbers")
        if len(array) != n_vocab:
            raise self.error(name, f"has {len(array)} entries, but there are {n_vocab} tokens")
        return array
