"""The same kernels in plain numpy: what the compiled ones are tested against, and a backend that needs no compiler.

Same names, same arguments, same results: equal integers, and floats within the rounding of their sums. Ternary matrices
are in the layout `rows`, so the ranges of all kernels are rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Kernel = TypeVar("Kernel", bound=Callable[..., None])


def _as_compiled(kernel: Kernel) -> Kernel:
    """NaN and infinity are values here, as they are to compiled code: no warnings."""
    return np.errstate(divide="ignore", over="ignore", invalid="ignore")(kernel)


def _trits(codes: Array) -> Array:
    """[n_row, n / 4] codes in I2_S order -> [n_row, n] int64 trits."""
    groups = codes.reshape(codes.shape[0], -1, 1, 32)
    planes = (groups >> np.array([6, 4, 2, 0], np.uint8).reshape(1, 1, 4, 1)) & 3
    trits: Array = planes.reshape(codes.shape[0], -1).astype(np.int64) - 1
    return trits


def _floats(array: Array) -> Array:
    """Elements as `simd.load` reads them: float32, binary16 as uint16, bfloat16 as int16."""
    if array.dtype == np.uint16:
        return array.view(np.float16).astype(np.float32)
    if array.dtype == np.int16:
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array


@_as_compiled
def quantise_int8_token(x: Array, q: Array, scale: Array, total: Array) -> None:
    """Per token: scale = 127 / max(absmax, 1e-5), q = half-to-even(x · scale); total = Σ q."""
    largest = np.abs(x).max(axis=1).astype(np.float64)
    finite = np.isfinite(largest)
    scale[:] = np.where(finite, 127.0 / np.maximum(largest, 1e-5), np.nan)
    q[:] = np.where(finite[:, None], np.clip(np.rint(x * scale[:, None]), -128, 127), 0)
    total[:] = q.sum(axis=1, dtype=np.int64)


@_as_compiled
def quantise_q8_k(x: Array, q: Array, scale: Array, total: Array) -> None:
    """Blocks of 256, inverse scale −127 / (the value of largest magnitude, with its sign)."""
    blocks = x.reshape(x.shape[0], -1, 256)
    first = np.abs(blocks).argmax(axis=2)[..., None]
    signed = np.take_along_axis(blocks, first, axis=2)[..., 0]
    inverse, usable = _inverse(np.float32(-127.0), signed)
    codes = np.minimum(np.rint(np.where(usable[..., None], blocks, 0) * inverse[..., None]), 127).astype(np.int8)
    scale[:] = np.where(usable, np.float32(1.0) / inverse, np.where(np.isfinite(signed), 0, np.nan))
    q[:] = codes.reshape(x.shape)
    total[:] = codes.sum(axis=2, dtype=np.int64)


@_as_compiled
def quantise_q8_0(x: Array, q: Array, scale: Array) -> None:
    """Blocks of 32, q = half-to-even(x · 127 / absmax), scale absmax / 127 rounded to binary16."""
    blocks = x.reshape(x.shape[0], -1, 32)
    largest = np.abs(blocks).max(axis=2)
    inverse, usable = _inverse(np.float32(127.0), largest)
    q[:] = np.rint(np.where(usable[..., None], blocks, 0) * inverse[..., None]).reshape(x.shape)
    scale[:] = np.where(np.isfinite(largest), largest / np.float32(127.0), np.nan).astype(np.float16)


def _inverse(numerator: Any, extreme: Array) -> tuple[Array, Array]:
    """Inverse scales of blocks, and where there is one: 0 for a block of zeros, one that overflows, or not finite."""
    inverse = numerator / extreme
    usable = np.isfinite(extreme) & np.isfinite(inverse)
    return np.where(usable, inverse, np.float32(0)), usable


@_as_compiled
def ternary_sums(v: object, codes: Array, q: Array, total: Array, row: int, end: int, out: Array) -> None:
    """Exact integer sums of trits and int8."""
    del total  # the codes are decoded to −1, 0, 1 here, so nothing is to be taken off
    out[:, row:end] = q.astype(np.int64) @ _trits(codes[row:end]).T


@_as_compiled
def ternary_int8_token(
    v: object,
    codes: Array,
    q: Array,
    total: Array,
    scale: Array,
    tensor_scale: float,
    row: int,
    end: int,
    out: Array,
) -> None:
    """Integer sums ÷ the token's scale × the tensor's."""
    sums = np.empty((q.shape[0], end), np.int64)
    ternary_sums(v, codes, q, total, row, end, sums)
    out[:, row:end] = sums[:, row:end].astype(np.float32) / scale[:, None] * np.float32(tensor_scale)


@_as_compiled
def ternary_blocks(
    v: object,
    codes: Array,
    block_scale: Array,
    q: Array,
    total: Array,
    scale: Array,
    tensor_scale: float,
    row: int,
    end: int,
    out: Array,
) -> None:
    """Blocks of 256, weighted by both block scales, × the tensor's."""
    del total
    trits = _trits(codes[row:end]).reshape(end - row, -1, 256)
    sums = np.einsum("tbk,rbk->trb", q.reshape(q.shape[0], -1, 256).astype(np.int64), trits)
    y = np.einsum("trb,rb,tb->tr", sums, block_scale[row:end].astype(np.float64), scale.astype(np.float64))
    out[:, row:end] = y.astype(np.float32) * np.float32(tensor_scale)


@_as_compiled
def ternary_float(
    v: object, codes: Array, block_scale: Array, x: Array, tensor_scale: float, row: int, end: int, out: Array
) -> None:
    """Trits · float activations."""
    weight = _trits(codes[row:end]) * np.repeat(block_scale[row:end].astype(np.float64), 256, axis=1)[:, : x.shape[1]]
    out[:, row:end] = (x.astype(np.float64) @ weight.T).astype(np.float32) * np.float32(tensor_scale)


@_as_compiled
def q8_0_blocks(weight: Array, weight_scale: Array, q: Array, scale: Array, row: int, end: int, out: Array) -> None:
    """Blocks of 32 int8 × int8, weighted by both block scales."""
    w = weight[row:end].reshape(end - row, -1, 32).astype(np.int64)
    sums = np.einsum("tbk,rbk->trb", q.reshape(q.shape[0], -1, 32).astype(np.int64), w)
    y = np.einsum("trb,rb,tb->tr", sums, weight_scale[row:end].astype(np.float64), scale.astype(np.float64))
    out[:, row:end] = y


@_as_compiled
def q8_0_float(weight: Array, weight_scale: Array, x: Array, row: int, end: int, out: Array) -> None:
    """Blocks of 32 int8 · float activations."""
    w = weight[row:end] * np.repeat(weight_scale[row:end], 32, axis=1)
    out[:, row:end] = x.astype(np.float64) @ w.astype(np.float64).T


@_as_compiled
def dense(weight: Array, x: Array, row: int, end: int, out: Array) -> None:
    """Float rows · float activations."""
    out[:, row:end] = x.astype(np.float64) @ _floats(weight[row:end]).astype(np.float64).T


@_as_compiled
def rms_norm(x: Array, weight: Array, eps: float, out: Array) -> None:
    """X / √(mean(x²) + eps) · weight."""
    mean = (x * x).astype(np.float64).mean(axis=1, keepdims=True).astype(np.float32)
    out[:] = x * (np.float32(1.0) / np.sqrt(mean + np.float32(eps))) * weight


@_as_compiled
def rotate(x: Array, cos: Array, sin: Array, head_dim: int, half_split: bool, out: Array) -> None:
    """Rotary embedding of every head."""
    heads = x.reshape(x.shape[0], -1, head_dim)
    turned = out.reshape(heads.shape)
    a = slice(0, head_dim // 2) if half_split else slice(0, None, 2)
    b = slice(head_dim // 2, None) if half_split else slice(1, None, 2)
    u, v, c, s = heads[..., a].copy(), heads[..., b].copy(), cos[:, None, :], sin[:, None, :]
    turned[..., a] = u * c - v * s
    turned[..., b] = u * s + v * c


@_as_compiled
def relu2_gate(gate: Array, up: Array, out: Array) -> None:
    """max(gate, 0)² · up."""
    out[:] = np.maximum(gate, 0) ** 2 * up


@_as_compiled
def silu_gate(gate: Array, up: Array, out: Array) -> None:
    """Gate / (1 + e^−gate) · up."""
    g = gate.astype(np.float64)
    e = np.exp(-np.abs(g))
    out[:] = (np.where(g >= 0, g, g * e) / (1 + e)).astype(np.float32) * up


@_as_compiled
def attention(
    q: Array,
    keys: Array,
    values: Array,
    pages: Array,
    start: int,
    scale: float,
    round_probs: bool,
    head: int,
    end: int,
    out: Array,
) -> None:
    """Causal grouped attention of heads [head, end), over the entries of a table of pages."""
    _, n_kv, size, width = keys.shape
    n_head = q.shape[1] // width
    n_token = q.shape[0]
    heads, result = q.reshape(n_token, n_head, width), out.reshape(n_token, n_head, width)
    used = pages[: -(-(start + n_token) // size)]
    for h in range(head, end):
        caches = (c[used, h // (n_head // n_kv)].reshape(-1, width) for c in (keys, values))
        k, v = (_floats(c[: start + n_token]).astype(np.float64) for c in caches)
        for t in range(n_token):  # one by one: a masked probability of 0 would still let NaN through
            seen = slice(0, start + t + 1)
            scores = k[seen] @ heads[t, h].astype(np.float64) * scale
            p = np.exp(scores - scores.max())
            p = (p / p.sum()).astype(np.float32)
            result[t, h] = (p.astype(np.float16) if round_probs else p).astype(np.float64) @ v[seen]
