"""The noise floor: how far engines differ from themselves, measured in the run that uses it.

Activations rounded to integers make a model chaotic: one difference of 1e-7 flips a rounding, and the logits move by
1e-2. So before two engines are called different, the model is compared with itself: the contract as it is, and with
every result that float32 leaves open moved by one unit in the last place. The oracle alone is asked. Neither side of a
lane may have a say in the limit it is judged by: a broken engine is noisy, and would excuse itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crossval.metrics import Float32, Float64, max_abs, negative_log_likelihood, relative_l2
from receipts.running import running_median
from reference.oracle import Oracle
from reference.rounding import INT8_TOKEN
from reference.runner import Request

#: Independent perturbations: a flip that one of them misses, another meets.
SEEDS = (1, 2, 3)
#: Those that are tried before an engine is called wrong: of 100 honest engines on texts of 14 to 24 tokens, the first
#: three leave 15 called wrong, and these none or one.
FURTHER = range(max(SEEDS) + 1, max(SEEDS) + 49)
#: What `Noise` measures, for people.
HOW = "the oracle with itself, what float32 leaves open moved by one unit in the last place"


@dataclass(slots=True)
class Noise:
    """Differences of the contract with itself, gathered over all cases of a lane.

    Attributes:
        rel_l2: By position, of every self-comparison.
        max_abs: Largest absolute difference of a logit, by position.
        nll: Differences of mean negative log-likelihood.
    """

    rel_l2: list[Float64] = field(default_factory=list)
    max_abs: list[Float64] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)

    def measure(self, oracle: Oracle, ids: tuple[int, ...], seeds: Sequence[int] = SEEDS) -> Float64:
        """Evaluate ids as they are and perturbed; returns the largest relative L2 at each position."""
        exact = oracle.run(Request(ids=ids)).logits
        moved = [jittered(oracle, seed).run(Request(ids=ids)).logits for seed in seeds]
        floor: Float64 = np.max([self.add(exact, other, ids) for other in moved], axis=0, initial=0.0)
        return floor

    def add(self, a: Float32, b: Float32, ids: tuple[int, ...]) -> Float64:
        """Enter two computations of the same logits; returns their relative L2 by position."""
        floor = relative_l2(a, b)
        self.rel_l2.append(floor)
        self.max_abs.append(max_abs(a, b))
        if len(ids) > 1:
            one, two = (negative_log_likelihood(x, ids).mean() for x in (a, b))
            self.nll.append(abs(float(one - two)))
        return floor

    def include(self, other: Noise) -> None:
        """Enter what another gathered: a case's into its lane's."""
        self.rel_l2 += other.rel_l2
        self.max_abs += other.max_abs
        self.nll += other.nll

    @property
    def median(self) -> float:
        """Median relative L2 over positions, of the noisiest self-comparison."""
        return max((float(np.median(x)) for x in self.rel_l2 if x.size), default=0.0)

    @property
    def running(self) -> float:
        """Running median of relative L2, of the noisiest self-comparison."""
        return max((running_median(x.tolist()) for x in self.rel_l2), default=0.0)

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


def one_ulp(value: Float32, rng: np.random.Generator) -> Float32:
    """Every element moved one unit in the last place, up or down at random."""
    away = np.where(rng.integers(0, 2, value.shape, dtype=np.int8) == 1, np.float32(np.inf), np.float32(-np.inf))
    return np.nextafter(value, away).astype(np.float32)


class Jittered(Oracle):
    """The contract, with every result that float32 leaves open moved by one unit in the last place.

    Open are attention (order of sums, exponential), the rotation (sine, cosine), the activation, and products with
    activations that are not integers (order of sums). The rest has one right answer, and keeps it.
    """

    _rng: np.random.Generator

    def _moved(self, value: Any) -> Float64:  # noqa: ANN401  # arrays of either width
        return one_ulp(np.asarray(value, np.float32), self._rng).astype(np.float64)

    def _attend(self, q: Float64, k: Float64, v: Float64, start: int) -> Float64:
        return self._moved(super()._attend(q, k, v, start))

    def _rotate(self, x: Float64, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Float64:
        return self._moved(super()._rotate(x, positions))

    def _activate(self, gate: Float64) -> Float64:
        return self._moved(super()._activate(gate))

    def _project(self, x: Float64, il: int, tap: str) -> Float32:
        exact = super()._project(x, il, tap)
        integers = self.numerics["activation"] in INT8_TOKEN
        return exact if integers else one_ulp(exact, self._rng)


def jittered(oracle: Oracle, seed: int) -> Jittered:
    """A perturbed oracle on the weights of another."""
    made = Jittered.__new__(Jittered)
    vars(made).update(vars(oracle))
    made._rng = np.random.default_rng(seed)
    return made
