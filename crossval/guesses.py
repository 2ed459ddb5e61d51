"""Hypotheses with a number in them where nothing but logits is known: usual values first, then finer ones.

With an engine's intermediates a number is measured (`crossval.fits`). Without, the values that people write are tried,
and the best of them is refined for as long as it comes nearer: a wrong base or factor is far from the right one in a
way that shrinks with the distance, until roundings flip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from crossval.catalogue import BY_NAME, PROJECTIONS, Hypothesis, hypothesis
from crossval.fits import COST_NUMBER, COST_TENSOR, rounded
from reference.contract import PROJECTIONS as TENSORS
from reference.oracle import Oracle
from reference.semantics import WeightChange

#: Decades that a hypothesis with these changes removes; None where it means nothing.
Score = Callable[[Hypothesis], float | None]

#: Halvings of the step while a number is refined: from a third to a thousandth.
_HALVINGS = 8


def numbers(oracle: Oracle, first_wrong: Iterable[int] = ()) -> Iterator[Hypothesis]:
    """Usual wrong values of every entry with a number. A position counted from elsewhere moves no logits: not tried.

    Args:
        oracle: The contract.
        first_wrong: Positions before which nothing is wrong, where they are known.
    """
    hyper = oracle.hyper
    for theta in (1e4, 1e5, 5e5, 1e6, 1e7):
        if not np.isclose(theta, hyper.rope_theta):
            yield number("rope_theta_factor", theta / hyper.rope_theta, oracle)
    grids: dict[str, tuple[float, ...]] = {
        "rope_position_factor": (0.25, 0.5, 2.0, 4.0),
        "rms_eps": tuple(
            e
            for e in (0.0, 1e-8, *(10.0**-n for n in range(7, 1, -1)))
            if not np.isclose(e, float(hyper.rms_eps), atol=0)
        ),
        "attention_scale_factor": (
            0.5,
            0.9,
            0.98,
            1.02,
            1.1,
            2.0,
            *_roots(hyper.head_dim),
            float(np.sqrt(hyper.head_dim / hyper.n_embd)),
        ),
        "token_offset": (1, -1, 2, -2),
        "embedding_scale": (0.5, 2.0, *_roots(hyper.n_embd)),
    }
    for name, values in grids.items():
        yield from (number(name, value, oracle) for value in values)
    first = set(first_wrong) - {0}
    for name in ("window", "batch_rows"):  # both spare the first tokens, and as many as their number
        yield from (number(name, value, oracle) for value in sorted(first | {1, 2, 4, 8}))


def number(name: str, value: float, oracle: Oracle) -> Hypothesis:
    """An entry with a value, named as `crossval.fits` does."""
    shown = f"{name}={value:.4g}"
    if name == "rope_theta_factor":
        shown = f"rope_theta={value * oracle.hyper.rope_theta / oracle.semantics.rope_theta_factor:.4g}"
    elif name == "attention_scale_factor":
        shown = f"attention_scale*{value:.4g}"
    return hypothesis(BY_NAME[name], value, name=shown, cost=COST_NUMBER)


def _roots(n: int) -> tuple[float, float]:
    return float(np.sqrt(n)), float(1.0 / np.sqrt(n))


#: Entries whose number may be any, so that it is worth refining.
CONTINUOUS = frozenset(
    ("rope_theta_factor", "rope_position_factor", "rms_eps", "attention_scale_factor", "embedding_scale")
)


def refined(start: Hypothesis, score: Score, oracle: Oracle) -> Iterator[Hypothesis]:
    """Ever better values of a number, and the round ones next to the last."""
    tensor = start.entry.part == "weights"
    if not tensor and start.entry.field not in CONTINUOUS:
        return
    value = start.semantics["weights"][0].factor if tensor else float(start.semantics[start.entry.field])
    if value <= 0.0:
        return

    def made(v: float) -> Hypothesis:
        return scaled(start.semantics["weights"][0].tensor, v) if tensor else number(start.entry.field, v, oracle)

    best, at, step = score(start) or 0.0, value, 0.35
    for _ in range(_HALVINGS):
        tried = [(score(made(v)) or 0.0, v) for v in (at * np.exp(-step), at * np.exp(step))]
        gain, v = max(tried)
        if gain > best:
            best, at = gain, float(v)
        else:
            step /= 2.0
    theta = oracle.hyper.rope_theta if start.entry.field == "rope_theta_factor" else 1.0
    for near in (0.2, 0.02, 0.002):  # 1, 2 or 3 digits
        yield made(rounded(at * theta, near) / theta)
    if at != value:
        yield made(at)


def tensors(oracle: Oracle) -> Iterator[Hypothesis]:
    """One projection that is scaled, reversed in sign, zero, transposed, another's, or in a known order of rows."""
    shapes = {name: info.shape for name, info in oracle._gguf.tensors.items()}  # the oracle and its own file
    names = [f"blk.{il}.{TENSORS[tap]}.weight" for il in range(oracle.n_layer) for tap in sorted(PROJECTIONS)]
    names = [name for name in names if name in shapes]
    for name in names:
        yield from (scaled(name, factor) for factor in (0.5, 0.9, 1.1, 2.0))
        yield from (_changed(name, kind) for kind in ("negated", "zero"))
    for name in names:
        rows, columns = shapes[name]
        if rows == columns:
            yield _changed(name, "transposed")
        for other in names:
            if other != name and shapes[other] == shapes[name]:
                yield _changed(name, "other", f"<-{other}", other=other)
        here = np.arange(rows)
        riffled = here.reshape(2, -1).T.reshape(-1) if rows % 2 == 0 else here
        orders = (here[::-1], np.roll(here, 1), np.roll(here, -1), riffled, np.argsort(riffled))
        yield from (_changed(name, "rows", order=tuple(order.tolist())) for order in orders)


def scaled(name: str, factor: float) -> Hypothesis:
    """A tensor with a wrong scale."""
    return _changed(name, "scaled", f"*{factor:.4g}", factor=factor)


def _changed(name: str, kind: str, shown: str = "", **values: object) -> Hypothesis:
    change = WeightChange(tensor=name, kind=kind, **values)  # type: ignore[arg-type]  # fields of a change
    return hypothesis(BY_NAME[f"tensor_{kind}"], (change,), name=f"tensor_{kind}: {name}{shown}", cost=COST_TENSOR)
