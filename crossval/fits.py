"""Hypotheses with a number in them: the number is measured from the engine's own values, then judged like any other.

Each fit looks at operations that are wrong and answers with what would explain them: a factor, an epsilon, a rotary
base, a permutation of rows, another tensor. A fit is only a proposal; replaying it decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from crossval import envelope
from crossval.catalogue import BY_NAME, PROJECTIONS, Hypothesis, hypothesis
from crossval.metrics import Float32, Float64
from crossval.replay import Replay, decades
from reference.contract import PROJECTIONS as TENSORS
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError, TapKey
from reference.semantics import Semantics, WeightChange

#: A measured number, and one tensor in particular, must explain this much more than a written one, in decades.
COST_NUMBER, COST_TENSOR, COST_ROWS = 0.05, 0.1, 0.5
#: Measured numbers this near to a round one are the round one: factors are measured to 1e-6, angles less well.
_NEAR, _NEAR_ANGLE = 2e-5, 2e-3
#: Wrong projections whose tensors are each tried against others; more of them share a cause.
_MOST_TENSORS = 4
#: Rows of the embedding that are widened at a time: of a large model it is a gigabyte.
_ROWS_AT_ONCE = 8192

Fit = Callable[[Replay, Oracle, Sequence[TapKey]], Iterator[Hypothesis]]


def proposals(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> list[Hypothesis]:
    """Hypotheses measured at wrong operations.

    Args:
        replay: The captured operations.
        base: What is known already: the contract, or a hypothesis that explains a part.
        wrong: Operations that `base` does not explain.
    """
    found: dict[str, Hypothesis] = {}
    with np.errstate(all="ignore"):  # a fit of nonsense is nonsense, and explains nothing
        for fit in (_tensors, _factors, _epsilon, _rotary, _attention_scale, _window, _batch_rows, _tokens):
            for proposed in fit(replay, base, wrong):
                found.setdefault(proposed.name, proposed)
    return list(found.values())


def _first(wrong: Sequence[TapKey], *taps: str) -> TapKey | None:
    return next((key for key in wrong if key[0] in taps), None)


def _measured(name: str, value: float, shown: str) -> Iterator[Hypothesis]:
    if np.isfinite(value):
        yield hypothesis(BY_NAME[name], value, name=shown, cost=COST_NUMBER)


def rounded(value: float, near: float = _NEAR) -> float:
    """The round number next to a measured one, if it is near enough."""
    if not np.isfinite(value) or value == 0.0:
        return value
    for digits in (1, 2, 3):
        round_one = float(f"{value:.{digits - 1}e}")
        if abs(round_one / value - 1.0) < near:
            return round_one
    return value


# ---- one tensor ----------------------------------------------------------------------------------------------------


def _tensors(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    """Another scale, order of rows, sign or orientation of a tensor, another tensor in its place, or zeros."""
    projections = [key for key in wrong if key[0] in PROJECTIONS]
    for key in projections if len(projections) <= _MOST_TENSORS else ():
        name = f"blk.{key[1]}.{TENSORS[key[0]]}.weight"
        odd, right = replay.outputs[key].astype(np.float64), replay.operation(key, base).astype(np.float64)
        if not np.isfinite(odd).all():
            continue
        if not odd.any():
            yield _changed("zero", name)
            continue
        factor = float((odd * right).sum() / (right * right).sum())
        if factor > 0.0 and np.linalg.norm(odd - factor * right) < 0.5 * np.linalg.norm(odd):
            yield _changed("scaled", name, f"*{rounded(factor):.4g}", factor=rounded(factor))
        yield _changed("negated", name)
        yield _changed("transposed", name)
        order = _row_order(right, odd)
        if order is not None:
            yield _changed("rows", name, order=order)
        yield from _others(replay, base, key, name)


def _changed(kind: Any, tensor: str, shown: str = "", **values: Any) -> Hypothesis:  # noqa: ANN401  # fields of a change
    change = WeightChange(tensor=tensor, kind=kind, **values)
    stands = f"<-{change.other}" if change.other else shown
    cost = COST_ROWS if kind == "rows" else COST_TENSOR
    return hypothesis(BY_NAME[f"tensor_{kind}"], (change,), name=f"tensor_{kind}: {tensor}{stands}", cost=cost)


def _row_order(right: Float64, odd: Float64) -> tuple[int, ...] | None:
    """The row of the contract that each row of the engine computes, if most are in another place."""
    size = (right * right).sum(axis=0)
    distance = size[:, None] - 2.0 * right.T @ odd  # [rows there, rows here], up to a constant a column
    order = distance.argmin(axis=0)
    here = np.linalg.norm(right[:, order] - odd) / (np.linalg.norm(odd) or 1.0)
    moved = order != np.arange(len(order))
    return tuple(order.tolist()) if moved.any() and here < 0.1 else None


def _others(replay: Replay, base: Oracle, key: TapKey, name: str) -> Iterator[Hypothesis]:
    """The same-shaped tensors of other places, nearest first."""
    tensors = base._gguf.tensors  # the oracle and its own file
    found = []
    for other, info in tensors.items():
        if other == name or info.shape != tensors[name].shape or not other.startswith("blk."):
            continue
        proposed = _changed("other", name, other=other)
        try:
            value = replay.operation(key, variant_of(base, proposed))
        except ReferenceUnavailableError:
            continue
        found.append((decades(value, replay.outputs[key]), proposed))
    found.sort(key=lambda pair: pair[0])
    if found and found[0][0] < replay.decades(key, replay.operation(key, base)):
        yield found[0][1]


# ---- factors -------------------------------------------------------------------------------------------------------


def _factors(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    for tap, name in (("embd", "embedding_scale"), ("result_output", "logit_scale")):
        key = _first(wrong, tap)
        if key is None:
            continue
        odd, right = replay.outputs[key].astype(np.float64), replay.operation(key, base).astype(np.float64)
        factor = rounded(float((odd * right).sum() / (right * right).sum()))
        if factor > 0.0:
            yield from _measured(name, factor * getattr(base.semantics, name), f"{name}={factor:.4g}")


def _epsilon(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    """A norm is x · w / √(m + eps): the ratio of two norms gives one epsilon from the other."""
    for key in [key for key in wrong if key[0].endswith("norm")][:3]:
        x = replay.source(base.inputs(key)[0], base).astype(np.float64)
        odd, right = replay.outputs[key].astype(np.float64), replay.operation(key, base).astype(np.float64)
        ratio = (odd * right).sum(axis=1) / (right * right).sum(axis=1)
        mean = (x * x).mean(axis=1)
        quietest = int(mean.argmin())  # where epsilon weighs most
        own = float(base.hyper.rms_eps)
        eps = float((mean[quietest] + own) / ratio[quietest] ** 2 - mean[quietest])
        for value in dict.fromkeys((_power_of_ten(eps), rounded(eps), 0.0)):
            if 0.0 <= value < 1e6:  # the first of equals is kept, and people write powers of ten
                yield from _measured("rms_eps", value, f"rms_eps={value:.4g}")


def _power_of_ten(value: float) -> float:
    return float(10.0 ** round(np.log10(value))) if value > 0.0 else 0.0


# ---- rotary embedding ----------------------------------------------------------------------------------------------


def _rotary(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    """Angles of the engine, pair by pair, from what went in and what came out: offset, stretch and base."""
    key = _first(wrong, "q_rope", "k_rope")
    if key is None or len(replay.ids) < 3:
        return
    d = base.hyper.head_dim
    x, y = (
        v.astype(np.float64).reshape(len(v), -1, d)
        for v in (replay.source((key[0][0], key[1]), base), replay.outputs[key])
    )
    half = base.hyper.rope_style == "half_split"
    a, b = (slice(0, d // 2), slice(d // 2, None)) if half else (slice(0, None, 2), slice(1, None, 2))
    before, after = x[..., a] + 1j * x[..., b], y[..., a] + 1j * y[..., b]
    turned = np.angle((after * before.conj()).sum(axis=1))  # [T, pairs], heads together
    step = np.angle(np.exp(1j * np.diff(turned, axis=0)))
    speed = np.median(step, axis=0)  # angle a position, by pair
    own = base.hyper.rope_theta ** (-2.0 * np.arange(d // 2) / d)
    offset = int(np.rint(np.median(turned[0, :2] / np.where(speed[:2] == 0, 1, speed[:2]))))
    if offset:
        yield from _measured("position_offset", offset, f"position_offset={offset}")
    stretch = rounded(float(np.median(speed / own)), _NEAR_ANGLE)
    if stretch > 0.0 and abs(stretch - 1.0) > 1e-4:
        yield from _measured("rope_position_factor", stretch, f"rope_position_factor={stretch:.4g}")
    usable = (speed[1:] > 1e-3) & (np.arange(1, d // 2) < d // 4)
    if usable.any():
        i = np.arange(1, d // 2)[usable]
        theta = rounded(float(np.exp(np.median(-np.log(speed[1:][usable]) * d / (2.0 * i)))), _NEAR_ANGLE)
        written = base.hyper.rope_theta / base.semantics.rope_theta_factor
        yield from _measured("rope_theta_factor", theta / written, f"rope_theta={theta:.4g}")


# ---- attention -----------------------------------------------------------------------------------------------------


def _attention_scale(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    """The factor that comes nearest, by ever finer search of its logarithm."""
    key = _first(wrong, "kqv_out")
    if key is None:
        return
    made: dict[TapKey, Float32] = {}

    def distance(log_factor: float) -> float:
        variant = base.under(_with(base.semantics, attention_scale_factor=float(np.exp(log_factor))))
        error = replay.operation(key, variant, dict(made)).astype(np.float64) - replay.outputs[key]
        return float(np.linalg.norm(error))

    grid = np.linspace(-5.0, 5.0, 31)
    best = float(grid[int(np.argmin([distance(g) for g in grid]))])
    width = 10.0 / 30.0
    while width > 2e-7:
        around = best + width * np.linspace(-1.0, 1.0, 7)
        best = float(around[int(np.argmin([distance(g) for g in around]))])
        width /= 2.5
    factor = rounded(float(np.exp(best)))
    if abs(factor - 1.0) > 1e-5:
        yield from _measured("attention_scale_factor", factor, f"attention_scale*{factor:.4g}")


def _window(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    key = _first(wrong, "kqv_out")
    if key is None:
        return
    found = replay.judged(key, replay.operation(key, base), replay.outputs[key])
    bad = found.positions(envelope.LOCKED_OPERATION.limit)
    for width in dict.fromkeys((bad[0] if bad else 0, 2, 4, 8)):
        if width > 0:
            yield hypothesis(BY_NAME["window"], width, name=f"window={width}", cost=COST_NUMBER)


def _batch_rows(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    key = _first(wrong, *PROJECTIONS)
    if key is None:
        return
    zero = ~replay.outputs[key].any(axis=1) & replay.operation(key, base).any(axis=1)
    rows = int(zero.argmax())
    if zero.any() and rows > 0:
        yield hypothesis(BY_NAME["batch_rows"], rows, name=f"batch_rows={rows}", cost=COST_NUMBER)


def _tokens(replay: Replay, base: Oracle, wrong: Sequence[TapKey]) -> Iterator[Hypothesis]:
    """Embeddings are rows of a table: the nearest rows say which ids were read."""
    key = _first(wrong, "embd")
    if key is None:
        return
    read = ids_of(replay.outputs[key], base)
    shifts = np.unique((read - replay.ids) % base.n_vocab)
    if len(shifts) == 1 and shifts[0]:
        shift = int(shifts[0]) if shifts[0] <= base.n_vocab // 2 else int(shifts[0]) - base.n_vocab
        yield hypothesis(BY_NAME["token_offset"], shift, name=f"token_offset={shift}", cost=COST_NUMBER)


def ids_of(embedding: Float32, oracle: Oracle) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The token ids whose rows an embedding holds: the nearest by direction."""
    table, parts = oracle._weights["token_embd.weight"].values, []  # the oracle's own table
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = table[start : start + _ROWS_AT_ONCE].astype(np.float32)
        norms = np.linalg.norm(rows, axis=1)
        parts.append((embedding @ rows.T) / np.where(norms > 0, norms, 1.0))
    return np.asarray(np.concatenate(parts, axis=1).argmax(axis=1), np.int64)


# ---- putting a hypothesis to work ----------------------------------------------------------------------------------


def variant_of(base: Oracle, *hypotheses: Hypothesis) -> Oracle:
    """The oracle under hypotheses.

    Raises:
        ReferenceUnavailableError: The file cannot be understood so.
        ValueError: They contradict each other, or mean nothing here.
    """
    semantics: dict[str, Any] = {}
    numerics: dict[str, str] = {}
    for h in hypotheses:
        for name, value in h.semantics.items():
            if name == "weights":
                value = (*semantics.get("weights", base.semantics.weights), *value)  # one more change
            elif name in semantics:
                raise ValueError(f"two hypotheses set {name}")
            semantics[name] = value
        if set(h.numerics) & set(numerics):
            raise ValueError("two hypotheses set one rounding")
        numerics |= h.numerics
    return base.under(_with(base.semantics, **semantics), numerics)


def _with(semantics: Semantics, **changes: Any) -> Semantics:
    return replace(semantics, **changes)
