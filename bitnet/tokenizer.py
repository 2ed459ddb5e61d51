"""Text to ids and back, from the vocabulary inside a GGUF: byte-pair and SentencePiece, id for id as llama.cpp.

Encoding has two steps. Special tokens are cut out of the text first, the longest everywhere before the next, as
llama.cpp does it (a trie that takes the leftmost longest match gives other ids). What lies between goes through the
byte-pair model of `tokenizers` or through `SentencePieceModel`.

Text is Unicode. A lone surrogate, which Python uses to carry an undecodable byte, is read as U+FFFD, one for each,
which is what llama.cpp's byte-pair path makes of a bad byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import fspath
from typing import Any

import tokenizers as hf

from bitnet.arguments import instance_of
from bitnet.errors import TokenizerError, UsageError
from bitnet.gguf import GGUF
from bitnet.pretokenizers import BYTE_SYMBOLS, IGNORE_MERGES, build, rules_of
from bitnet.tokenizer_spm import SPACE_MARK, SentencePieceModel
from bitnet.vocabulary import MATCHED, SPECIAL, Kind, TokenType, Vocabulary, read_vocabulary

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_SPACES = " \t\n\v\f\r"  # what C's isspace means, not Unicode's


def from_gguf(gguf: GGUF) -> Tokenizer:
    """The tokenizer embedded in a GGUF file.

    Raises:
        TokenizerError: The file has none, or its keys contradict each other; the key is named.
    """
    return from_metadata(gguf.metadata, where=fspath(gguf.path))


def from_metadata(metadata: Mapping[str, Any], *, where: str = "tokenizer metadata") -> Tokenizer:
    """The tokenizer that a mapping of `tokenizer.ggml.*` keys describes.

    Raises:
        TokenizerError: As `from_gguf`.
    """
    vocabulary = read_vocabulary(metadata, where=where)
    if vocabulary.kind == "spm":
        pieces = SentencePieceModel(vocabulary.ids, vocabulary.scores.tolist(), where=where)
        return Tokenizer(vocabulary, pieces.encode, where=where)
    return Tokenizer(vocabulary, _byte_pair_model(vocabulary, where=where), where=where)


class Tokenizer:
    """A vocabulary and the rules that turn text into its ids.

    Attributes:
        kind: "bpe" or "spm".
        pre: The pre-tokenizer's name ("" for SPM).
        pre_source: "declared" or "assumed: …".
        n_vocab: Number of ids.
        bos_id: Beginning of sequence, or None.
        eos_id: End of sequence, or None.
        end_ids: Every id that ends a generation (EOS, EOT and their kin).
        add_bos: Whether `encode(add_special=True)` begins with `bos_id`.
        add_eos: Whether it ends with `eos_id`.
        add_space_prefix: Whether SPM puts a space before text at the start and after a special token.
    """

    def __init__(self, vocabulary: Vocabulary, model: Callable[[str], list[int]], *, where: str) -> None:
        self.kind: Kind = vocabulary.kind
        self.pre = vocabulary.pre
        self.pre_source = vocabulary.pre_source
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.end_ids = vocabulary.end_ids
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.add_space_prefix = vocabulary.add_space_prefix
        self._where = where
        self._vocabulary = vocabulary
        self._model = model
        self._pieces: dict[int, bytes] = {}  # filled as ids are decoded; most never are
        self._matched = _matched_texts(vocabulary, where=where)
        self._special_tokens = {text: i for text, i in self._matched if vocabulary.types[i] in SPECIAL}

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text.

        Args:
            text: Any string, the empty one included. Lone surrogates are read as U+FFFD.
            add_special: Prepend BOS and append EOS where the vocabulary says so.
            parse_special: Read control tokens spelled out in the text as those tokens. With False they are plain
                text; user-defined tokens are matched either way.

        Raises:
            TokenizerError: An SPM vocabulary without byte tokens cannot spell a character.
            UsageError: It is no string.
        """
        instance_of(text, str, "text", "a str; bytes are decoded first")
        text = _SURROGATE.sub("\ufffd", text)
        ids: list[int] = []
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        after_special = True
        for part in self._cut(text, parse_special=parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._model(" " + part if self.add_space_prefix and after_special else part)
            after_special = isinstance(part, int)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return tuple(ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, continuation: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD.

        Where encoding put a space in front (SPM), one leading space of the first ordinary token is taken off again,
        so that `decode(encode(text, add_special=False))` is the text.

        Args:
            ids: Ids in order.
            skip_special: Leave control and unknown tokens out instead of spelling them.
            continuation: The ids go on from earlier text, so a leading space belongs to them.

        Raises:
            UsageError: An id is outside the vocabulary.
        """
        pieces = Pieces(self, skip_special=skip_special, continuation=continuation)
        return b"".join(pieces.next(i) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:  # noqa: A002  # the field's word; the contract of callers names it
        """The bytes one id stands for: b"" for control, unknown and unused tokens.

        Raises:
            UsageError: The id is outside the vocabulary.
        """
        piece = self._pieces.get(self._checked(id))
        if piece is None:
            piece = self._pieces[id] = _plain_bytes(self._vocabulary, id)
        return piece

    def token_text(self, id: int) -> str:  # noqa: A002  # as above
        """The piece as the vocabulary spells it, for people: `Ġthe`, `▁the`, `<|eot_id|>`.

        Raises:
            UsageError: The id is outside the vocabulary.
        """
        return self._vocabulary.tokens[self._checked(id)].decode("utf-8", "backslashreplace")

    def is_special(self, id: int) -> bool:  # noqa: A002  # as above
        """Whether an id is a control or unknown token, which `decode(skip_special=True)` leaves out."""
        return self._vocabulary.types[self._checked(id)] in SPECIAL

    @property
    def vocabulary(self) -> Vocabulary:
        """What it was made from."""
        return self._vocabulary

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control and unknown tokens by their text."""
        return self._special_tokens

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise UsageError(
                f"token id {token} is outside the vocabulary of {self.n_vocab}",
                where=self._where,
                remedy="use ids that this model's tokenizer made",
            )
        return token

    def _cut(self, text: str, *, parse_special: bool) -> Sequence[str | int]:
        """Text and special ids in order. Each token cuts every piece of text left by the longer ones before it."""
        parts: list[str | int] = [text] if text else []
        for special, token in self._matched:
            if special not in text or (not parse_special and self._vocabulary.types[token] in SPECIAL):
                continue
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or special not in part:
                    cut.append(part)
                else:
                    cut.extend(_replace(part, special, token, rstrip=token in self._vocabulary.rstrip))
            parts = cut
        return parts


class Pieces:
    """The bytes of each id in turn; the one place that knows the leading-space rule.

    Args:
        tokenizer: Whose ids.
        skip_special: Leave control and unknown tokens out.
        continuation: Keep a leading space.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool, continuation: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip_space = tokenizer.add_space_prefix and not continuation

    def next(self, token: int) -> bytes:
        """Bytes of the next id."""
        if self._tokenizer.is_special(token):
            return b"" if self._skip_special else self._tokenizer.token_text(token).encode()
        piece = self._tokenizer.token_bytes(token)
        if self._strip_space:
            self._strip_space = False
            return piece.removeprefix(b" ")
        return piece


def _replace(text: str, special: str, token: int, *, rstrip: bool) -> Iterator[str | int]:
    first, *rest = text.split(special)
    if first:
        yield first
    for piece in rest:
        yield token
        if kept := piece.lstrip(_SPACES) if rstrip else piece:
            yield kept


def _matched_texts(vocabulary: Vocabulary, *, where: str) -> tuple[tuple[str, int], ...]:
    """Texts of the tokens that are matched in running text, longest (in bytes) first, then by id."""
    matched = [i for i, kind in enumerate(vocabulary.types) if kind in MATCHED]
    try:
        texts = [(vocabulary.tokens[i].decode(), i) for i in matched]
    except UnicodeDecodeError:
        bad = next(i for i in matched if not _is_utf8(vocabulary.tokens[i]))
        raise TokenizerError(
            f"tokenizer.ggml.tokens: special token {bad} is {vocabulary.tokens[bad]!r}, which is not UTF-8",
            where=where,
            remedy="the file is damaged or was converted wrongly; convert it again",
        ) from None
    return tuple(sorted(texts, key=lambda entry: -len(entry[0].encode())))


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain_bytes(vocabulary: Vocabulary, token: int) -> bytes:
    """Bytes of one id, as llama.cpp prints it without special tokens."""
    kind, piece = vocabulary.types[token], vocabulary.tokens[token]
    if kind is TokenType.USER_DEFINED:
        return piece
    if kind is TokenType.BYTE:
        spelled = _BYTE_TOKEN.fullmatch(piece)
        return bytes([int(spelled[1], 16)]) if spelled else piece
    if kind is not TokenType.NORMAL:
        return b""
    if vocabulary.kind == "spm":
        return piece.replace(SPACE_MARK.encode(), b" ")
    symbols = piece.decode("utf-8", "surrogateescape")
    return b"".join(
        bytes([BYTE_SYMBOLS[symbol]]) if symbol in BYTE_SYMBOLS else symbol.encode("utf-8", "surrogateescape")
        for symbol in symbols
    )


def _byte_pair_model(vocabulary: Vocabulary, *, where: str) -> Callable[[str], list[int]]:
    """The byte-pair model of `tokenizers` over one vocabulary."""
    rules = rules_of(vocabulary.pre, where=where)
    n_vocab = len(vocabulary.tokens)
    try:
        ids = dict(zip(map(bytes.decode, vocabulary.ids), vocabulary.ids.values(), strict=True))
    except UnicodeDecodeError:
        ids = {piece.decode(): i for piece, i in vocabulary.ids.items() if _is_utf8(piece)}
    # A byte without a token must still stand between its neighbours while they merge, and then vanish.
    missing = [symbol for symbol in BYTE_SYMBOLS if symbol not in ids]
    ids |= {symbol: n_vocab + n for n, symbol in enumerate(missing)}
    model = hf.models.BPE(ids, list(vocabulary.merges), ignore_merges=rules in IGNORE_MERGES)
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = build(rules)

    def encode(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return [i for i in found if i < n_vocab] if missing else found

    return encode
