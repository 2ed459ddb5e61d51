"""The oracle with the float32 order of one real engine: it reproduces the recorded bitnet.cpp to the last bit.

The oracle leaves two freedoms open: in which order float32 sums are taken, and the last place of sine, cosine and
exponential. This subclass fills them in as the recorded build does (x86, AVX-512, fused multiply-add, glibc), and then
every recorded logit is equal, bit for bit. So whatever separates the oracle from the recording is order of summation
and nothing else; and a drift can be traced on prompts whose intermediates were not recorded, for this computes them.
It is a model of an engine, not that engine, and speaks for no other build.

The orders, each confirmed by the recorded nodes:

* RoPE: float32 tables from glibc's `cosf` and `sinf`; fma(x0, cos, −(x1·sin)) and fma(x0, sin, x1·cos).
* Query · key, and in single-token steps probability · value and the head: both sides float16, steps of 64 into four
  accumulators of 16 lanes, ((0 + 2) + (1 + 3)), then halves; what is left of a row after whole steps in float64.
* In batches probability · value and the head: float32 against float16, one accumulator of 16 lanes, then halves.
* Softmax: exponentials by a polynomial of degree 5 in 16 lanes, each 16 summed by halves, those in float64; times
  float32(1/Σ). Keys are padded to a multiple of 32.
* SiLU: x / (1 + the same exponential of −x).
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reference import rounding
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_LANES, _STEP, _KEY_PADDING = 16, 64, 32
#: exp(b) on |b| ≤ ln(2)/2: coefficients of b, b², … as the engine holds them.
_LOG2_E, _LN2_HIGH, _LN2_LOW, _ROUND_TO_INTEGER = (
    np.float32(float.fromhex(h)) for h in ("0x1.715476p+0", "0x1.62e4p-1", "0x1.7f7d1cp-20", "0x1.8p23")
)
_EXP = [
    np.float32(float.fromhex(h))
    for h in ("0x1.ffffecp-1", "0x1.fffdb6p-2", "0x1.555e66p-3", "0x1.573e2ep-5", "0x1.0e4020p-7")
]


class GgmlOrder(Oracle):
    """An oracle whose float32 sums run in the order of the recorded bitnet.cpp build.

    Args:
        model: GGUF file.
        numerics: As for the oracle; the orders were confirmed for bitnet.cpp's.

    Raises:
        ReferenceUnavailableError: There is no glibc here to take sine and cosine from.
    """

    def __init__(self, model: str, *, numerics: Mapping[str, str] | None = None) -> None:
        super().__init__(model, numerics=numerics)
        self._cosf, self._sinf = _glibc("cosf"), _glibc("sinf")
        own = hashlib.sha256((self.info.library_sha256 + _sha256(Path(__file__))).encode()).hexdigest()
        self.info = replace(self.info, name="oracle in ggml order", library_sha256=own)

    def _rotate(self, x: Float64, positions: NDArray[np.int64]) -> Float64:
        d = self.hyper.head_dim
        heads = x.reshape(len(x), -1, d)
        angles = rounding.rope_angles(positions, d, self.hyper.rope_theta, self.numerics["rope"])
        cos, sin = (function(angles).astype(np.float64)[:, None, :] for function in (self._cosf, self._sinf))
        half_split = self.hyper.rope_style == "half_split"
        first, second = (
            (slice(0, d // 2), slice(d // 2, None)) if half_split else (slice(0, None, 2), slice(1, None, 2))
        )
        out = np.empty(heads.shape, np.float32)
        out[..., first] = heads[..., first] * cos - _f32(heads[..., second] * sin)
        out[..., second] = heads[..., first] * sin + _f32(heads[..., second] * cos)
        return out.reshape(x.shape).astype(np.float64)

    def _attend(self, q: Float64, k: Float64, v: Float64, start: int) -> Float64:
        n_token, n_key = len(q), -(-len(k) // _KEY_PADDING) * _KEY_PADDING
        padding = ((0, n_key - len(k)), (0, 0))
        keys, values = (self.per_query_head(np.pad(c, padding)).astype(np.float32) for c in (k, v))  # [H, S, d]
        queries = rounding.float_type(q, self.numerics["query"]).reshape(n_token, self.hyper.n_head, -1)
        scores = dot_f16(keys[:, None], queries.transpose(1, 0, 2)[:, :, None])  # [H, T, S]
        scores = scores * np.float32(1 / np.sqrt(np.float32(self.hyper.head_dim)))
        scores[:, np.arange(n_key) > start + np.arange(n_token)[:, None]] = -np.inf
        p = softmax(scores)
        values = values.transpose(0, 2, 1)[:, None]  # [H, 1, d, S]
        single = self._when_single(self.numerics["probs"], n_token)
        out = dot_f16(values, rounding.f16(p)[:, :, None]) if single == "f16" else dot_batch(values, p[:, :, None])
        return out.transpose(1, 0, 2).reshape(n_token, -1).astype(np.float64)

    def _activate(self, gate: Float64) -> Float64:
        if self.hyper.activation != "silu":
            return super()._activate(gate)
        x = gate.astype(np.float32)
        return (x / (np.float32(1) + exp(-x))).astype(np.float64)

    def _head(self, x: Float64) -> Float64:
        w, x32 = self._weights[self.hyper.head].values.astype(np.float32), x.astype(np.float32)[:, None]
        single = self._when_single(self.numerics["head"], len(x))
        return (dot_f16(w, rounding.f16(x32)) if single == "f16" else dot_batch(w, x32)).astype(np.float64)


def dot_f16(a: Float32, b: Float32) -> Float32:
    """[…, K] · […, K] of float16 values: four accumulators of 16 lanes, the rest of a row in float64."""
    whole = a.shape[-1] // _STEP * _STEP
    parts = [_fused(a, b, range(lane, whole, _STEP)) for lane in range(0, _STEP, _LANES)]
    total = _halves((parts[0] + parts[2]) + (parts[1] + parts[3])).astype(np.float64)
    for i in range(whole, a.shape[-1]):
        total = total + _f32(a[..., i] * b[..., i])
    return total.astype(np.float32)


def dot_batch(a: Float32, b: Float32) -> Float32:
    """[…, K] · […, K], K a multiple of 16: one accumulator of 16 lanes."""
    return _halves(_fused(a, b, range(0, a.shape[-1], _LANES)))


def _fused(a: Float32, b: Float32, starts: range) -> Float32:
    """Lanes of 16 accumulated by fused multiply-add: an exact product in float64, added, rounded once."""
    total = np.zeros((*np.broadcast_shapes(a.shape, b.shape)[:-1], _LANES), np.float32)
    for i in starts:
        lanes = slice(i, i + _LANES)
        total = (a[..., lanes].astype(np.float64) * b[..., lanes] + total).astype(np.float32)
    return total


def _halves(lanes: Float32) -> Float32:
    while (n := lanes.shape[-1]) > 1:
        lanes = lanes[..., : n // 2] + lanes[..., n // 2 :]
    return lanes[..., 0]


def exp(x: Float32) -> Float32:
    """e^x as the engine's vectors compute it, x ≤ 88; −∞ gives 0."""
    finite = np.maximum(x, np.float32(-150))  # e^−150 is 0 in float32 already
    n = _fma(finite, _LOG2_E, _ROUND_TO_INTEGER) - _ROUND_TO_INTEGER
    b = _fma(-n, _LN2_LOW, _fma(-n, _LN2_HIGH, finite))
    square = b * b
    c1, c2, c3, c4, c5 = _EXP
    high = _fma(_fma(c5, b, c4), square, _fma(c3, b, c2))
    return np.ldexp(_fma(high, square, _fma(c1, b, np.float32(1))), n.astype(np.int32))


def softmax(scores: Float32) -> Float32:
    """Over the last axis, a multiple of 16 long."""
    e = exp(scores - scores.max(axis=-1, keepdims=True))
    total = np.zeros(scores.shape[:-1])
    for i in range(0, scores.shape[-1], _LANES):
        total = total + _halves(e[..., i : i + _LANES])
    return e * _f32(1.0 / total)[..., None]


def _fma(a: Float32 | np.float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    return _f32(np.multiply(a, b, dtype=np.float64) + c)


def _f32(x: NDArray[np.floating]) -> Float32:
    return x.astype(np.float32)


def _glibc(name: str) -> np.vectorize:
    try:
        function = getattr(ctypes.CDLL("libm.so.6"), name)
    except (OSError, AttributeError) as error:
        raise ReferenceUnavailableError(
            "this order takes sine and cosine from glibc, and there is none here", remedy="use the oracle"
        ) from error
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    return np.vectorize(function, otypes=[np.float32])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
