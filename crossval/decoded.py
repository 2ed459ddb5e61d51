"""Weights as both sides decode them: values, scale, histogram and digest of every tensor.

A tensor is decoded by rows, as many at a time as one layer's matrices have: the head of a model of billions of weights
would take a gigabyte on each side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from math import fsum
from typing import Any

import numpy as np

from crossval.engine import EngineRunner
from crossval.metrics import Difference, Float32, ShapeMismatchError, difference, histogram
from receipts.tables import BINS
from reference.runner import ReferenceUnavailableError, Rows, Runner

#: Weights decoded at a time, on each side.
_AT_ONCE = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some rows of a tensor on both sides.

    Attributes:
        first: Number of the first row.
        asked: What both sides were asked for.
        ours, theirs: [rows, columns], scale applied.
    """

    first: int
    asked: Rows
    ours: Float32
    theirs: Float32

    def difference(self) -> Difference:
        """Of these rows, which are counted from the first of the tensor."""
        largest = float(np.abs(self.theirs).max(initial=0.0))
        if np.isfinite(largest) and np.array_equal(self.ours, self.theirs):  # nothing to find in float64
            zeros = np.zeros(len(self.ours))
            return Difference(
                compared=self.ours.size,
                max_abs_err=0.0,
                max_abs_ref=largest,
                worst_token=self.first,
                worst_index=0,
                by_token=zeros,
            )
        found = difference(self.ours, self.theirs)
        return replace(found, worst_token=found.worst_token + self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTensor:
    """One tensor of the engine's file, decoded by both sides when it is looked at.

    Attributes:
        name: Its name.
        rows, columns: Its shape.
        engine, reference: Who decodes.
    """

    name: str
    rows: int
    columns: int
    engine: EngineRunner
    reference: Runner

    def parts(self) -> Iterator[Part]:
        """Its rows in order, on both sides.

        Raises:
            ShapeMismatchError: It has more weights on one side.
            ReferenceUnavailableError: The reference shows no weights.
        """
        each = max(_AT_ONCE // max(self.columns, 1), 1)
        for first in range(0, max(self.rows, 1), each):
            whole = first == 0 and each >= self.rows
            # one row more than there is, so that a longer tensor is found to be one
            asked = None if whole else (first, first + each if first + each < self.rows else self.rows + 1)
            ours, theirs = (scaled(side, self.name, asked) for side in (self.engine, self.reference))
            if ours.size != theirs.size:
                raise ShapeMismatchError(f"{self.name}: ours has {ours.size} weights, theirs {theirs.size}")
            n_row = self.rows if whole else len(ours)
            yield Part(first=first, asked=asked, ours=ours.reshape(n_row, -1), theirs=theirs.reshape(n_row, -1))


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


def decoded_tensors(engine: EngineRunner, reference: Runner) -> Iterator[DecodedTensor]:
    """Every tensor of the engine's file; scales are applied to what they scale."""
    for name, info in engine.model.gguf.tensors.items():
        if not name.endswith(".scale"):
            rows, columns = info.shape[0], int(np.prod(info.shape[1:]))
            yield DecodedTensor(name=name, rows=rows, columns=columns, engine=engine, reference=reference)


def compared(tensor: DecodedTensor) -> TensorComparison:
    """Everything about one tensor."""
    parts: Iterable[Part] = tensor.parts()
    if tensor.rows * tensor.columns <= _AT_ONCE:
        parts = list(parts)  # looked at twice, decoded once
    found, n_differ, sides = [], 0, (_Gathered(), _Gathered())
    for part in parts:
        found.append(part.difference())
        n_differ += int((part.ours != part.theirs).sum())
        for side, values in zip(sides, (part.ours, part.theirs), strict=True):
            side.add(values)
    worst, largest = max(found, key=lambda one: one.max_abs_err), max(one.max_abs_ref for one in found)
    for part in parts if isinstance(parts, list) else tensor.parts():
        for side, values in zip(sides, (part.ours, part.theirs), strict=True):
            side.count(values, largest)
    return TensorComparison(
        name=tensor.name,
        rows=tensor.rows,
        columns=tensor.columns,
        n_differ=n_differ,
        max_abs=worst.max_abs_err if np.isfinite(worst.max_abs_err) else None,
        worst=(worst.worst_token, worst.worst_index),
        ours=sides[0].side(),
        theirs=sides[1].side(),
    )


class _Gathered:
    """One side of a tensor, part by part."""

    def __init__(self) -> None:
        self._digest, self._sums, self._n = hashlib.sha256(), list[float](), 0
        self._histogram = np.zeros(BINS, np.int64)

    def add(self, values: Float32) -> None:
        size = np.abs(values[np.isfinite(values) & (values != 0.0)])
        self._sums.append(float(size.sum(dtype=np.float64)))
        self._n += size.size
        self._digest.update(np.ascontiguousarray(values, "<f4").data)

    def count(self, values: Float32, largest: float) -> None:
        self._histogram += histogram(values, largest)

    def side(self) -> Side:
        return Side(
            scale=fsum(self._sums) / self._n if self._n else 0.0,
            histogram=tuple(int(n) for n in self._histogram),
            sha256=self._digest.hexdigest(),
        )


def scaled(runner: Runner, name: str, rows: Rows) -> Float32:
    """A tensor or some of its rows with its `.scale`, where this side's file has one."""
    value = runner.weights(name) if rows is None else runner.weights(name, rows)
    try:
        scale = runner.weights(name.removesuffix(".weight") + ".scale")
    except (ReferenceUnavailableError, KeyError):
        return np.asarray(value, np.float32)
    return np.asarray(value * np.float32(scale.reshape(-1)[0]), np.float32)
