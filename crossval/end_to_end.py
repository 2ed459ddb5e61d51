"""What logits alone can tell: how far the contract, or a hypothesis, is from an engine that shows nothing else.

A hypothesis is replayed from the embedding to the head, on the same ids in the same batches, and what is left of the
difference is measured by position in decades over float32 noise: the logarithm, because one flipped rounding moves a
position by 1e-2 however right the hypothesis is, and must not hide that the others are reproduced. What the model shows
against itself (`crossval.noise`) is as near as an honest engine is sure to come; positions where the engine is no
further than that from the contract say nothing, and are left out where others speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossval import envelope
from crossval.closeness import Closeness
from crossval.metrics import Float32, Float64, log_softmax
from crossval.noise import FURTHER, Noise, jittered
from receipts.running import running_median
from reference.oracle import Oracle
from reference.runner import Request

#: Relative L2 of the logits of two honest engines where no rounding was flipped: 1e-7 to 3e-7 measured.
FLOOR = 3e-7
#: Relative L2 beyond which being more wrong says nothing more (infinity, NaN, 1e13): unrelated logits are 1 to 2 apart.
MOST = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One computation of the engine in question.

    Attributes:
        ids: The tokens.
        logits: [T, n_vocab] f32, after each of them.
        n_batch: Tokens evaluated together first, the rest one at a time; None for all together.
        floor: Relative L2 of the contract with itself by position; None where it is still to be measured.
        log_probabilities: Whether they are normalised: servers tell logits up to a constant of each row.
    """

    ids: tuple[int, ...]
    logits: Float32
    n_batch: int | None = None
    floor: Float64 | None = None
    log_probabilities: bool = False

    @property
    def request(self) -> Request:
        """What the engine was asked."""
        return Request(ids=self.ids, n_batch=self.n_batch)


class EndToEnd:
    """An engine's logits against the contract's.

    Args:
        oracle: The contract, in the numerics that the engine declares.
        evaluations: What the engine computed, with rows for all ids.
    """

    def __init__(self, oracle: Oracle, evaluations: Sequence[Evaluation]) -> None:
        self.oracle, self.evaluations = oracle, evaluations
        floors = [Noise().measure(oracle, e.ids) if e.floor is None else e.floor for e in evaluations]
        self.noise = np.maximum(np.concatenate(floors), FLOOR)
        self.contract = self.left(oracle)
        above = self.contract > envelope.NOISE_ALLOWANCE * self.noise
        odd = self.contract > envelope.NOISE_ALLOWANCE * FLOOR
        #: Positions that are judged, and how near to the engine a hypothesis can be asked to come there.
        self.judged = above if above.any() else odd
        self.above_noise = bool(above.any())
        self.reachable = self.noise if self.above_noise else np.full_like(self.noise, FLOOR)

    @property
    def wrong(self) -> bool:
        """Whether the engine differs from the contract at all."""
        return bool(self.judged.any())

    @cached_property
    def honest(self) -> bool:
        """Whether there is nothing to explain: the engine is as near to the contract as that is to itself.

        Of a short text one rounding that flips early moves most positions, and a few perturbations may all miss it. So
        before an engine is called wrong, further ones are tried: one that flips the same rounding reproduces an honest
        engine to float32, and never one that is wrong.
        """
        running = max(running_median(part.tolist()) for part in self._split(self.noise))
        if self._within(self.contract, float(np.median(self.noise)), running):
            return True
        return any(self._within(self.left(jittered(self.oracle, seed)), 0.0, 0.0) for seed in FURTHER)

    def _within(self, left: Float64, median: float, running: float) -> bool:
        """Whether the limits of the rung of logits hold for a distance to the engine, over such a noise."""
        kind, head = self.oracle.numerics["activation"], self.oracle.numerics["head"]
        noise = {"median": median, "running": running, "largest": float(self.noise.max())}
        return Closeness.over(kind, head, **noise).hold(self._split(left))

    def _split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """By evaluation."""
        return np.split(values, np.cumsum([len(e.ids) for e in self.evaluations])[:-1])

    @property
    def decades(self) -> float:
        """How far the contract is from the engine over what can be reached, mean decades over judged positions."""
        return self.removed(self.reachable) if self.wrong else 0.0

    def logits(self, variant: Oracle) -> list[Float32]:
        """What an engine that understands the file so computes, by evaluation."""
        return [variant.run(evaluation.request).logits for evaluation in self.evaluations]

    def left(self, variant: Oracle) -> Float64:
        """Relative L2 of a hypothesis to the engine by position, between `FLOOR` and `MOST`."""
        return self.left_of(self.logits(variant))

    def left_of(self, computed: Sequence[Float32]) -> Float64:
        """The same of logits that were computed already."""
        pairs = zip(computed, self.evaluations, strict=True)
        return np.concatenate([_distance(ours, e.logits, normalised=e.log_probabilities) for ours, e in pairs])

    def gains(self, left: Float64) -> Float64:
        """Decades by which a hypothesis is nearer than the contract; where that is right, it can only do harm."""
        near = envelope.NOISE_ALLOWANCE * self.noise
        harm = -np.log10(np.maximum(left, near) / near)
        return np.where(self.judged, np.log10(self.contract / left), harm)

    def removed(self, left: Float64) -> float:
        """Decades that a hypothesis removes, a judged position."""
        return float(self.gains(left).sum() / max(self.judged.sum(), 1))

    def nearer(self, left: Float64, other: Float64) -> bool:
        """Whether one hypothesis is nearer than another by more than positions vary: by two standard errors."""
        gain = self.gains(left) - self.gains(other)
        error = float(gain.std() / np.sqrt(len(gain)))
        return float(gain.mean()) > max(2.0 * error, 1e-3)

    def first_wrong(self) -> set[int]:
        """The first judged position of each evaluation that has one."""
        return {int(part.argmax()) for part in self._split(self.judged) if part.any()}

    def factor(self, computed: Sequence[Float32]) -> float:
        """The number that logits have to be multiplied by to come nearest to the engine's."""
        pairs = [
            (a.astype(np.float64), e.logits.astype(np.float64)) for a, e in zip(computed, self.evaluations, strict=True)
        ]
        with np.errstate(all="ignore"):
            return float(sum((a * b).sum() for a, b in pairs) / sum((a * a).sum() for a, _ in pairs))


def _distance(ours: Float32, theirs: Float32, *, normalised: bool) -> Float64:
    """Relative L2 by row; where neither is finite and both are not in the same way, they agree."""
    with np.errstate(all="ignore"):
        a, b = (log_softmax(x) if normalised else x.astype(np.float64) for x in (ours, theirs))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, a - b)
        size = np.where(np.isfinite(b), b, 0.0)
        norm = np.linalg.norm(size, axis=1)
        typical = float(np.sqrt(np.square(norm).mean())) if norm.size else 0.0
        share = np.linalg.norm(gap, axis=1) / np.maximum(norm, 1e-3 * typical)  # a row of zeros has no size of its own
    share[~np.isfinite(share)] = MOST
    share[same.all(axis=1)] = 0.0
    left: Float64 = np.clip(share, FLOOR, MOST)
    return left
