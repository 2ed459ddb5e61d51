"""Attention over a paged cache, all query heads of one key-value head together: what they share is read once.

Keys are read once for some tokens as well, and values are first put into the order in which they are added.

The order of every sum is fixed: a score by the sixteen lanes and the tree of `simd.py`; the sum of exponentials one by
one, in float64; the sum over values in sixteen lanes of its own, lane i adding entries i, i + 16, …, folded by the same
tree. Neither tokens beside this one, nor pages, nor how heads are shared among threads, change a bit.
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels import head as rows
from bitnet.kernels import scalars, simd, simd64
from bitnet.kernels.arrays import part
from bitnet.kernels.compile import device, inlined, kernel

_f32 = np.float32

#: Tokens that share one reading of the keys: their products stay in a second-level cache.
TOKENS = 4


@inlined
def _row(pages, at, first, pitch, size, group):
    """The row of keys where sixteen entries begin.

    pages[at:] are the sequence's; a page is `pitch` rows, `size` of them of this key-value head, from `first` on.
    """
    return first + np.int64(pages[at + 16 * group // size]) * pitch + 16 * group % size


@device
def _two_scores(flat_q, flat_k, width, at_q, row, count, probs, to, stride):
    """Products of two queries, side by side, and the keys of some entries, two at a time."""
    for r in range(row, row + count // 2 * 2, 2):
        a, b, c, d = simd.zero_f32(), simd.zero_f32(), simd.zero_f32(), simd.zero_f32()
        for i in range(0, width, 16):
            here, next_key = simd.load(flat_k, r * width + i), simd.load(flat_k, (r + 1) * width + i)
            x, y = simd.load(flat_q, at_q + i), simd.load(flat_q, at_q + width + i)
            a, b = simd.fma_f32(here, x, a), simd.fma_f32(next_key, x, b)
            c, d = simd.fma_f32(here, y, c), simd.fma_f32(next_key, y, d)
        simd.store_sums_f32(a, b, c, d, probs, to + r - row, to + stride + r - row)
    if count % 2:
        last = count - 1
        for k in range(2):
            probs[to + k * stride + last] = rows.dense_row(
                flat_k, flat_q, width, (row + last) * width, at_q + k * width
            )


@device
def _scores(
    flat_q, flat_k, pages, at_pages, first, pitch, size, width, n, at_q, next_token, n_token, seen, probs, stride
):
    """Products of the queries of n heads and of some tokens with the entries seen, to probs[query · stride + entry].

    The queries of a token are side by side, those of the next one `next_token` further. A group of keys is read once.
    """
    for g in range((seen + 15) // 16):
        row, count = _row(pages, at_pages, first, pitch, size, g), min(16, seen - 16 * g)
        for t in range(n_token):
            here, to = at_q + t * next_token, t * n * stride + 16 * g
            for h in range(0, n - 1, 2):
                _two_scores(flat_q, flat_k, width, here + h * width, row, count, probs, to + h * stride, stride)
            if n % 2:
                last = n - 1
                rows.dense_rows(
                    flat_k, flat_q, width, row, row + count, here + last * width, 0, probs, to + last * stride
                )


@device
def _exponentials(probs, at, seen, scale):
    """Products to exponentials of what they are below the largest; up to fifteen numbers after them become 0.

    Which of several largest scores is found does not matter; a score that is NaN makes every exponential NaN.
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


@device
def _divide(probs, at, seen, total, round_probs):
    """Exponentials to probabilities."""
    inverse, row = _f32(1.0 / total), part(probs, at, seen)
    for j in range(seen):
        row[j] = row[j] * inverse
    if round_probs:
        for j in range(seen):
            row[j] = scalars.round_f16(row[j])


@device
def _softmax(probs, at_probs, n, stride, seen, scale, round_probs):
    """Products of n heads to probabilities, in place; up to fifteen numbers after them are overwritten."""
    for h in range(n):
        _exponentials(probs, at_probs + h * stride, seen, scale)
    fours = n // 4 * 4
    for h in range(0, fours, 4):  # four sums at once: an addition waits for the one before
        at = at_probs + h * stride
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for j in range(at, at + seen):
            a += np.float64(probs[j])
            b += np.float64(probs[j + stride])
            c += np.float64(probs[j + 2 * stride])
            d += np.float64(probs[j + 3 * stride])
        _divide(probs, at, seen, a, round_probs)
        _divide(probs, at + stride, seen, b, round_probs)
        _divide(probs, at + 2 * stride, seen, c, round_probs)
        _divide(probs, at + 3 * stride, seen, d, round_probs)
    for h in range(fours, n):
        total, at = 0.0, at_probs + h * stride
        for j in range(at, at + seen):
            total += np.float64(probs[j])
        _divide(probs, at, seen, total, round_probs)


@device
def _turn(flat_v, pages, at_pages, first, pitch, size, width, seen, turned):
    """The values of the entries seen in the order in which sums want them: turned[columns of 16, lane, group, 16]."""
    n_group = (seen + 15) // 16
    for g in range(n_group):
        row = _row(pages, at_pages, first, pitch, size, g)
        for lane in range(min(16, seen - 16 * g)):
            at = (row + lane) * width
            for column in range(0, width, 16):
                simd.store_f32(turned, ((column + lane) * n_group + g) * 16, simd.load(flat_v, at + column))


@device
def _four_heads(turned, at_v, n_group, probs, at, stride, sums, to):
    """One lane of sixteen columns for four heads: entries lane, lane + 16, …, to sums[to:], [to + 256:], …"""
    a, b, c, d = simd.zero_f32(), simd.zero_f32(), simd.zero_f32(), simd.zero_f32()
    for g in range(n_group):
        v = simd.load(turned, at_v + 16 * g)
        j = at + 16 * g
        a = simd.fma_f32(v, simd.splat_at(probs, j), a)
        b = simd.fma_f32(v, simd.splat_at(probs, j + stride), b)
        c = simd.fma_f32(v, simd.splat_at(probs, j + 2 * stride), c)
        d = simd.fma_f32(v, simd.splat_at(probs, j + 3 * stride), d)
    simd.store_f32(sums, to, a)
    simd.store_f32(sums, to + 256, b)
    simd.store_f32(sums, to + 512, c)
    simd.store_f32(sums, to + 768, d)


@device
def _one_head(turned, at_v, n_group, probs, at, sums, to):
    """The same for one head."""
    a = simd.zero_f32()
    for g in range(n_group):
        a = simd.fma_f32(simd.load(turned, at_v + 16 * g), simd.splat_at(probs, at + 16 * g), a)
    simd.store_f32(sums, to, a)


@device
def _fold(sums, at, out, to):
    """The sixteen lanes of sixteen columns, by the tree."""
    for step in (8, 4, 2, 1):
        for low in range(at, at + 16 * step, 16):
            simd.store_f32(sums, low, simd.add_f32(simd.load(sums, low), simd.load(sums, low + 16 * step)))
    simd.store_f32(out, to, simd.load(sums, at))


@device
def _values(turned, n_group, width, n, seen, probs, at_probs, stride, sums, out, at_out):
    """The results of n heads for one token; sums: scratch, 256 · n."""
    fours = n // 4 * 4
    for column in range(0, width, 16):
        for lane in range(16):
            at_v, count = (column + lane) * n_group * 16, (seen - lane + 15) // 16
            for h in range(0, fours, 4):
                at = at_probs + h * stride + lane
                _four_heads(turned, at_v, count, probs, at, stride, sums, 16 * lane + 256 * h)
            for h in range(fours, n):
                _one_head(turned, at_v, count, probs, at_probs + h * stride + lane, sums, 16 * lane + 256 * h)
        for h in range(n):
            _fold(sums, 256 * h, out, at_out + h * width + column)


@device
def heads(
    q, at_q, n_token, n_head, keys, values, first_row, n_kv, size, width, pages, at_pages, start, scale, round_probs,
    head, end, out,
):  # fmt: skip
    """`attention` in flat arrays: tokens from q[at_q] and out[at_q] on, a layer's keys and values from a row on."""
    group = n_head // n_kv
    n_seen = start + n_token
    n_group = (n_seen + 15) // 16
    probs = np.empty(min(TOKENS, n_token) * group * (16 * n_group + 16), np.float32)
    sums, turned = np.empty(256 * group, np.float32), np.empty(16 * n_group * width, np.float32)
    next_token, pitch = n_head * width, n_kv * size
    for kv in range(head // group, (end + group - 1) // group):
        row = first_row + kv * size
        _turn(values, pages, at_pages, row, pitch, size, width, n_seen, turned)
        first, last = max(head, kv * group), min(end, (kv + 1) * group)
        n = last - first
        for begin in range(0, n_token, TOKENS):
            together = min(TOKENS, n_token - begin)
            seen, at = start + begin + together, at_q + begin * next_token + first * width
            stride = (seen + 31) // 16 * 16
            _scores(q, keys, pages, at_pages, row, pitch, size, width, n, at, next_token, together, seen, probs, stride)
            for t in range(together):
                mine, seen = t * n * stride, start + begin + t + 1
                _softmax(probs, mine, n, stride, seen, scale, round_probs)
                _values(turned, n_group, width, n, seen, probs, mine, stride, sums, out, at + t * next_token)


@kernel
def attention(q, keys, values, pages, start, scale, round_probs, head, end, out):
    """Causal grouped attention of heads [head, end); keys, values [n_page, n_head_kv, page, head_dim], as `simd.load`.

    q, out: [n_token, n_head · head_dim]; token t sees the first start + t + 1 cache entries; entry j is in slot
    j % page of pages[j // page]; a page holds a multiple of sixteen.
    """
    _, n_kv, size, width = keys.shape
    heads(
        q.reshape(-1), 0, q.shape[0], q.shape[1] // width, keys.reshape(-1), values.reshape(-1), 0, n_kv, size, width,
        pages, 0, start, scale, round_probs, head, end, out.reshape(-1),
    )  # fmt: skip
