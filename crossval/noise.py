"""The noise floor: how far engines differ from themselves, measured in the run that uses it.

Activations rounded to integers make a model chaotic: one difference of 1e-7 flips a rounding, and the logits move by
1e-2. So before two engines are called different, each is compared with itself: the reference evaluating a prompt
together and token by token, and the engine with its embeddings moved by one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from crossval.metrics import Float32, Float64, max_abs, negative_log_likelihood, relative_l2
from reference.runner import Observation, Request, Runner

#: Independent perturbations of the engine's inputs: a flip that one of them misses, another meets.
SEEDS = (1, 2, 3)


@dataclass(slots=True)
class Noise:
    """Differences of engines with themselves, gathered over all cases of a lane.

    Attributes:
        rel_l2: By position, of every self-comparison.
        max_abs: Largest absolute difference of a logit, by position.
        nll: Differences of mean negative log-likelihood.
        sources: Between which computations.
    """

    rel_l2: list[Float64] = field(default_factory=list)
    max_abs: list[Float64] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, source: str, a: Float32, b: Float32, ids: tuple[int, ...] | None = None) -> Float64:
        """Enter two computations of the same logits; returns their relative L2 by position."""
        floor = relative_l2(a, b)
        self.rel_l2.append(floor)
        self.max_abs.append(max_abs(a, b))
        if ids is not None and len(ids) > 1:
            one, two = (negative_log_likelihood(x, ids).mean() for x in (a, b))
            self.nll.append(abs(float(one - two)))
        if source not in self.sources:
            self.sources.append(source)
        return floor

    @property
    def median(self) -> float:
        """Median relative L2 over positions, of the noisiest self-comparison."""
        return max((float(np.median(x)) for x in self.rel_l2 if x.size), default=0.0)

    @property
    def largest(self) -> float:
        """Largest relative L2 at any position."""
        return max((float(x.max()) for x in self.rel_l2 if x.size), default=0.0)

    @property
    def margin(self) -> float:
        """How far noise can move the difference of two logits."""
        return 2.0 * max((float(x.max()) for x in self.max_abs if x.size), default=0.0)

    @property
    def mean_nll(self) -> float:
        """Largest difference of two mean negative log-likelihoods."""
        return max(self.nll, default=0.0)


def one_ulp(value: Float32, seed: int) -> Float32:
    """Every element moved one unit in the last place, up or down at random."""
    rng = np.random.default_rng(seed)
    away = np.where(rng.integers(0, 2, value.shape, dtype=np.int8) == 1, np.float32(np.inf), np.float32(-np.inf))
    return np.nextafter(value, away).astype(np.float32)


def perturbed(engine: Runner, ids: Sequence[int], n_batch: int | None, seed: int, embd: Float32) -> Observation:
    """The engine's run with its embeddings [n_token, n_embd] moved by one unit in the last place."""
    return engine.run(Request(ids=tuple(ids), n_batch=n_batch, lock={("embd", -1): one_ulp(embd, seed)}))
