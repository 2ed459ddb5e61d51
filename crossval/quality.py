"""How good a model is on a text, and how far from another: what llama.cpp's perplexity tool reports.

The text is cut into chunks of `n_ctx` tokens, each evaluated from an empty cache (beginning with BOS where the model
wants it), and the second half of each is scored. Against base log-probabilities: KL divergence, the change Δp of the
probability of the token that came, and how often both put the same token first. The tool's own error bars take the
tokens of a text for independent, which they are not; beside them stand those of a block bootstrap, which resamples
runs of consecutive tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from crossval.metrics import Float32, Float64, ShapeMismatchError, log_softmax

#: Base probabilities below e^−16 are left out of the divergence, as the tool leaves them out: its files clip there.
FLOOR = -16.0
#: Shares of the sorted values that the tool prints.
KLD_PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1, 0.0)
DELTA_P_PERCENTILES = (100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0)
#: Consecutive tokens that are drawn together, where there are eight times as many; their correlation dies within a
#: sentence or two.
BLOCK = 32
RESAMPLES = 1000
#: With fewer tokens than this the tool gives no error; neither do we.
FEW = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its errors, one standard deviation each.

    Attributes:
        value: The estimate.
        error: As the tool computes it, tokens taken for independent; NaN where there are too few.
        block_error: By block bootstrap; NaN likewise.
    """

    value: float
    error: float
    block_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What is known of every scored token.

    Attributes:
        nll: −log p of the token that came, nats.
        nll_base: The same of the base; empty without one.
        kld: KL(base ‖ model), nats.
        delta_p: p − p_base of the token that came.
        same_top: 1.0 where both put the same token first.
    """

    nll: Float64
    nll_base: Float64 = field(default_factory=lambda: np.empty(0))
    kld: Float64 = field(default_factory=lambda: np.empty(0))
    delta_p: Float64 = field(default_factory=lambda: np.empty(0))
    same_top: Float64 = field(default_factory=lambda: np.empty(0))


def score(logits: Float32, following: Sequence[int], base: Float64 | None = None) -> Scores:
    """Score rows of logits.

    Args:
        logits: [n, n_vocab] f32.
        following: The n tokens that came.
        base: Log-probabilities [n, n_vocab] of the base, as a file or a reference gives them.

    Raises:
        ShapeMismatchError: The three are not of one text and one vocabulary.
    """
    if len(logits) != len(following) or (base is not None and base.shape != logits.shape):
        shape = None if base is None else list(base.shape)
        raise ShapeMismatchError(f"logits {list(logits.shape)}, base {shape}, {len(following)} tokens")
    log_p, came = log_softmax(logits), np.asarray(following, np.int64)
    rows = np.arange(len(came))
    nll = -log_p[rows, came]
    if base is None:
        return Scores(nll=nll)
    p_base = np.where(base > FLOOR, np.exp(base), 0.0)
    divergence = np.where(base > FLOOR, p_base * (base - log_p), 0.0).sum(axis=1)
    return Scores(
        nll=nll,
        nll_base=-base[rows, came],
        kld=divergence,
        delta_p=np.exp(log_p[rows, came]) - np.exp(base[rows, came]),
        same_top=(logits.argmax(axis=1) == base.argmax(axis=1)).astype(np.float64),
    )


def joined(parts: Iterable[Scores]) -> Scores:
    """The scores of several chunks as those of one text."""
    every = list(parts)
    names = ("nll", "nll_base", "kld", "delta_p", "same_top")
    return Scores(**{name: np.concatenate([np.empty(0), *(getattr(part, name) for part in every)]) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The report on one text.

    Attributes:
        n: Scored tokens.
        perplexity: Of the model.
        base_perplexity, log_ratio, kld, delta_p, rms_delta_p, same_top: Against the base; None without one. `log_ratio`
            is ln(PPL / PPL base); `delta_p`, `rms_delta_p` and `same_top` are shares, not percent.
        correlation: Of the two logarithms of perplexity.
        kld_percentiles, delta_p_percentiles: Percent → value.
    """

    n: int
    perplexity: Estimate
    base_perplexity: Estimate | None = None
    log_ratio: Estimate | None = None
    kld: Estimate | None = None
    delta_p: Estimate | None = None
    rms_delta_p: Estimate | None = None
    same_top: Estimate | None = None
    correlation: float | None = None
    kld_percentiles: dict[float, float] = field(default_factory=dict)
    delta_p_percentiles: dict[float, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """What to print, as the tool names it."""
        shown = [("Mean PPL(Q)", _text(self.perplexity))]
        if self.kld is None:
            return shown
        percent = {name: _times(getattr(self, name), 100.0) for name in ("delta_p", "rms_delta_p", "same_top")}
        shown += [
            ("Mean PPL(base)", _text(self.base_perplexity)),
            ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100.0 * (self.correlation or 0.0):.2f} %"),
            ("Mean ln(PPL(Q)/PPL(base))", _text(self.log_ratio)),
            ("Mean KLD", _text(self.kld)),
            *((f"{_share(p)} KLD", f"{value:.6f}") for p, value in self.kld_percentiles.items()),
            ("Mean Δp", _text(percent["delta_p"], unit=" %")),
            *((f"{_share(p)} Δp", f"{100.0 * value:.3f} %") for p, value in self.delta_p_percentiles.items()),
            ("RMS Δp", _text(percent["rms_delta_p"], unit=" %")),
            ("Same top p", _text(percent["same_top"], unit=" %")),
        ]
        return shown


def summarise(scores: Scores, *, seed: int = 0) -> Quality:
    """Perplexity and, where there is a base, the distance from it.

    Raises:
        ValueError: Nothing was scored.
    """
    n = len(scores.nll)
    if n == 0:
        raise ValueError("no token was scored")
    draws = _blocks(n, seed)
    log_ppl = _mean(scores.nll, draws)
    quality = Quality(n=n, perplexity=_exponential(log_ppl))
    if not scores.kld.size:
        return quality
    base = _mean(scores.nll_base, draws)
    change = scores.nll - scores.nll_base
    square = _mean(scores.delta_p**2, draws)
    rms = float(np.sqrt(square.value))
    moved = _times(square, 0.5 / rms) if rms > 0.0 else square
    top = _mean(scores.same_top, draws)
    spread = float(np.std(scores.nll) * np.std(scores.nll_base))
    covariance = float(np.mean(scores.nll * scores.nll_base) - scores.nll.mean() * scores.nll_base.mean())
    return replace(
        quality,
        base_perplexity=_exponential(base),
        log_ratio=_mean(change, draws),
        kld=_mean(scores.kld, draws),
        delta_p=_mean(scores.delta_p, draws),
        rms_delta_p=replace(moved, value=rms),
        same_top=top,
        correlation=covariance / spread if spread > 0.0 else None,
        kld_percentiles=percentiles(scores.kld, KLD_PERCENTILES),
        delta_p_percentiles=percentiles(scores.delta_p, DELTA_P_PERCENTILES),
    )


def percentiles(values: Float64, shares: Sequence[float]) -> dict[float, float]:
    """Percent → value, interpolated between the two nearest of the sorted values, as the tool does."""
    return {share: float(np.percentile(values, share)) for share in shares}


def _length(n: int) -> int:
    """Tokens of a block: with fewer than eight blocks in a text, resampling them would say little."""
    return max(1, min(BLOCK, n // 8))


def _blocks(n: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Starts of the blocks of every resample, [RESAMPLES, blocks]; a block that passes the end goes on at the start."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, n, (RESAMPLES, -(-n // _length(n))))


def _mean(values: Float64, draws: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Estimate:
    """Mean, the tool's error and that of the bootstrap. Sums over circular blocks come from one cumulative sum."""
    n = len(values)
    if n <= FEW:
        return Estimate(value=float(values.mean()), error=float("nan"), block_error=float("nan"))
    length = _length(n)
    total = np.concatenate(([0.0], np.cumsum(np.concatenate((values, values[:length])))))
    means = (total[draws + length] - total[draws]).mean(axis=1) / length
    return Estimate(
        value=float(values.mean()),
        error=float(np.sqrt(values.var() / (n - 1))),
        block_error=float(means.std(ddof=1)),
    )


def _exponential(log: Estimate) -> Estimate:
    """e^x, its errors carried over in first order."""
    value = float(np.exp(log.value))
    return Estimate(value=value, error=value * log.error, block_error=value * log.block_error)


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(
        value=factor * estimate.value, error=factor * estimate.error, block_error=factor * estimate.block_error
    )


def _text(estimate: Estimate | None, unit: str = "") -> str:
    assert estimate is not None
    return f"{estimate.value:.6f} ± {estimate.error:.6f}{unit} (blocks: ± {estimate.block_error:.6f})"


def _share(percent: float) -> str:
    names = {100.0: "Maximum", 50.0: "Median", 0.0: "Minimum"}
    return names.get(percent, f"{percent:g} %")
