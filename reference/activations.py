"""The activations of a gated feed-forward, in float64: the contract's, and those that engines have put in its place."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _silu(x: Float64) -> Float64:
    return x / (1.0 + np.exp(-x))  # e^−x overflows to infinity where the quotient is 0


def _gelu_erf(x: Float64) -> Float64:
    half: Float64 = 0.5 * (1.0 + np.asarray(_erf(x / math.sqrt(2.0)), np.float64))
    return x * half


ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": _silu,
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": _gelu_erf,
    "gelu_quick": lambda x: x / (1.0 + np.exp(-1.702 * x)),
}
