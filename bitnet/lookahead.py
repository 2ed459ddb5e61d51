"""Guesses of the next tokens, taken from what was said before: what followed where the text was last like its end now.

A guess costs no memory traffic when it is checked with the token that is due anyway, in one pass; and because results
do not depend on the batch, tokens that are accepted are those that would have come one by one, to the bit. What a guess
costs is arithmetic: a pass of four tokens takes longer than one of one. So as many are made as pay: with the share p
of guesses that were right lately, n of them give 1 + p + … + pⁿ tokens, for the time of a pass of n + 1.

Whether guesses are right is known without making them: every token that comes is compared with what would have been
guessed. So where nothing repeats itself nothing is tried, and where a text begins to, that is seen.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from statistics import median

#: Tokens that must be equal before a guess is thought of, and those that are compared to find the most alike place.
SHORTEST, LONGEST = 2, 32
#: Places that are compared, the latest first.
PLACES = 16
#: Guesses of one pass: with the token that is due, eight tokens, which the head still screens together.
MOST = 7
#: Share of guesses expected to be right, by the equal tokens before them, until it is known better.
_EXPECTED = {2: 0.3, 3: 0.5, 4: 0.7, 8: 0.9, 16: 0.97}
#: Weight of the newest guess in that share.
_NEWEST = 1 / 8
#: Time of a pass of 1, 2, … tokens over that of one, until it is measured: one thread, AVX2, the 2B-4T shape.
_USUAL = (1.0, 1.5, 2.1, 2.5, 3.1, 3.6, 4.1, 4.6)
_MEASURED = 7  # passes whose median is taken
_BELIEVED = 3  # passes that are enough for one
_REMEMBERED = 256  # passes of any number of tokens, after which one is forgotten


class PassCost:
    """What passes of several tokens cost, in passes of one: measured as they happen, and by the usual until then.

    One pass says little: it may have been the first, which waits for compilers. And what was slow once is forgotten
    after a while, or it would never be tried again.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._seconds: dict[int, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=_MEASURED))

    def record(self, n_token: int, seconds: float) -> None:
        """A pass of some tokens took so long."""
        if 1 <= n_token <= len(_USUAL):
            self._passes += 1
            self._seconds[n_token].append((self._passes, seconds))

    def __call__(self, n_token: int) -> float:
        """The time of a pass of some tokens over that of one; for a number hardly seen as those seen suggest."""
        one = median(seconds for _, seconds in self._seconds[1]) if self._seconds[1] else 0.0
        if n_token == 1 or not one:
            return _USUAL[n_token - 1]
        seen = {
            n: [seconds / one for at, seconds in passes if at > self._passes - _REMEMBERED]
            for n, passes in self._seconds.items()
        }
        known = {n: median(costs) for n, costs in seen.items() if n > 1 and len(costs) >= _BELIEVED}
        if n_token in known:
            return known[n_token]
        more = median((cost - 1) / (_USUAL[n - 1] - 1) for n, cost in known.items()) if known else 1.0
        expected = 1 + (_USUAL[n_token - 1] - 1) * more
        few = seen.get(n_token, [])
        return median([*few, *[expected] * (_BELIEVED - len(few))])


class Lookahead:
    """The guesses of one sequence.

    Args:
        ids: The prompt.
        cost: What a pass of some tokens costs, in passes of one.
    """

    def __init__(self, ids: Sequence[int], cost: Callable[[int], float] | None = None) -> None:
        self._ids = list(ids)
        self._cost = cost or PassCost()
        self._places: dict[tuple[int, ...], list[int]] = defaultdict(
            list
        )  # some tokens → what follows them, as indices
        self._known = SHORTEST
        self._right = dict(_EXPECTED)
        self._kind = SHORTEST  # of the match that what is expected came from
        self._next: deque[int] = deque()  # what is expected

    def append(self, token: int) -> None:
        """A token that is certain."""
        self._ids.append(token)
        if self._next:
            right = self._next.popleft() == token
            self._right[self._kind] += (right - self._right[self._kind]) * _NEWEST
            if not right:
                self._next.clear()

    def propose(self, room: int) -> list[int]:
        """Up to `room` tokens that may come next, as many as pay."""
        found = self._match()
        if found is None:
            self._next.clear()
            return []
        at, equal = found
        self._kind = max(n for n in _EXPECTED if n <= equal)
        guesses: list[int] = []
        for i in range(MOST):  # what follows the end of the text are the guesses themselves: it goes round
            guesses.append(self._ids[at + i] if at + i < len(self._ids) else guesses[at + i - len(self._ids)])
        self._next = deque(guesses)
        return guesses[: self._number(self._right[self._kind], min(room, MOST))]

    def _number(self, right: float, room: int) -> int:
        """How many guesses give most tokens for their time."""
        best, number, tokens = 1.0, 0, 1.0
        for n in range(1, room + 1):
            tokens += right**n
            if tokens / self._cost(n + 1) > best:
                best, number = tokens / self._cost(n + 1), n
        return number

    def _match(self) -> tuple[int, int] | None:
        """Where the text was most like its end: what followed there, as an index, and how many tokens are equal."""
        ids = self._ids
        for end in range(self._known, len(ids)):  # not yet the end itself, which nothing follows
            self._places[tuple(ids[end - SHORTEST : end])].append(end)
        self._known = max(self._known, len(ids))
        places = self._places.get(tuple(ids[-SHORTEST:]), ())
        found = None
        for at in places[: -PLACES - 1 : -1]:
            equal = SHORTEST
            while equal < min(LONGEST, at) and ids[at - equal - 1] == ids[-equal - 1]:
                equal += 1
            if found is None or equal > found[1]:
                found = at, equal
            if equal == LONGEST:
                break
        return found
