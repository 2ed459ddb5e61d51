"""One operation at a time, on what an engine fed it: the contract, or a hypothesis, replayed on captured inputs.

Nothing is carried from one operation to the next, so a difference in one place is seen there and nowhere else, one
hypothesis costs only the operations that it touches, and no more than one layer of weights is needed at a time.
Where an engine did not show an input, it is computed from those before it, under the same hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from crossval import conditioning, envelope
from crossval.metrics import Difference, Float32, Float64
from crossval.noise import jittered, one_ulp
from reference.oracle import Oracle
from reference.runner import TapKey, tap_order

#: Root mean square of an honest difference on locked inputs, relative to the values: 5e-8 to 1e-7 measured.
FLOOR = 1e-7
#: Decades above the floor at which being more wrong says nothing more (infinity, NaN, 1e13).
MOST = 12.0
#: Perturbations of inputs that were not shown: a rounding that may flip stays in all of them once in 256 times.
_SEEDS = range(1, 9)


class Replay:
    """Captured operations of one request.

    Args:
        oracle: The contract, in the engine's numerics.
        ids: The tokens.
        inputs: What each operation was fed, by the tap that it came from, [T, width].
        outputs: What the engine in question made of them; `inputs` itself where that is the engine that was captured.
        n_batch: As in the request.
    """

    def __init__(
        self,
        oracle: Oracle,
        ids: Sequence[int],
        inputs: Mapping[TapKey, Float32],
        outputs: Mapping[TapKey, Float32] | None = None,
        *,
        n_batch: int | None = None,
    ) -> None:
        self.oracle, self.ids, self.inputs = oracle, np.asarray(ids, np.int64), inputs
        self.outputs = inputs if outputs is None else outputs
        n = len(self.ids)
        first = n if n_batch is None else min(n_batch, n)
        self._noise: dict[TapKey, float] = {}
        self._carried: dict[TapKey, float] = {}
        self.borders = [0, first, *range(first + 1, n + 1)]
        self.keys = [key for key in tap_order(oracle.hyper.n_layer) if key in self.outputs]

    def source(self, key: TapKey, variant: Oracle, made: dict[TapKey, Float32] | None = None) -> Float32:
        """What an operation is fed: captured, or computed where it was not."""
        if key in self.inputs:
            return self.inputs[key]
        made = {} if made is None else made
        if key not in made:
            made[key] = self.operation(key, variant, made)
        return made[key]

    def operation(self, key: TapKey, variant: Oracle, made: dict[TapKey, Float32] | None = None) -> Float32:
        """One operation under a hypothesis, [T, width] f32."""
        inputs = self._fed(key, variant, {} if made is None else made)
        parts = []
        with np.errstate(all="ignore"):  # infinity and NaN are findings
            for start, stop in pairwise(self.borders):
                fed = [x[start:stop] for x in inputs]
                if key[0] == "kqv_out":
                    fed = [fed[0], *(x[:stop] for x in inputs[1:])]
                parts.append(np.asarray(variant.operation(key, fed, self.ids[start:stop], start), np.float32))
        return np.concatenate(parts)

    def _fed(self, key: TapKey, variant: Oracle, made: dict[TapKey, Float32]) -> list[Float64]:
        inputs = [self.source(source, variant, made).astype(np.float64) for source in variant.inputs(key)]
        if key[0] == "kqv_out":
            inputs[1:] = [variant.cached(value) for value in inputs[1:]]
        return inputs

    def noise(self, key: TapKey, variant: Oracle | None = None) -> float:
        """How far two honest engines may be apart in an operation: by `conditioning.noise`, and by inputs not shown."""
        if variant is not None and variant is not self.oracle:
            own = conditioning.noise(variant, key, self._fed(key, variant, {}), self.borders)
            return own + self._noise_of_inputs(key)
        if key not in self._noise:
            own = conditioning.noise(self.oracle, key, self._fed(key, self.oracle, {}), self.borders)
            self._noise[key] = own + self._noise_of_inputs(key)
        return self._noise[key]

    def _noise_of_inputs(self, key: TapKey) -> float:
        """What an operation makes of honest differences in inputs that were not shown, roundings that flip included.

        Each side then computed them itself: so does the contract, moved by as much as float32 leaves open.
        """
        if self._all_shown(key):
            return 0.0
        if key not in self._carried:
            exact, moved = self.operation(key, self.oracle).astype(np.float64), 0.0
            for seed in _SEEDS:
                other = _Perturbed(self, seed).operation(key, jittered(self.oracle, seed))
                moved = max(moved, float(np.abs(other - exact).max(initial=0.0)))
            self._carried[key] = envelope.NOISE_ALLOWANCE * moved if np.isfinite(moved) else 0.0
        return self._carried[key]

    def _all_shown(self, key: TapKey) -> bool:
        return all(source in self.inputs for source in self.oracle.inputs(key))

    def _largest(self, key: TapKey) -> envelope.Envelope:
        """What no noise excuses in an operation."""
        return envelope.LARGEST_LOCKED if self._all_shown(key) else envelope.LARGEST_UNSHOWN

    def judged(self, key: TapKey, ours: Float32, theirs: Float32) -> Difference:
        """The difference of two values of an operation, measured as its inputs allow."""
        return conditioning.judged(ours, theirs, lambda: self.noise(key), self._largest(key))

    def decades(self, key: TapKey, value: Float32, variant: Oracle | None = None) -> float:
        """How many decades above float32 noise a value, computed under a hypothesis, is from the engine's."""
        return decades(value, self.outputs[key], lambda: self.noise(key, variant), self._largest(key))

    def touched(self, taps: frozenset[str], variant: Oracle) -> Iterator[TapKey]:
        """Captured operations that a change of some taps can move, directly or through inputs that were not shown."""
        moved: set[TapKey] = set()
        for key in tap_order(self.oracle.hyper.n_layer):
            if key[0] in variant.absent:
                continue
            through = any(s in moved and s not in self.inputs for s in variant.inputs(key))
            if key[0] in taps or through:
                moved.add(key)
                if key in self.outputs:
                    yield key


class _Perturbed(Replay):
    """Another's operations, with every input that was not shown moved: by one unit in the last place and its noise."""

    def __init__(self, other: Replay, seed: int) -> None:
        vars(self).update(vars(other))
        self._rng = np.random.default_rng(seed)

    def source(self, key: TapKey, variant: Oracle, made: dict[TapKey, Float32] | None = None) -> Float32:
        made = {} if made is None else made
        known = key in self.inputs or key in made
        value = super().source(key, variant, made)
        if not known:
            noise = conditioning.noise(self.oracle, key, self._fed(key, variant, made), self.borders)
            moved = one_ulp(value, self._rng) + noise * self._rng.uniform(-1.0, 1.0, value.shape)
            value = made[key] = moved.astype(np.float32)
        return value


def decades(
    found: Float32,
    engine: Float32,
    noise: Callable[[], float] = lambda: 0.0,
    largest: envelope.Envelope = envelope.LARGEST_LOCKED,
) -> float:
    """Mean over tokens of log10(relative root mean square difference / noise floor); 0 within the locked envelope.

    `noise` widens the envelope for data that amplify rounding, up to `largest`, as in `conditioning.judged`.
    Token by token, so that one flipped rounding does not hide that all other tokens are reproduced. Elements that
    both hold as the same infinity, or both as NaN, agree: an overflow is reproduced by an overflow.
    """
    if found.shape != engine.shape:
        return MOST
    a, b = found.astype(np.float64), engine.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not (finite | same).all():
            return MOST
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    if not a.size:
        return 0.0
    error, size = float(np.abs(a - b).max()), float(np.abs(b).max())
    if error <= envelope.LOCKED_OPERATION.limit * size:
        return 0.0
    if error <= largest.limit * size and error <= noise():
        return 0.0
    norm = np.linalg.norm(b, axis=1)
    typical = float(np.sqrt(np.square(norm).mean()))
    if typical == 0.0:
        return MOST
    share = np.linalg.norm(a - b, axis=1) / np.maximum(norm, 1e-3 * typical)  # a token of zeros has no size of its own
    by_token = np.log10(np.maximum(share, FLOOR) / FLOOR)
    return float(np.clip(by_token.mean(), 0.01, MOST))
