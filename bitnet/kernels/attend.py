"""Attention over a paged cache, all query heads of one key-value head together: what they share is read once.

The order of every sum is fixed: a score by the sixteen lanes and the tree of `simd.py`; the sum of exponentials one by
one, in float64; the sum over values in sixteen lanes of its own, lane i adding entries i, i + 16, …, folded by the same
tree. Neither tokens beside this one, nor pages, nor how heads are shared among threads, change a bit.
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels import head as rows
from bitnet.kernels import simd, simd64
from bitnet.kernels.compile import device, kernel

_f32 = np.float32


@device
def find_rows(pages, n_kv, size, kv, seen, groups):
    """Where every sixteen entries of a key-value head begin, in rows of a layer's keys, to groups[entry // 16]."""
    g = 0
    for page in pages[: (seen + size - 1) // size]:
        row = (np.int64(page) * n_kv + kv) * size
        for slot in range(0, size, 16):
            groups[g] = row + slot
            g += 1


@device
def _scores(flat_q, flat_k, groups, width, n, at_q, seen, probs, stride):
    """Products of the queries of n heads and the keys of the entries seen, to probs[head · stride + entry]."""
    for g in range((seen + 15) // 16):
        row, count = groups[g], min(16, seen - 16 * g)
        for h in range(n):
            rows.dense_rows(flat_k, flat_q, width, row, row + count, at_q + h * width, 0, probs, h * stride + 16 * g)


@device
def _softmax(probs, at, seen, scale, round_probs):
    """Products to probabilities, in place; up to fifteen numbers after them are overwritten.

    Which of several largest scores is found does not matter; a score that is NaN makes every probability NaN.
    """
    factor, end = simd.splat_f32(scale), at + (seen + 15) // 16 * 16
    for j in range(at + seen, end):
        probs[j] = _f32(-np.inf)
    most = simd.splat_f32(_f32(-np.inf))
    for j in range(at, end, 16):
        scores = simd.multiply_f32(simd.load(probs, j), factor)
        simd.store_f32(probs, j, scores)
        most = simd.max_f32(scores, most)
    largest = simd.splat_f32(simd.largest_f32(most))
    for j in range(at, end, 16):
        below = simd64.widen(simd.subtract_f32(simd.load(probs, j), largest))
        simd.store_f32(probs, j, simd64.narrow(simd64.exp_f64(below)))
    total = 0.0
    for j in range(at, at + seen):
        total += np.float64(probs[j])
    inverse = _f32(1.0 / total)
    for j in range(at, at + seen):
        probs[j] = probs[j] * inverse
    if round_probs:
        for j in range(at, at + seen):
            probs[j] = simd.round_f16(probs[j])


@device
def _four_heads(flat_v, groups, width, lane, column, seen, probs, at, stride, sums, to):
    """One lane of sixteen columns for four heads: entries lane, lane + 16, …, to sums[to:], [to + 256:], …"""
    a, b, c, d = simd.zero_f32(), simd.zero_f32(), simd.zero_f32(), simd.zero_f32()
    for g in range((seen - lane + 15) // 16):
        v = simd.load(flat_v, (groups[g] + lane) * width + column)
        j = at + lane + 16 * g
        a = simd.fma_f32(v, simd.splat_at(probs, j), a)
        b = simd.fma_f32(v, simd.splat_at(probs, j + stride), b)
        c = simd.fma_f32(v, simd.splat_at(probs, j + 2 * stride), c)
        d = simd.fma_f32(v, simd.splat_at(probs, j + 3 * stride), d)
    simd.store_f32(sums, to, a)
    simd.store_f32(sums, to + 256, b)
    simd.store_f32(sums, to + 512, c)
    simd.store_f32(sums, to + 768, d)


@device
def _one_head(flat_v, groups, width, lane, column, seen, probs, at, sums, to):
    """The same for one head."""
    a = simd.zero_f32()
    for g in range((seen - lane + 15) // 16):
        v = simd.load(flat_v, (groups[g] + lane) * width + column)
        a = simd.fma_f32(v, simd.splat_at(probs, at + lane + 16 * g), a)
    simd.store_f32(sums, to, a)


@device
def _fold(sums, at, out, to):
    """The sixteen lanes of sixteen columns, by the tree."""
    for step in (8, 4, 2, 1):
        for low in range(at, at + 16 * step, 16):
            simd.store_f32(sums, low, simd.add_f32(simd.load(sums, low), simd.load(sums, low + 16 * step)))
    simd.store_f32(out, to, simd.load(sums, at))


@device
def attend_token(flat_q, flat_k, flat_v, groups, width, n, at_q, seen, scale, round_probs, work, out):
    """The results of n heads of one key-value head, for one token.

    Arrays are flat; `at_q` is where the first head's queries begin, and its results in `out`; `groups` as `find_rows`
    leaves them; `seen`, how many entries the token attends to; `work`, float32 of `work_size`.
    """
    stride = (seen + 31) // 16 * 16
    _scores(flat_q, flat_k, groups, width, n, at_q, seen, work, stride)
    for h in range(n):
        _softmax(work, h * stride, seen, scale, round_probs)
    sums = n * stride
    fours = n // 4 * 4
    for column in range(0, width, 16):
        for lane in range(16):
            to = sums + 16 * lane
            for h in range(0, fours, 4):
                at = h * stride
                _four_heads(flat_v, groups, width, lane, column, seen, work, at, stride, work, to + 256 * h)
            for h in range(fours, n):
                _one_head(flat_v, groups, width, lane, column, seen, work, h * stride, work, to + 256 * h)
        for h in range(n):
            _fold(work, sums + 256 * h, out, at_q + h * width + column)


@device
def work_size(n, seen):
    """Float32 numbers that `attend_token` needs for n heads and up to `seen` entries."""
    return n * ((seen + 31) // 16 * 16 + 256)


@kernel
def attention(q, keys, values, pages, start, scale, round_probs, head, end, out):
    """Causal grouped attention of heads [head, end); keys, values [n_page, n_head_kv, page, head_dim], as `simd.load`.

    q, out: [n_token, n_head · head_dim]; token t sees the first start + t + 1 cache entries; entry j is in slot
    j % page of pages[j // page]; a page holds a multiple of sixteen.
    """
    _, n_kv, size, width = keys.shape
    n_token = q.shape[0]
    n_head = q.shape[1] // width
    group = n_head // n_kv
    flat_q, flat_k, flat_v, flat_out = q.reshape(-1), keys.reshape(-1), values.reshape(-1), out.reshape(-1)
    work = np.empty(work_size(group, start + n_token), np.float32)
    groups = np.empty(pages.size * (size // 16), np.int64)
    for kv in range(head // group, (end + group - 1) // group):
        find_rows(pages, n_kv, size, kv, start + n_token, groups)
        first, last = max(head, kv * group), min(end, (kv + 1) * group)
        for t in range(n_token):
            at, seen = (t * n_head + first) * width, start + t + 1
            attend_token(
                flat_q, flat_k, flat_v, groups, width, last - first, at, seen, scale, round_probs, work, flat_out
            )
