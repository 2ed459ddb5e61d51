"""Every limit there is, each with its metric and its reason. No other module compares with a number of its own."""

from __future__ import annotations

from dataclasses import dataclass

from receipts.lanes import UNWATCHED
from receipts.running import WINDOW
from reference.runner import LOG_PROBABILITY_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A limit.

    Attributes:
        metric: What it bounds.
        limit: The largest value that passes.
        reason: Why this value and no other.
    """

    metric: str
    limit: float
    reason: str

    def holds(self, measured: float) -> bool:
        """Whether a value is inside; NaN is not."""
        return measured <= self.limit


LOCKED_OPERATION = Envelope(
    metric="max|error| / max|reference|",
    limit=1e-6,
    reason="on the same float32 inputs, honest engines differ by the order of a float32 sum: 1e-7 to 2e-7 measured; "
    "where data amplify rounding (crossval.conditioning), |reference| counts for as much as makes this limit the noise",
)

#: Standard deviations of rounding that two honest engines may be apart: chance exceeds them in one of 2 · 10⁶ values.
DEVIATIONS = 5.0
LARGEST_LOCKED = Envelope(
    metric="max|error| / max|reference|",
    limit=2.0**-12,
    reason="however ill conditioned an operation is, float32 that errs by more is no better than float16",
)

#: The same where inputs were not shown, so that each side rounds its own to integers.
LARGEST_UNSHOWN = Envelope(
    metric="max|error| / max|reference|",
    limit=5e-2,
    reason="one flipped rounding of an input moves a value by 1e-3 to 1e-2; how much, is measured",
)

SAME_UNWATCHED = Envelope(
    metric=UNWATCHED,
    limit=0.0,
    reason="the engine gives the same bits however it is run, or those that are watched are not the ones it computes",
)

INTEGER_SUMS = Envelope(
    metric="unequal integer sums",
    limit=0.0,
    reason="ternary × int8 sums are integers; every order of summation gives the same one",
)

WEIGHTS = Envelope(
    metric="max|error| of decoded weights",
    limit=0.0,
    reason="decoding is a table look-up and one multiplication; lossless containers decode to the same bits",
)

SAME_TOKENS = Envelope(metric="texts with different ids", limit=0.0, reason="token ids are equal or they are not")

SAME_CHOICE = Envelope(
    metric="different tokens outside near-ties",
    limit=0.0,
    reason="where the margin exceeds the measured noise, greedy decoding has one right answer",
)

#: A product with quantised weights against the oracle's with the same weights and activations, by weight type.
QUANTISED_PRODUCT = {
    name: Envelope(
        metric="mean squared error of a product / mean square of the oracle's",
        limit=limit,
        reason=reason,
    )
    for name, limit, reason in (
        ("I2_S", 1e-5, "what users of I2_S are promised; exact sums and float32 scaling measure 1e-15"),
        ("TL1", 1e-4, "bitnet.cpp's tables of TL1 hold int8 sums; this engine's sums are exact and measure 1e-15"),
        ("TL2", 1e-4, "bitnet.cpp's tables of TL2 hold int8 sums; this engine's sums are exact and measure 1e-15"),
        ("TQ1_0", 1e-5, "the same integers as I2_S in another container"),
        ("TQ2_0", 1e-5, "the same integers as I2_S in another container"),
    )
}

TERNARY_KEPT = Envelope(
    metric="mean squared error of ternarised weights / their mean square",
    limit=0.0,
    reason="weights that are ternary already are taken as they are",
)

#: Activation quantisers that round to integers: one float32 difference flips a rounding, and the flip spreads.
_ROUNDING = ("int8_token", "int8_token_reciprocal", "int8_token_fused", "q8_k", "q8_0")

#: Noise is measured between two computations, the comparison is between two others: allow their ratio to vary by this.
NOISE_ALLOWANCE = 4.0
#: No noise excuses more: the logits of unrelated models are 1.0 and more apart, in relative L2.
LARGEST_LIMIT = 0.5


def logits_median(activation: str, noise_median: float, told: float = 0.0) -> Envelope:
    """Bound of the median relative L2 of logits over positions; `told` is how exactly they are told, relative L2."""
    if activation == "f16":
        base, why = 2e-3, "float16 activations round at 5e-4"
    elif activation == "bf16":
        base, why = 2e-2, "bfloat16 activations round at 4e-3"
    elif activation in _ROUNDING:
        base, why = 1e-6, "most positions of a shallow model see no flipped rounding: 2e-7 measured"
    else:
        base, why = 5e-6, "float32 throughout: 4e-7 measured, 9e-7 the worst"
    return _over_noise("median relative L2 of logits", base + told, _told(why, told), noise_median)


def logits_running(activation: str, noise_running: float, told: float = 0.0) -> Envelope:
    """Bound of the running median of the relative L2 of logits (`receipts.running`); arguments as above."""
    metric = f"running median relative L2 of logits, {WINDOW} positions in a row"
    if activation not in _ROUNDING:
        median = logits_median(activation, 0.0)
        return _over_noise(metric, median.limit + told, _told(median.reason, told), noise_running)
    why = "a flipped rounding moves most positions after it by 2e-5 to 4e-4, where the noise shows no more"
    return _over_noise(metric, 1e-3 + told, _told(why, told), noise_running)


def logits_max(activation: str, head: str, noise_max: float, told: float = 0.0) -> Envelope:
    """Bound of the largest relative L2 of logits over positions; arguments as in `Numerics`, the noise, and `told`."""
    if activation in _ROUNDING:
        base, why = 5e-2, "one flipped rounding moves a position by 1e-2; 2.5e-2 the worst measured"
    elif activation == "none" and head != "f32":
        base, why = 1e-4, "one flipped float16 rounding of the head's input moves a position by 2e-5"
    else:
        median = logits_median(activation, 0.0)
        base, why = median.limit, median.reason
    return _over_noise("largest relative L2 of logits", base + told, _told(why, told), noise_max)


def _told(why: str, told: float) -> str:
    return f"{why}; and {told:.1e}, for log-probabilities are told to {LOG_PROBABILITY_ERROR:.0e}" if told else why


def quality(noise: float) -> Envelope:
    """Bound of the difference of two mean negative log-likelihoods over a text."""
    return _over_noise(
        "|difference of mean negative log-likelihood|, nats",
        1e-5,
        "far below what any change of a model means, and above float32 rounding of one mean",
        noise,
    )


def _over_noise(metric: str, base: float, why: str, noise: float) -> Envelope:
    if NOISE_ALLOWANCE * noise <= base:
        return Envelope(metric=metric, limit=base, reason=why)
    if not NOISE_ALLOWANCE * noise <= LARGEST_LIMIT:
        reason = f"the model shows a noise of {noise:.1e} against itself; unrelated logits are 1.0 apart"
        return Envelope(metric=metric, limit=LARGEST_LIMIT, reason=reason)
    reason = f"{NOISE_ALLOWANCE:g} × the noise of {noise:.1e} that this model shows against itself in this run"
    return Envelope(metric=metric, limit=NOISE_ALLOWANCE * noise, reason=reason)
