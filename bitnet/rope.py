"""Rotary tables: cos and sin of every position and frequency, by the numerics that were asked for."""

from __future__ import annotations

import ctypes
import ctypes.util
from functools import cache
from typing import Any

import numpy as np

from bitnet.config import ModelConfig, Numerics
from bitnet.linear import Float32


def rotary_tables(
    config: ModelConfig, numerics: Numerics, start: int, n_token: int, factors: Float32 | None = None
) -> tuple[Float32, Float32]:
    """Cos and sin [n_token, head_dim / 2] f32 of positions start, start + 1, ….

    Args:
        config: Gives rope_theta and head_dim.
        numerics: `rope` names how the angles are made.
        start: First position.
        n_token: How many.
        factors: Divisors of the frequencies, or None.
    """
    pairs = config.head_dim // 2
    position = np.arange(start, start + n_token)
    if numerics.rope == "f32_iterated":  # ggml: angle 0 is the position; each next one is multiplied by one factor
        step = np.float32(np.float64(np.float32(config.rope_theta)) ** np.float64(np.float32(-2.0 / config.head_dim)))
        angles = np.empty((n_token, pairs), np.float32)
        angle = position.astype(np.float32)
        for i in range(pairs):
            angles[:, i] = angle
            angle = angle * step
        angles = angles if factors is None else angles / factors
        cos, sin = _c_library()
        return cos(angles).astype(np.float32), sin(angles).astype(np.float32)
    if numerics.rope == "f32":  # transformers: a float32 frequency times a float32 position
        exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequency = (np.float32(1) / (np.float32(config.rope_theta) ** exponent)).astype(np.float32)
        angles = position.astype(np.float32)[:, None] * (frequency if factors is None else frequency / factors)
        exact = angles.astype(np.float64)
    else:
        frequencies = config.rope_theta ** (-2.0 * np.arange(pairs) / config.head_dim)
        exact = position[:, None] * (frequencies if factors is None else frequencies / factors)
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)


@cache
def _c_library() -> tuple[Any, Any]:
    """The C library's cosf and sinf over arrays: ggml calls them, and they are not always correctly rounded.

    Where there is no such library (no `libm`), the correctly rounded functions: half a unit in the last place apart.
    """
    name = ctypes.util.find_library("m")
    try:
        library = ctypes.CDLL(name) if name else None
        functions = [getattr(library, f) for f in ("cosf", "sinf")] if library is not None else []
    except (OSError, AttributeError):
        functions = []
    if not functions:
        return (lambda x: np.cos(x.astype(np.float64))), (lambda x: np.sin(x.astype(np.float64)))
    for function in functions:
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    cos, sin = (np.frompyfunc(function, 1, 1) for function in functions)
    return cos, sin
