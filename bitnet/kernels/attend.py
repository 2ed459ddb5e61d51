"""Attention over a paged cache, all query heads of one key-value head together: what they share is read once.

Keys are read once for some tokens as well. Values are first put into the order in which they are added; those of many
entries, for few tokens, are added where they lie.

The order of every sum is fixed: a score by the sixteen lanes and the tree of `simd.py`; the sum of exponentials one by
one, in float64; the sum over values in sixteen lanes of its own, lane i adding entries i, i + 16, …, folded by the same
tree. Neither tokens beside this one, nor pages, nor how heads are shared among threads, change a bit.
"""

from __future__ import annotations

import numpy as np

from bitnet.kernels import dot, scalars, simd, simd64
from bitnet.kernels import head as rows
from bitnet.kernels.arrays import part
from bitnet.kernels.compile import device, device_with_arrays, inlined, kernel

_f32 = np.float32

#: Tokens that share one reading of the keys: their products stay in a second-level cache.
TOKENS = 4
#: Groups of sixteen entries whose values are added where they lie, before the next ones: they stay in that cache, too.
GROUPS = 8
#: Groups of keys that are fetched ahead.
_AHEAD = 2


@inlined
def _row(pages, at, first, pitch, size, group):
    """The row of keys where sixteen entries begin.

    pages[at:] are the sequence's; a page is `pitch` rows, `size` of them of this key-value head, from `first` on.
    """
    return first + np.int64(pages[at + 16 * group // size]) * pitch + 16 * group % size


@device
def _fetch(flat, at, width):
    """Begin to fetch a row."""
    for i in range(0, width, 16):
        dot.prefetch(flat, at + i)


@device
def _two_scores(flat_q, flat_k, width, at_q, row, count, later, probs, to, stride):
    """Products of two queries, side by side, and the keys of some entries, two at a time.

    As many keys from row `later` on are fetched, unless it is negative.
    """
    for r in range(row, row + count // 2 * 2, 2):
        if later >= 0:
            _fetch(flat_k, (later + r - row) * width, width)
            _fetch(flat_k, (later + r - row + 1) * width, width)
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
    n_group = (seen + 15) // 16
    for g in range(n_group):
        row, count = _row(pages, at_pages, first, pitch, size, g), min(16, seen - 16 * g)
        later = np.int64(-1)
        if g + _AHEAD < n_group:
            later = _row(pages, at_pages, first, pitch, size, g + _AHEAD)
        for t in range(n_token):
            here, to = at_q + t * next_token, t * n * stride + 16 * g
            for h in range(0, n - 1, 2):
                _two_scores(flat_q, flat_k, width, here + h * width, row, count, later, probs, to + h * stride, stride)
                later = np.int64(-1)
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
    """The values of the entries seen in the order in which sums want them: turned[columns of 16, lane, group, 16].

    There is room for one group more, so that lanes do not all lie in the same places of a cache.
    """
    n_group = (seen + 15) // 16
    for g in range(n_group):
        row = _row(pages, at_pages, first, pitch, size, g)
        for lane in range(min(16, seen - 16 * g)):
            at = (row + lane) * width
            for column in range(0, width, 16):
                to = ((column + lane) * (n_group + 1) + g) * 16
                for i in range(16):
                    turned[to + i] = flat_v[at + column + i]


@device
def _four_heads(flat_v, places, at_v, n_group, probs, at, stride, more, sums, to):
    """One lane of sixteen columns for four heads: entries lane, lane + 16, …, to sums[to:], [to + 256:], …

    The values of group g are at flat_v[places[g] + at_v]. `more`: to what is there already.
    """
    a, b, c, d = simd.zero_f32(), simd.zero_f32(), simd.zero_f32(), simd.zero_f32()
    if more:
        a, b = simd.load(sums, to), simd.load(sums, to + 256)
        c, d = simd.load(sums, to + 512), simd.load(sums, to + 768)
    for g in range(n_group):
        v = simd.load(flat_v, places[g] + at_v)
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
def _one_head(flat_v, places, at_v, n_group, probs, at, more, sums, to):
    """The same for one head."""
    a = simd.load(sums, to) if more else simd.zero_f32()
    for g in range(n_group):
        a = simd.fma_f32(simd.load(flat_v, places[g] + at_v), simd.splat_at(probs, at + 16 * g), a)
    simd.store_f32(sums, to, a)


@device
def _fold(sums, at, out, to):
    """The sixteen lanes of sixteen columns, by the tree."""
    for step in (8, 4, 2, 1):
        for low in range(at, at + 16 * step, 16):
            simd.store_f32(sums, low, simd.add_f32(simd.load(sums, low), simd.load(sums, low + 16 * step)))
    simd.store_f32(out, to, simd.load(sums, at))


@device
def _values(
    flat_v, places, next_column, next_lane, begin, end, n_group, width, n, seen, probs, at_probs, stride, fetch, sums,
    at_sums, step, out, at_out,
):  # fmt: skip
    """What groups [begin, end) of values, of n_group, add to the results of n heads for a token; the last complete it.

    The values of group g are at flat_v[places[g] + …]: `next_column` and `next_lane` further the next ones. sums:
    scratch from `at_sums` on, 256 · n for each sixteen columns, those of the next ones `step` further. If `fetch`, the
    groups that are wanted next are fetched.
    """
    fours, mine = n // 4 * 4, part(places, begin, end - begin)
    for column in range(0, width, 16):
        found, later = at_sums + column // 16 * step, end + column // 16
        for lane in range(16):
            if fetch and column < 16 * GROUPS and later < n_group:
                _fetch(flat_v, places[later] + lane * width, width)
            at_v = column * next_column + lane * next_lane
            count, to = min((seen - lane + 15) // 16, end) - begin, found + 16 * lane
            for h in range(0, fours, 4):
                at = at_probs + h * stride + lane + 16 * begin
                _four_heads(flat_v, mine, at_v, count, probs, at, stride, begin > 0, sums, to + 256 * h)
            for h in range(fours, n):
                at = at_probs + h * stride + lane + 16 * begin
                _one_head(flat_v, mine, at_v, count, probs, at, begin > 0, sums, to + 256 * h)
        if end == n_group:
            for h in range(n):
                _fold(sums, found + 256 * h, out, at_out + h * width + column)


@device_with_arrays
def heads(
    q, at_q, n_token, n_head, keys, values, first_row, n_kv, size, width, pages, at_pages, start, scale, round_probs,
    head, end, out,
):  # fmt: skip
    """`attention` in flat arrays: tokens from q[at_q] and out[at_q] on, a layer's keys and values from a row on."""
    group = n_head // n_kv
    n_seen = start + n_token
    n_group = (n_seen + 15) // 16
    in_place = n_token <= TOKENS and n_group > GROUPS
    at_once = GROUPS if in_place else n_group
    step = 256 * group if in_place else 0  # sums of all columns are kept where values come bit by bit
    probs = np.empty(min(TOKENS, n_token) * group * (16 * n_group + 16), np.float32)
    sums = np.empty(min(TOKENS, n_token) * step * (width // 16) + 256 * group, np.float32)
    turned = np.empty(0 if in_place else 16 * (n_group + 1) * width, values.dtype)
    source, places, next_lane = (values if in_place else turned), np.empty(n_group, np.int64), 16 * (n_group + 1)
    next_token, pitch = n_head * width, n_kv * size
    for kv in range(head // group, (end + group - 1) // group):
        row = first_row + kv * size
        for g in range(n_group):
            places[g] = _row(pages, at_pages, row, pitch, size, g) * width if in_place else 16 * g
        if not in_place:
            _turn(values, pages, at_pages, row, pitch, size, width, n_seen, turned)
        first, last = max(head, kv * group), min(end, (kv + 1) * group)
        n = last - first
        for begin in range(0, n_token, TOKENS):
            together = min(TOKENS, n_token - begin)
            seen, at = start + begin + together, at_q + begin * next_token + first * width
            stride = (seen + 31) // 16 * 16
            _scores(q, keys, pages, at_pages, row, pitch, size, width, n, at, next_token, together, seen, probs, stride)
            for t in range(together):
                _softmax(probs, t * n * stride, n, stride, start + begin + t + 1, scale, round_probs)
            for g in range(0, n_group, at_once):
                for t in range(together):
                    _values(
                        source, places, 1 if in_place else next_lane, width if in_place else next_lane, g,
                        min(g + at_once, n_group), n_group, width, n, start + begin + t + 1, probs, t * n * stride,
                        stride, in_place and t == 0, sums, t * step * (width // 16), step, out, at + t * next_token,
                    )  # fmt: skip


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
