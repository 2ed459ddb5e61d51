"""The smallest case that still shows a defect: delta debugging over tokens, then over how they are evaluated.

Every candidate is evaluated again by the odd engine itself, and counts only if the same operation is still wrong on
the inputs that it captured then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossval.finding import Finding, finding
from crossval.replay import Replay
from reference.oracle import Oracle
from reference.runner import ReferenceFailedError, ReferenceUnavailableError, Request, Runner, TapKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimal:
    """A smallest case.

    Attributes:
        ids: Its tokens: with any one of them left out, the defect does not show.
        n_batch: As in the request; None if the defect shows in one batch.
        finding: The operation that is wrong, in the earliest layer that shows it.
        replay: What the engine captured of it.
        tried: Candidates that were evaluated.
    """

    ids: tuple[int, ...]
    n_batch: int | None
    finding: Finding
    replay: Replay
    tried: int


def ddmin(items: Sequence[int], fails: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """A 1-minimal subsequence that still fails (Zeller and Hildebrandt's ddmin, complements only).

    Args:
        items: A sequence that fails.
        fails: Whether a subsequence, never empty, still fails.
    """
    current, pieces = tuple(items), 2
    while len(current) > 1:
        size = -(-len(current) // pieces)
        for start in range(0, len(current), size):
            rest = current[:start] + current[start + size :]
            if rest and fails(rest):
                current, pieces = rest, max(pieces - 1, 2)
                break
        else:
            if pieces >= len(current):
                break
            pieces = min(2 * pieces, len(current))
    return current


def minimise(
    odd: Runner,
    oracle: Oracle,
    ids: Sequence[int],
    key: TapKey,
    *,
    n_batch: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Minimal:
    """Shrink a case in which an operation of an engine is wrong.

    Args:
        odd: The engine; it is run again for every candidate.
        oracle: The contract, in the engine's numerics.
        ids: Tokens that show it.
        key: The operation; the same kind in an earlier layer is taken where it shows there.
        n_batch: As in the request that showed it.
        progress: Told how many candidates were tried.

    Raises:
        ValueError: The case does not show it.
    """
    tap, tried = key[0], 0

    def shown(candidate: tuple[int, ...], batch: int | None) -> tuple[Finding, Replay] | None:
        nonlocal tried
        tried += 1
        progress(tried)
        try:
            seen = odd.run(
                Request(ids=candidate, n_batch=None if batch is None else min(batch, len(candidate)), taps=True)
            )
        except (ReferenceFailedError, ReferenceUnavailableError):
            return None  # another fault than the one that is shrunk
        replay = Replay(oracle, candidate, seen.taps, n_batch=batch)
        for place in replay.keys:
            if place[0] != tap or place[1] > key[1]:
                continue
            found = finding(place, replay.operation(place, oracle), replay.outputs[place], replay)
            if found is not None:
                return found, replay
        return None

    batches = dict.fromkeys((None, n_batch))  # all at once is the simpler way
    batch = next((b for b in batches if shown(tuple(ids), b) is not None), 0)
    if batch == 0:
        raise ValueError(f"{tap} of layer {key[1]} is not wrong on these {len(ids)} tokens")
    smallest = ddmin(ids, lambda candidate: shown(candidate, batch) is not None)
    last = shown(smallest, batch)
    if last is None:
        raise ValueError(
            f"{tap} of layer {key[1]} is wrong at one time and right at another: the engine is not deterministic"
        )
    return Minimal(ids=smallest, n_batch=batch, finding=last[0], replay=last[1], tried=tried)
