"""Guesses of the next tokens, taken from what was said before: the tokens that followed the same few tokens last time.

A guess costs no memory traffic when it is checked with the token that is due anyway, in one pass; and because results
do not depend on the batch, tokens that are accepted are those that would have come one by one, to the bit. Wrong
guesses cost their arithmetic, so after such a pass none are made for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens that must be equal before a guess is made; longer matches are tried first.
LONGEST, SHORTEST = 4, 2
#: Guesses of one pass: with the token that is due, four tokens share one unpacking of the weights.
MOST = 3
#: Passes without guesses after a pass whose guesses were all wrong; doubled each time, up to the limit.
_REST, _LONGEST_REST = 1, 16


class Lookahead:
    """The guesses of one sequence.

    Attributes:
        proposed, accepted: Guesses made so far, and those that were right.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.proposed = self.accepted = 0
        self._ids = list(ids)
        self._last: dict[tuple[int, ...], int] = {}  # some tokens → what came after them last, as an index
        self._known = 0
        self._rest, self._resting = _REST, 0

    def append(self, token: int) -> None:
        """A token that is certain."""
        self._ids.append(token)

    def propose(self, room: int) -> list[int]:
        """Up to `room` tokens that may come next."""
        self._learn()
        if self._resting:
            self._resting -= 1
            return []
        for n in range(LONGEST, SHORTEST - 1, -1):
            at = self._last.get(tuple(self._ids[-n:]))
            if at is not None:
                return self._ids[at : at + max(0, min(room, MOST))]
        return []

    def judge(self, proposed: int, accepted: int) -> None:
        """How many guesses of a pass were right."""
        self.proposed += proposed
        self.accepted += accepted
        if not proposed:
            return
        if accepted:
            self._rest = _REST
        else:
            self._resting, self._rest = self._rest, min(2 * self._rest, _LONGEST_REST)

    def _learn(self) -> None:
        """Enter what followed every few tokens; not yet the last ones, which nothing follows."""
        ids = self._ids
        for end in range(max(self._known, SHORTEST), len(ids)):
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._last[tuple(ids[end - n : end])] = end
        self._known = len(ids)
