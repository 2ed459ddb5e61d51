"""Who is odd: independent witnesses of one rung, compared each with each.

Witnesses of one family, or of one library, are one witness: a build heard twice proves nothing, and two builds that
share code share its faults. Two that compare nothing do not agree. Where there is no single largest group of at least
two, nobody is blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, Literal, TypeVar

from receipts.record import RungName, Vote

T = TypeVar("T")
Word = Literal["agrees", "differs", "absent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness(Generic[T]):
    """One engine and what it computed.

    Attributes:
        family: Engines of one family share code.
        library_sha256: Of the code that computed; "" where there is no library file.
        said: What it computed; None where it computed nothing (it died, or cannot show it).
    """

    family: str
    library_sha256: str = ""
    said: T | None = None


def vote(rung: RungName, witnesses: Mapping[str, Witness[T]], agree: Callable[[T, T], bool]) -> Vote:
    """Compare witnesses and name the odd one.

    Args:
        rung: What is voted on.
        witnesses: By name; of each family and library the first that said something is heard.
        agree: Whether two of their values agree.
    """
    heard = independent(witnesses)
    said = {name: witnesses[name].said for name in heard}
    friends = {(a, b) for a, b in combinations(heard, 2) if agree(said[a], said[b])}  # type: ignore[arg-type]  # those heard said something
    groups = _largest(heard, friends)
    inside = set.intersection(*map(set, groups)) if groups and len(groups[0]) > 1 else set()
    words: dict[str, Word] = dict.fromkeys(witnesses, "absent")
    words |= {name: "agrees" if name in inside else "differs" for name in heard}
    outside = [name for name in heard if name not in inside]
    alone = len(outside) == 1 and len(inside) > 1 and not any(outside[0] in pair for pair in friends)
    return Vote(rung=rung, witnesses=words, odd=outside[0] if alone else None)


def independent(witnesses: Mapping[str, Witness[T]]) -> list[str]:
    """Names of those heard: the first of each family and library that said something."""
    heard: list[str] = []
    marks: set[str] = set()
    for name, witness in witnesses.items():
        own = {f"family {witness.family}", *([witness.library_sha256] if witness.library_sha256 else [])}
        if witness.said is None or own & marks:
            continue
        marks |= own
        heard.append(name)
    return heard


def _largest(names: Sequence[str], friends: set[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Every largest group in which all agree with all; a handful of witnesses, so all groups are tried."""
    for size in range(len(names), 0, -1):
        groups = [g for g in combinations(names, size) if all(pair in friends for pair in combinations(g, 2))]
        if groups:
            return groups
    return []


def spoken(result: Vote) -> str:
    """A vote in words: how many agree, and who does not."""
    agree = [name for name, word in result.witnesses.items() if word == "agrees"]
    differ = [name for name, word in result.witnesses.items() if word == "differs"]
    total = len(agree) + len(differ)
    if result.odd == "bitnet":
        return f"the engine under test is the odd one: {', '.join(agree)} agree with each other and not with it"
    if result.odd:
        return f"{len(agree)} of {total} agree; {result.odd} is the odd one"
    return f"all {total} agree" if not differ and total > 1 else f"no majority among {total}"
