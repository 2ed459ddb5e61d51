"""Engines that are wrong in a known way: the oracle's graph in float32 arithmetic, with one defect or two.

A mutant shares no rounding with the oracle by construction: sums of products run in float32 over pieces of the columns
in an order of its own, squares are summed in float32, attention and activations are float32 throughout, and quotients
are products with reciprocals. So whatever finds its defect does so through honest noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from crossval.catalogue import PROJECTIONS, Hypothesis, Intervention, hypothesis
from crossval.metrics import Float32, Float64
from reference.activations import ACTIVATIONS
from reference.contract import PROJECTIONS as TENSORS
from reference.decode import Matrix
from reference.oracle import Oracle
from reference.rounding import float_type
from reference.semantics import WeightChange

#: Pieces of the columns that a product is summed in.
_PIECES = 4


class Mutant(Oracle):
    """The oracle's graph in float32, sums in an order drawn from `seed`."""

    order: tuple[int, ...]

    @classmethod
    def of(cls, oracle: Oracle, seed: int) -> Mutant:
        """A mutant that understands a file as an oracle does, on the same weights."""
        made = cls.__new__(cls)
        vars(made).update(vars(oracle))
        made.order = tuple(np.random.default_rng(seed).permutation(_PIECES).tolist())
        return made

    def _product(self, w: Matrix, x: Float64) -> Float64:
        values, x32 = w.values.astype(np.float32), x.astype(np.float32)
        if w.block_scale is not None:
            values = values * np.repeat(w.block_scale, values.shape[1] // w.block_scale.shape[1], axis=1)
        pieces = np.array_split(np.arange(values.shape[1]), _PIECES)
        total = np.zeros((len(x), len(values)), np.float32)
        for i in self.order:
            piece = slice(pieces[i][0], pieces[i][-1] + 1)
            total += x32[:, piece] @ values[:, piece].T
        return total.astype(np.float64)

    def _divided(self, sums: Float64, divisor: Float32) -> Float32:
        return sums.astype(np.float32) * (np.float32(1) / divisor)

    def _mean_square(self, x: Float32) -> Float32:
        turned = np.roll(x, 7 * (1 + self.order[0]), axis=-1)  # another start, so another pairing of the sum
        mean: Float32 = (turned * turned).sum(axis=-1, keepdims=True, dtype=np.float32) / np.float32(x.shape[-1])
        return mean

    def _attend(self, q: Float64, k: Float64, v: Float64, start: int) -> Float64:
        kinds = self.numerics["query"], self._when_single(self.numerics["probs"], len(q))
        q32: Any = _rounded(q, kinds[0])
        k32: Any = k.astype(np.float32)
        p = _rounded(self.attention_probabilities(q32, k32, start), kinds[1])
        out = p @ self.per_query_head(v).astype(np.float32)
        return out.transpose(1, 0, 2).reshape(len(q), -1).astype(np.float64)

    def _activate(self, gate: Float64) -> Float64:
        single: Any = gate.astype(np.float32)
        act: Any = ACTIVATIONS[self.hyper.activation](single)
        return np.asarray(act, np.float32).astype(np.float64)


def _rounded(x: Any, kind: str) -> Float32:  # noqa: ANN401  # of either width
    return float_type(np.asarray(x), kind)


def draw(entry: Intervention, rng: np.random.Generator, oracle: Oracle) -> Hypothesis:
    """An entry of the catalogue with a value as engines get it wrong."""
    if entry.part == "weights":
        return _of_a_tensor(entry, rng, oracle)
    if not entry.measured:
        return hypothesis(entry)
    own_theta, n_embd = oracle.hyper.rope_theta, oracle.hyper.n_embd
    values: dict[str, tuple[float, ...]] = {
        "rope_theta_factor": tuple(t / own_theta for t in (1e4, 1e5, 5e5, 1e6) if t != own_theta),
        "rope_position_factor": (0.25, 0.5, 2.0),
        "position_offset": (1, 2, 3),
        "rms_eps": tuple(e for e in (1e-6, 1e-4, 1e-3) if not np.isclose(e, float(oracle.hyper.rms_eps))),
        "batch_rows": (1, 4, 5, 8),
        "attention_scale_factor": (1.05, 0.5, 2.0, float(np.sqrt(oracle.hyper.head_dim / n_embd)), 0.98),
        "window": (2, 4, 6),
        "token_offset": (1, -1, 2),
        "embedding_scale": (float(np.sqrt(n_embd)), 2.0, 0.5),
        "logit_scale": (1.5, 0.5, float(1.0 / np.sqrt(n_embd))),
    }
    choices = values[entry.field]
    return hypothesis(entry, choices[int(rng.integers(len(choices)))])


def _of_a_tensor(entry: Intervention, rng: np.random.Generator, oracle: Oracle) -> Hypothesis:
    kind = entry.name.removeprefix("tensor_")
    shapes = {name: info.shape for name, info in oracle._gguf.tensors.items()}  # the oracle's own file
    layer, tap = int(rng.integers(oracle.hyper.n_layer)), sorted(PROJECTIONS)[int(rng.integers(len(PROJECTIONS)))]
    if kind == "transposed":
        tap = ("q", "attn_out")[int(rng.integers(2))]
    name = f"blk.{layer}.{TENSORS[tap]}.weight"
    rows = shapes[name][0]
    values: dict[str, Any] = {}
    if kind == "scaled":
        values["factor"] = float(rng.choice([0.5, 2.0, 1.01, 0.9, 16.0]))
    elif kind == "rows":
        turned = np.arange(rows).reshape(2, -1).T.reshape(-1)
        orders = (rng.permutation(rows), np.roll(np.arange(rows), 1), turned, np.arange(rows)[::-1])
        values["order"] = tuple(orders[int(rng.integers(4))].tolist())
    elif kind == "other":
        same = [n for n, s in shapes.items() if s == shapes[name] and n != name and n.startswith("blk.")]
        values["other"] = same[int(rng.integers(len(same)))]
    change = WeightChange(tensor=name, kind=kind, **values)  # type: ignore[arg-type]  # one of its kinds
    return hypothesis(entry, (change,), name=f"{entry.name}: {name}")


def same_cause(found: Hypothesis, true: Hypothesis) -> bool:
    """Whether a hypothesis is the defect: the same entry, of the same tensor, with the same number within 1 %."""
    if found.entry is not true.entry:
        return False
    if true.entry.part == "weights":
        [a], [b] = found.semantics["weights"], true.semantics["weights"]
        near = bool(np.isclose(a.factor, b.factor, rtol=1e-2))
        return (a.tensor, a.kind, a.other, a.order) == (b.tensor, b.kind, b.other, b.order) and near
    if not true.entry.measured:
        return True
    key = true.entry.field
    return bool(np.isclose(found.semantics[key], true.semantics[key], rtol=1e-2))
