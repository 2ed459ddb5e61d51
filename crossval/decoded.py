"""Weights as both sides decode them: values, scale, histogram and digest of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossval.engine import EngineRunner
from crossval.metrics import Float32, ShapeMismatchError, difference, histogram
from reference.runner import ReferenceUnavailableError, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One tensor as one side decodes it.

    Attributes:
        scale: Mean magnitude of the weights that are not zero: of a ternary tensor, its scale.
        histogram: Counts in the bins of `receipts.tables`, as shares of the largest magnitude of the reference.
        sha256: Of the values, float32, little-endian.
    """

    scale: float
    histogram: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorComparison:
    """One tensor on both sides.

    Attributes:
        name: Of the tensor.
        rows, columns: Its shape.
        n_differ: Weights that are not equal.
        max_abs: Largest difference; None where a value is not finite.
        worst: (row, column) of it.
        ours, theirs: What each side holds.
    """

    name: str
    rows: int
    columns: int
    n_differ: int
    max_abs: float | None
    worst: tuple[int, int]
    ours: Side
    theirs: Side

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = asdict(self) | {"worst": list(self.worst)}
        for side in ("ours", "theirs"):
            plain[side]["histogram"] = list(plain[side]["histogram"])
        return plain


def decoded_pairs(engine: EngineRunner, reference: Runner) -> Iterator[tuple[str, Float32, Float32]]:
    """Every tensor of the engine's file, decoded by both with its scale applied, [rows, columns].

    Raises:
        ShapeMismatchError: A tensor has more weights on one side.
        ReferenceUnavailableError: The reference shows no weights.
    """
    for name, info in engine.model.gguf.tensors.items():
        if name.endswith(".scale"):
            continue
        ours, theirs = _scaled(engine, name), _scaled(reference, name)
        if ours.size != theirs.size:
            raise ShapeMismatchError(f"{name}: ours has {ours.size} weights, theirs {theirs.size}")
        yield name, ours.reshape(info.shape[0], -1), theirs.reshape(info.shape[0], -1)


def compared(name: str, ours: Float32, theirs: Float32) -> TensorComparison:
    """Everything about one tensor."""
    found = difference(ours, theirs)
    return TensorComparison(
        name=name,
        rows=ours.shape[0],
        columns=ours.shape[1],
        n_differ=int((ours != theirs).sum()),
        max_abs=found.max_abs_err if np.isfinite(found.max_abs_err) else None,
        worst=(found.worst_token, found.worst_index),
        ours=_side(ours, found.max_abs_ref),
        theirs=_side(theirs, found.max_abs_ref),
    )


def _side(values: Float32, largest: float) -> Side:
    size = np.abs(values[np.isfinite(values) & (values != 0.0)], dtype=np.float64)
    return Side(
        scale=float(size.mean()) if size.size else 0.0,
        histogram=tuple(histogram(values, largest)),
        sha256=hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest(),
    )


def _scaled(runner: Runner, name: str) -> Float32:
    """A tensor with its `.scale`, where this side's file has one."""
    value = runner.weights(name)
    try:
        scale = runner.weights(name.removesuffix(".weight") + ".scale")
    except (ReferenceUnavailableError, KeyError):
        return np.asarray(value, np.float32)
    return np.asarray(value * np.float32(scale.reshape(-1)[0]), np.float32)
