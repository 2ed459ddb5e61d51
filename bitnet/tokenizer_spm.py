"""SentencePiece byte-pair merging, exactly: the best-scored piece first, and of equals the leftmost.

Not built on `tokenizers`: its byte-pair model gives every merge of two tokens a rank of its own, while this rule
scores the *piece* a merge makes. The two agree on vocabularies whose scores are distinct and whose parts are all
tokens. Where `ab` and `ba` score the same, no ranks make `aba` into `ab a` and `bab` into `ba b`.

A merge never crosses from a letter to the space mark after it unless some piece does, so text is merged a word at a
time and words are remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush

from bitnet.errors import TokenizerError

SPACE_MARK = "▁"
_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 64  # longer words hardly come twice, and would make the cache heavy


class SentencePieceModel:
    """Pieces and scores → ids.

    Args:
        ids: Piece to id, pieces as bytes.
        scores: Score of each id; higher merges first.
        where: File name for messages.
    """

    def __init__(self, ids: Mapping[bytes, int], scores: Sequence[float], *, where: str) -> None:
        self._where = where
        self._bytes = [ids.get(b"<0x%02X>" % byte, ids.get(bytes([byte]))) for byte in range(256)]
        self._ids: dict[str, int] = {}
        for piece, i in ids.items():
            try:
                self._ids[piece.decode()] = i
            except UnicodeDecodeError:
                continue  # text is whole characters, so it can never spell this piece
        self._scores = {piece: scores[i] for piece, i in self._ids.items() if len(piece) > 1}
        crosses = any(re.search(f"[^{SPACE_MARK}]{SPACE_MARK}", piece) for piece in self._scores)
        self._words = None if crosses else re.compile(f"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+")
        self._cached = lru_cache(_CACHED_WORDS)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Ids of a text whose spaces may be spaces or space marks.

        Raises:
            TokenizerError: A character is in no piece and the vocabulary has no token for one of its bytes.
        """
        text = text.replace(" ", SPACE_MARK)
        words = [text] if self._words is None else self._words.findall(text)
        ids: list[int] = []
        for word in words:
            ids.extend(self._cached(word) if len(word) <= _CACHED_LENGTH else self._merge(word))
        return ids

    def _merge(self, word: str) -> tuple[int, ...]:
        """Merge one word: a linked list of symbols, and a heap of the merges possible now."""
        scores = self._scores
        symbols = list(word)
        after = [*range(1, len(symbols)), -1]
        before = list(range(-1, len(symbols) - 1))
        heap = [
            (-scores[pair], left, left + 1, 2)
            for left in range(len(symbols) - 1)
            if (pair := symbols[left] + symbols[left + 1]) in scores
        ]
        heapify(heap)
        while heap:
            _, left, right, length = heappop(heap)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
                continue  # one side was merged elsewhere since
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            for i, j in ((before[left], left), (left, after[left])):
                if i >= 0 and j >= 0 and (pair := symbols[i] + symbols[j]) in scores:
                    heappush(heap, (-scores[pair], i, j, len(pair)))
        return tuple(i for symbol in symbols if symbol for i in self._symbol_ids(symbol))

    def _symbol_ids(self, symbol: str) -> Sequence[int]:
        if (whole := self._ids.get(symbol)) is not None:
            return (whole,)
        found = [self._bytes[byte] for byte in symbol.encode()]
        if None in found:
            raise TokenizerError(
                f"the vocabulary has neither {symbol!r} nor byte tokens to spell it",
                where=self._where,
                remedy="use a SentencePiece vocabulary with byte fallback, or leave the character out",
            )
        return [i for i in found if i is not None]
