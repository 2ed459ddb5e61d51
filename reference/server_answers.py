"""What a llama-server says of the next token, read and checked: log-probabilities by id, or why they are none.

Servers of 2025 and later list `top_logprobs` with ids. Older ones, bitnet.cpp's among them, list `probs` with the text
of each token, which is its id only where no other token has the same text. `Pieces` knows those texts. Tokens that
share one are asked for in turn, the others banned; and where such a server would choose a token that is the beginning
of a character it lists nothing, so that another one is favoured by a known amount, which is taken off again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.runner import Float32, ReferenceUnavailableError

Float64 = NDArray[np.float64]

#: The smallest probability that float32 tells with all its digits, and its logarithm.
_SMALLEST = float(np.finfo(np.float32).smallest_normal)
LEAST = float(np.log(_SMALLEST))
#: How far the sum of all probabilities may be from 1: a float32 sum over a vocabulary errs by 1e-5 at most.
_SUM = 1e-3
#: Nats by which a token is favoured where the server would otherwise choose one that it does not list, in turn.
LIFTS = (16.0, 40.0)
#: Requests that tokens with one text may cost for each position.
MOST_ROUNDS = 4


class NonsenseError(ValueError):
    """An answer that cannot be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The texts of an older server's tokens, as it shows them.

    Attributes:
        shown: By id.
        rounds: What is banned in each request for one position, so that no two of the others share a text.
        favoured: A token with a text of its own that is whole characters.
    """

    shown: tuple[str, ...]
    rounds: tuple[frozenset[int], ...] = field(init=False)
    favoured: int = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[str, list[int]] = {}
        for i, text in enumerate(self.shown):
            groups.setdefault(text, []).append(i)
        shared = [ids for ids in groups.values() if len(ids) > 1]
        n_rounds = max((len(ids) for ids in shared), default=1)
        if n_rounds > MOST_ROUNDS:
            worst = max(shared, key=len)
            raise ReferenceUnavailableError(
                f"this build of llama-server tells tokens by their texts, and {len(worst)} of this model's have one "
                f"text ({self.shown[worst[0]]!r}): its probabilities cannot be told apart",
                remedy="build a llama-server that gives ids (2025 or later), or install a C++ compiler for the shim",
            )
        whole = [ids[0] for text, ids in groups.items() if len(ids) == 1 and text.isascii() and text.isalnum()]
        if not whole:
            raise ReferenceUnavailableError("no token of this model has a text of its own that is whole characters")
        object.__setattr__(self, "favoured", whole[0])
        rounds = (frozenset(i for ids in shared for k, i in enumerate(ids) if k != r) for r in range(n_rounds))
        object.__setattr__(self, "rounds", tuple(rounds))


def entry_of(answer: object) -> Mapping[str, Any] | None:
    """What is said of the one token that was asked for; None where an older server lists nothing.

    Raises:
        ReferenceUnavailableError: This build says it in a form that is not known here.
        NonsenseError: It says something else.
    """
    if not isinstance(answer, dict):
        raise NonsenseError("no object")
    listed = answer.get("completion_probabilities")
    if listed is None:
        raise ReferenceUnavailableError("this build of llama-server gives no probabilities")
    if listed == []:
        return None
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], dict):
        raise NonsenseError("not the probabilities of one token")
    entry: dict[str, Any] = listed[0]
    if "top_logprobs" not in entry and "probs" not in entry:
        raise ReferenceUnavailableError(
            "this build of llama-server gives probabilities in a form that is not known here",
            remedy=f"known are top_logprobs and probs; it has {', '.join(sorted(entry))[:80]}",
        )
    return entry


def by_id(entry: Mapping[str, Any], n_vocab: int) -> Float32:
    """Log-probabilities of every id, [n_vocab], from a list with ids.

    Raises:
        ReferenceUnavailableError: One is too small to be told.
        NonsenseError: Ids are missing, twice or others, or the numbers are no log-probabilities.
    """
    listed = _listed(entry["top_logprobs"], n_vocab)
    found = np.full(n_vocab, np.nan)
    for one in listed:
        i, value = one.get("id"), one.get("logprob")
        if type(i) is not int or not 0 <= i < n_vocab or not np.isnan(found[i]):
            raise NonsenseError(f"{i!r} is no id, or is there twice")
        found[i] = _number(value)
    chosen = entry.get("id")
    if type(chosen) is not int or not 0 <= chosen < n_vocab or found[chosen] < found.max():
        raise NonsenseError(f"it chose {chosen!r}, and another token is more likely")
    if (found < LEAST).any():
        raise _too_small(int(found.argmin()))
    return checked(found)


def by_piece(entry: Mapping[str, Any], pieces: Pieces, banned: frozenset[int]) -> Float64:
    """Log-probabilities from a list with texts, [n_vocab]; NaN where a token was banned.

    Raises:
        ReferenceUnavailableError: One is too small to be told.
        NonsenseError: Texts are missing or others, or the numbers are no probabilities.
    """
    n_vocab = len(pieces.shown)
    unsaid = {pieces.shown[i] for i in banned}
    told: dict[str, float] = {}
    for one in _listed(entry["probs"], n_vocab):
        text, p = one.get("tok_str"), _number(one.get("prob"))
        if not isinstance(text, str) or not 0.0 <= p <= 1.0 + _SUM:
            raise NonsenseError(f"{text!r} of probability {p}")
        if text in told and not (text in unsaid and 0.0 in (p, told[text])):
            raise NonsenseError(f"{text!r} is there twice")
        told[text] = max(told.get(text, 0.0), p)
    found = np.full(n_vocab, np.nan)
    for i, text in enumerate(pieces.shown):
        if i in banned:
            continue
        if text not in told:
            raise NonsenseError(f"{text!r} is missing")
        if told[text] < _SMALLEST:
            raise _too_small(i)
        found[i] = np.log(told.pop(text))
    if any(p or text not in unsaid for text, p in told.items()):
        raise NonsenseError(f"{min(told)!r} is no token's text, or was banned")
    if abs(float(np.exp(found[~np.isnan(found)]).sum()) - 1.0) > _SUM:
        raise NonsenseError("its probabilities do not sum to 1")
    best = pieces.shown[int(np.nanargmax(found))]
    if entry.get("content") != best and _probability_of(entry, pieces, found) < np.nanmax(found):
        raise NonsenseError(f"it chose {entry.get('content')!r}, and another token is more likely")
    return found


def _probability_of(entry: Mapping[str, Any], pieces: Pieces, found: Float64) -> float:
    """Of the token that was chosen; several may be equally likely."""
    of = [found[i] for i, text in enumerate(pieces.shown) if text == entry.get("content") and not np.isnan(found[i])]
    return float(of[0]) if of else -np.inf


def joined(rounds: Sequence[Float64], *, lifted: int | None = None, lift: float = 0.0) -> Float32:
    """One row of log-probabilities from those of several rounds.

    Args:
        rounds: As `by_piece` gives them, each normalised over what was not banned in it.
        lifted: The token that was favoured in each.
        lift: By so much.
    """
    known = ~np.isnan(np.stack(rounds)).any(axis=0)
    at = int(np.where(known, rounds[0], -np.inf).argmax())  # the most likely that every round has
    row = rounds[0].copy()
    for other in rounds[1:]:
        row = np.where(np.isnan(row), other + (rounds[0][at] - other[at]), row)
    if lifted is not None:
        row[lifted] -= lift
    row = row - row.max()
    return checked(row - np.log(np.exp(row).sum()))


def checked(row: Float64) -> Float32:
    """A row that is one of log-probabilities, as float32.

    Raises:
        NonsenseError: They are none.
    """
    if not np.isfinite(row).all() or (row > _SUM).any() or abs(float(np.exp(row).sum()) - 1.0) > _SUM:
        raise NonsenseError("its probabilities do not sum to 1")
    return np.asarray(row, np.float32)


def _too_small(i: int) -> ReferenceUnavailableError:
    return ReferenceUnavailableError(
        f"the probability of token {i} is below what float32 tells, and so its logit is not known"
    )


def _listed(values: object, n_vocab: int) -> list[dict[str, Any]]:
    if not isinstance(values, list) or len(values) != n_vocab:
        n = len(values) if isinstance(values, list) else "no"
        raise NonsenseError(f"{n} probabilities for a vocabulary of {n_vocab}")
    if not all(isinstance(one, dict) for one in values):
        raise NonsenseError("not every probability is an object")
    return values


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise NonsenseError(f"{value!r} is no number")
    return float(value)
