"""Q8_0: blocks of 32 int8 weights with a float16 scale, the largest magnitude over 127."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitnet.codecs.base import Codec, Float32, Raw, Ternary, check_finite, matrix_rows, to_float16
from bitnet.errors import UsageError
from bitnet.gguf_types import GGMLType

_BLOCK, _BYTES = 32, 34


def decode(raw: Raw, shape: Sequence[int]) -> Float32:
    """Weights of `shape`, f32."""
    blocks = matrix_rows(GGMLType.Q8_0, raw, shape).reshape(-1, _BYTES)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    return (blocks[:, 2:].view(np.int8) * scales).reshape(shape)


def encode(weights: Float32 | Ternary) -> Raw:
    """Bytes of a matrix, rounded half away from zero as ggml does."""
    dense = weights.dense() if isinstance(weights, Ternary) else check_finite(weights)
    if dense.shape[-1] % _BLOCK:
        raise UsageError(f"rows of {dense.shape[-1]} are not a multiple of {_BLOCK}")
    blocks = dense.reshape(-1, _BLOCK)
    scales = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    inverse[np.isinf(inverse)] = 0  # subnormal: its float16 is 0 too
    scaled = blocks * inverse
    whole = np.trunc(scaled)
    raw = np.empty((len(blocks), _BYTES), np.uint8)
    raw[:, :2] = to_float16(scales, "a weight / 127").view(np.uint8)
    raw[:, 2:] = (whole + np.trunc(2 * (scaled - whole))).astype(np.int8).view(np.uint8)
    return raw.reshape(-1)


CODEC = Codec(type=GGMLType.Q8_0, decode=decode, encode=encode)
