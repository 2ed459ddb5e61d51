"""Logits to a token: one pure function of the logits, the tokens so far, the settings and a random generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import BitNetError
from bitnet.generation_config import GenerationConfig
from bitnet.linear import Float32


def greedy(logits: Float32) -> int:
    """The id of the largest of [n_vocab] logits; ties go to the lowest id, NaN never wins."""
    return int(np.argmax(_ranked(logits)))


def needed(config: GenerationConfig, n_seen: int) -> int | None:
    """How many of the largest logits decide the next token; None where all do.

    The best one alone, or the best `top_k`. A penalty above 1 only lowers logits, and those of tokens seen alone: what
    is best afterwards is among as many more as were seen.
    """
    if config.repetition_penalty < 1.0 or (config.temperature > 0.0 and not config.top_k):
        return None
    best = config.top_k if config.temperature > 0.0 else 1
    return best if config.repetition_penalty == 1.0 else best + n_seen


def sample(
    logits: Float32,
    seen: Sequence[int],
    config: GenerationConfig,
    rng: np.random.Generator,
    ids: NDArray[np.int64] | None = None,
) -> int:
    """The next token.

    In order: repetition penalty on the tokens seen, temperature, top-k, top-p, one draw. With temperature 0 the
    largest logit wins (after the penalty) and `rng` is not touched.

    Args:
        logits: [n_vocab] f32, or [n] those of `ids`; NaN counts as −∞.
        seen: Prompt and generated ids, for the repetition penalty.
        config: The settings.
        rng: Drawn from once a sampled token.
        ids: The tokens with the largest logits, at least as many as `needed` says; default all.

    Raises:
        BitNetError: No logit is a number, or one is +∞.
    """
    scores = _ranked(logits).astype(np.float64)
    if config.repetition_penalty != 1.0 and len(seen):
        known = np.asarray(seen, np.int64)
        places = np.unique(known) if ids is None else np.flatnonzero(np.isin(ids, known))
        penalised = scores[places]
        with np.errstate(over="ignore"):
            lowered = np.where(
                penalised > 0, penalised / config.repetition_penalty, penalised * config.repetition_penalty
            )
        scores[places] = np.where(np.isfinite(penalised), np.clip(lowered, -1e300, 1e300), penalised)
    if config.temperature == 0.0:
        return int(np.argmax(scores)) if ids is None else int(ids[scores == scores.max()].min())
    order, probs = distribution(scores, config, ids)
    draw = rng.random()
    chosen = int(np.searchsorted(np.cumsum(probs), draw * probs.sum(), side="right"))
    return int(order[min(chosen, len(order) - 1)])


def distribution(
    scores: NDArray[np.float64], config: GenerationConfig, ids: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What is left after temperature, top-k and top-p: ids by falling probability (ties: rising id), and weights."""
    ids = np.arange(len(scores)) if ids is None else ids
    order = np.lexsort((ids, -scores))
    if config.top_k:
        order = order[: config.top_k]
    kept = scores[order]
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to −∞, which is what it means
        probs = np.exp((kept - kept[0]) / config.temperature)
    probs /= probs.sum()
    if config.top_p < 1.0:
        n = int(np.searchsorted(np.cumsum(probs), config.top_p, side="left")) + 1
        order, probs = order[:n], probs[:n]
    alive = probs > 0
    return ids[order[alive]], probs[alive] / probs[alive].sum()


def _ranked(logits: Float32) -> Float32:
    """The logits with NaN as −∞, and an infinite one (a larger fault than sampling can mend) refused."""
    clean = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    largest = clean.max(initial=-np.inf)
    if not np.isfinite(largest):
        raise BitNetError(
            f"{'a logit is infinite' if largest > 0 else 'no logit is a finite number'}, so no token can be chosen",
            remedy="check the model with `python -m crossval run`; its weights or its numerics overflow",
        )
    return clean
