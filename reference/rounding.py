"""The roundings that engines are free to choose, written plainly: activation quantisers, f16 and bf16, rotary angles.

The names are those of the engine's numerics record; this module has its own table of them because a witness must not
share code with the engine it is asked about. Quantisers work in float32, as every engine does, and return their
integers as float64, in which their sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from reference.semantics import CONTRACT, Semantics

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

#: Every field, its values, the default first.
NUMERICS: dict[str, tuple[str, ...]] = {
    "activation": (
        *("int8_token", "int8_token_reciprocal", "int8_token_fused"),
        *("q8_k", "q8_0", "f16", "bf16", "none"),
    ),
    "kv": ("f32", "f16"),
    "query": ("f32", "f16"),
    "probs": ("f32", "f16", "f16_decode"),
    "head": ("f32", "f16", "bf16", "f16_decode"),
    "rope": ("f64", "f32_iterated", "f32"),
}

#: Quantisers with one int8 scale a token.
INT8_TOKEN = ("int8_token", "int8_token_reciprocal", "int8_token_fused")

#: Columns that share one scale.
BLOCK = {"q8_k": 256, "q8_0": 32}

#: Smallest int8 scale denominator of BitNet's quantiser.
INT8_FLOOR = 1e-5


def resolve(numerics: Mapping[str, str] | None) -> dict[str, str]:
    """Numerics with defaults filled in. Raises `ValueError` for a name or value that is not in `NUMERICS`."""
    given = dict(numerics or {})
    for name, value in given.items():
        if name not in NUMERICS:
            raise ValueError(f"unknown numerics field {name!r}; known are {', '.join(NUMERICS)}")
        if value not in NUMERICS[name]:
            raise ValueError(f"numerics.{name} is {value!r}, not one of {', '.join(NUMERICS[name])}")
    return {name: given.get(name, choices[0]) for name, choices in NUMERICS.items()}


def _half_away(v: NDArray[np.floating]) -> NDArray[np.floating]:
    rounded: NDArray[np.floating] = np.copysign(np.floor(np.abs(v) + np.float32(0.5)), v)
    return rounded


_ROUND: dict[str, Callable[[NDArray[np.floating]], NDArray[np.floating]]] = {
    "half_even": np.rint,
    "away": _half_away,
    "truncate": np.trunc,
    "floor": np.floor,
}


def int8_token(x: Float32, semantics: Semantics = CONTRACT, kind: str = "int8_token") -> tuple[Float64, Float32]:
    """BitNet's own quantiser: one scale a token, x ≈ q / s.

    Args:
        x: [T, K].
        semantics: Its rounding rule and whether tokens share a scale.
        kind: `int8_token`, or `int8_token_reciprocal`: torch divides 127 by a tensor as 127 · (1 / tensor), and so
            rounds the scale twice; or `int8_token_fused`: a compiler that fuses x · s with the addition that rounds it
            leaves the product unrounded, and what float32 would make a tie is none.

    Returns:
        q: [T, K] integers in −128 … 127, and s: [T, 1] f32.
    """
    largest = np.abs(x).max(axis=None if semantics.activation_scale == "tensor" else -1, keepdims=True)
    s = (semantics.activation_levels / np.maximum(largest.astype(np.float64), INT8_FLOOR)).astype(np.float32)
    if kind == "int8_token_reciprocal":
        levels = np.float32(semantics.activation_levels)
        s = levels * (np.float32(1) / np.maximum(largest, np.float32(INT8_FLOOR)))
    product = x.astype(np.float64) * s if kind == "int8_token_fused" else x * s  # exact in float64
    q = np.clip(_ROUND[semantics.activation_rounding](product), -128, 127)
    return q.astype(np.float64), np.broadcast_to(s.reshape(-1, 1), (len(x), 1))


def int8_blocks(x: Float32, kind: str, semantics: Semantics = CONTRACT) -> tuple[Float64, Float32]:
    """llama.cpp's block quantisers: x ≈ q · d.

    `q8_k`: iscale = −127 / (the value of largest magnitude, with its sign), d = 1/iscale in float32.
    `q8_0`: id = 127/amax, d = amax/127, stored as float16. A block of zeros has d = 0 and q = 0.

    Args:
        x: [T, K], K a multiple of `BLOCK[kind]`.
        kind: `q8_k` or `q8_0`.
        semantics: Its rounding rule.

    Returns:
        q: [T, K / block, block] integers, and d: [T, K / block, 1] f32.
    """
    blocks = x.reshape(len(x), -1, BLOCK[kind])
    where = np.abs(blocks).argmax(axis=-1, keepdims=True)  # the first of equals, as the C loop keeps it
    peak = np.take_along_axis(blocks, where, axis=-1)
    zero = peak == 0
    safe: Float32 = np.where(zero, np.float32(1), peak)
    if kind == "q8_k":
        inverse: Float32 = np.divide(np.float32(-127), safe, dtype=np.float32)
        d: Float32 = np.divide(np.float32(1), inverse, dtype=np.float32)
    else:
        inverse = np.divide(np.float32(127), np.abs(safe), dtype=np.float32)
        d = f16(np.abs(safe) / np.float32(127))
    q = np.minimum(_ROUND[semantics.activation_rounding](inverse * blocks), 127)
    return np.where(zero, 0, q).astype(np.float64), np.where(zero, np.float32(0), d)


def f16(x: NDArray[np.floating]) -> Float32:
    """Nearest float16, ties to even; overflow becomes infinite, as in the engines."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(np.float16).astype(np.float32)


def bf16(x: NDArray[np.floating]) -> Float32:
    """Nearest bfloat16, ties to even. NaN stays NaN."""
    single = x.astype(np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(single), single, rounded.view(np.float32))


def float_type(x: NDArray[np.floating], kind: str) -> Float32:
    """Rounded to `f32`, `f16` or `bf16`."""
    if kind == "f32":
        return x.astype(np.float32)
    return f16(x) if kind == "f16" else bf16(x)


def wrapped(sums: Float64, kind: str) -> Float64:
    """Exact sums in an accumulator of a width: `int32` holds them all, `int16` wraps around."""
    return sums if kind == "int32" else (sums + 32768.0) % 65536.0 - 32768.0


def rope_angles(positions: NDArray[np.int64], head_dim: int, theta: float, kind: str) -> Float64:
    """Rotary angles [T, head_dim / 2] in radians.

    `f64`: position · theta^(−2i/d). `f32_iterated`: ggml's, starts at the position and multiplies by
    theta^(−2/d) once a pair, all in float32. `f32`: transformers', float32 position times float32 frequency.
    """
    n_pair = head_dim // 2
    if kind == "f32_iterated":
        step = np.float32(np.float64(np.float32(theta)) ** np.float64(np.float32(-2.0) / np.float32(head_dim)))
        angles = np.empty((len(positions), n_pair), np.float32)
        angle = positions.astype(np.float32)
        for i in range(n_pair):
            angles[:, i] = angle
            angle = angle * step
        return angles.astype(np.float64)
    exponent = np.arange(n_pair, dtype=np.float64) * 2.0 / head_dim
    if kind == "f32":
        frequency = (np.float32(1) / (np.float64(theta) ** exponent).astype(np.float32)).astype(np.float32)
        return (positions.astype(np.float32)[:, None] * frequency).astype(np.float64)
    return positions.astype(np.float64)[:, None] * theta**-exponent
