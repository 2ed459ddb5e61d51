"""Two tokenisations of one text: where they differ, as spans of the text and the ids that each side puts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

from bitnet.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a text that is tokenised otherwise.

    Attributes:
        token: Index of its first token on our side.
        byte: Where it begins, in bytes of the text as our tokens spell it.
        text: The stretch; bytes that are no UTF-8 as U+FFFD. Empty where one side has a special token more.
        ours: Ids here.
        theirs: Ids there.
    """

    token: int
    byte: int
    text: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "ours": list(self.ours), "theirs": list(self.theirs)}


def differences(tokenizer: Tokenizer, ours: Sequence[int], theirs: Sequence[int]) -> tuple[Span, ...]:
    """Where two sequences of ids for one text differ; none where they are equal."""
    if tuple(ours) == tuple(theirs):
        return ()
    found = []
    for kind, i, i_end, j, j_end in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        mine, other = tuple(ours[i:i_end]), tuple(theirs[j:j_end])
        spelled = _bytes(tokenizer, mine) or _bytes(tokenizer, other)
        found.append(
            Span(
                token=i,
                byte=len(_bytes(tokenizer, ours[:i])),
                text=spelled.decode("utf-8", "replace"),
                ours=mine,
                theirs=other,
            )
        )
    return tuple(found)


def _bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    return b"".join(tokenizer.token_bytes(i) for i in ids if 0 <= i < tokenizer.n_vocab)
