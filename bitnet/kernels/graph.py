"""The layers of a forward pass as one compiled call that every thread runs, without the interpreter lock.

Threads meet at a barrier seven times a layer, more often for several tokens. Matrices are split by rows of tiles and
attention by heads, so every sum is made by one thread in the order of the kernels themselves: the same functions that
the kernels of `model.py` are made of, and the same bits. Row tiles are taken from a counter, an equal share of what is
left each time, so that a thread which came late, or whose core is slow, takes fewer. The small work before a product
(norm, quantisation) is repeated by every thread for one token, and shared between them by tokens for more.

Arrays are flat, which takes two thirds of the time to compile that slices of them take.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from bitnet.kernels import attend, by_tokens, cpu, dot, ternary
from bitnet.kernels.arrays import bytes_at, part
from bitnet.kernels.barrier import COUNTER, enter, peek, take, wait
from bitnet.kernels.compile import device, inlined, kernel
from bitnet.kernels.scalars import round_f16
from bitnet.kernels.simd import intrinsic

#: Elements of `sizes`: of the model, of the cache, and of a row of `pages` and of `tables`.
(
    N_LAYER, N_EMBD, N_Q, N_KV, N_FF, HEAD_DIM, HALF_SPLIT, RELU2, ROUND_QUERY, N_PAGE, PAGE, N_ENTRY, TABLE_BYTES,
    N_SIZE,
) = range(14)  # fmt: skip
#: The matrices of a layer, and columns of `shapes`: row tiles, column tiles, rows.
Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741  # the field's names
N_MATRIX, N_SHAPE = 7, 3


@intrinsic
def _as_stored(typingctx: Any, store: Any, value: Any) -> Any:
    """A float32 as an array of the cache holds it: itself, or the bits of its binary16 (half to even)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if signature.return_type == types.float32:
            return args[1]
        return builder.bitcast(builder.fptrunc(args[1], ir.HalfType()), ir.IntType(16))

    return store.dtype(store, types.float32), build


@inlined
def _share(n, thread, n_threads):
    """The part [begin, end) of n that a thread does."""
    return n * thread // n_threads, n * (thread + 1) // n_threads


@device
def _prepare(
    v, thread, n_threads, state, n_token, n, x, weight, at_weight, eps, h, q, n_tile, inputs, stride, scale, total
):
    """Norm (where there is one), int8 codes and tables of x [n_token, n]: row `thread` for one token, t for more."""
    if n_token == 1:
        begin, end, to = 0, 1, thread
    else:
        begin, end = _share(n_token, thread, n_threads)
        to = begin
    width = n_tile * dot.columns(v)
    for t in range(begin, end):
        row = to + t - begin
        source, at = x, t * n
        if weight.size:
            cpu.norm_row(x, at, n, weight, at_weight, eps, h, row * n)
            source, at = h, row * n
        cpu.quantise_row(source, at, n, q, row * width, scale, total, row)
    ternary.prepare(v, q, begin, end, n_token, n_tile, to, inputs, stride)
    if n_token > 1:
        wait(state, n_threads)


@inlined
def _take(v, counters, at, n_row_tile, n_token, n_threads):
    """An equal share of the row tiles that nobody has taken, counted on from block to block of tokens; maybe none."""
    n = n_row_tile * ternary.n_blocks(n_token)
    size = (n - peek(counters, at)) // n_threads
    least = by_tokens.LEAST_ROW_TILES if ternary.is_turned(v, n_token) else 1
    size = size if size > least else least
    begin = take(counters, at, size)
    return begin, begin + size if begin + size < n else n


@device
def _add(x, h, n, first, last, begin, end):
    """Rows [begin, end) of tokens [first, last)."""
    for t in range(first, last):
        to, more = part(x, n * t + begin, end - begin), part(h, n * t + begin, end - begin)
        for i in range(end - begin):
            to[i] = to[i] + more[i]


@device
def _product(
    v, thread, n_threads, counters, matrices, shapes, scales, which, n_token, q, inputs, stride, scale, total, digits,
    sums, out, x,
):  # fmt: skip
    """The product of one matrix, the `which`th, by all threads together; added to x, unless x is empty."""
    n_row_tile, n_tile, n_row = shapes[N_SHAPE * which], shapes[N_SHAPE * which + 1], shapes[N_SHAPE * which + 2]
    tiles = bytes_at(matrices[which], n_row_tile * n_tile * dot.tile_bytes(v))
    row = thread if n_token == 1 else 0
    begin, end = _take(v, counters, COUNTER * which, n_row_tile, n_token, n_threads)
    while begin < end:
        block, first = begin // n_row_tile, begin % n_row_tile
        last = first + end - begin
        last = last if last < n_row_tile else n_row_tile
        ternary.multiply(
            v, tiles, n_tile, n_token, q, inputs, stride, total, scale, row, scales[which], first, last, block, digits,
            sums, out, n_row,
        )  # fmt: skip
        if x.size:
            token, size = ternary.TOGETHER * block, dot.tile_rows(v)
            _add(x, out, n_row, token, min(token + ternary.TOGETHER, n_token), size * first, min(size * last, n_row))
        begin += last - first
        if begin == end:
            begin, end = _take(v, counters, COUNTER * which, n_row_tile, n_token, n_threads)


@device
def _store(store, to, row, at, n):
    """One head of keys or values into the cache, in its type."""
    found, source = part(store, to, n), part(row, at, n)
    for i in range(n):
        found[i] = _as_stored(store, source[i])


@device
def _rotate_and_store(thread, n_threads, sizes, il, q, k, v, cos, sin, borders, entries, pages, keys, values):
    """Rotary of this thread's heads, and its keys and values into the cache."""
    width, n_q, n_kv, size = sizes[HEAD_DIM], sizes[N_Q], sizes[N_KV], sizes[PAGE]
    half_split = sizes[HALF_SPLIT] == 1
    begin, end = _share(n_q // width, thread, n_threads)
    mine = (end - begin) * width
    for t in range(borders[entries.size]):
        at = t * n_q + begin * width
        cpu.rotate_row(q, at, mine, cos, sin, t * (width // 2), width, half_split, q, at)
        if sizes[ROUND_QUERY]:
            row = part(q, at, mine)
            for i in range(mine):
                row[i] = round_f16(row[i])
    n_head = n_kv // width
    begin, end = _share(n_head, thread, n_threads)
    mine = (end - begin) * width
    for s in range(entries.size):
        for t in range(borders[s], borders[s + 1]):
            entry = entries[s] + t - borders[s]
            page = il * sizes[N_PAGE] + pages[s * sizes[N_ENTRY] + entry // size]
            at = t * n_kv + begin * width
            cpu.rotate_row(k, at, mine, cos, sin, t * (width // 2), width, half_split, k, at)
            for head in range(begin, end):
                to = ((page * n_head + head) * size + entry % size) * width
                _store(keys, to, k, t * n_kv + head * width, width)
                _store(values, to, v, t * n_kv + head * width, width)


@kernel
def layers(
    variant, thread, n_threads, state, counters, sizes, eps, attention_scale,
    matrices, shapes, scales, attn_norm, attn_sub_norm, ffn_norm, ffn_sub_norm,
    cos, sin, borders, entries, round_probs, pages, keys, values,
    digits, sums, h, q8, h_q, q8_q, h_ff, q8_ff, tables, scale8, total8, q, k, v, kqv, gate, up, act, y, x,
):  # fmt: skip
    """All layers, in place: x [T, n_embd] from the embedding to the last residual. Shapes are those of flat arrays.

    thread, n_threads, state     who this is of how many, and the barrier they share
    counters                     [n_layer, 7, COUNTER] int64, all 0: how many row tiles of a product are taken
    sizes, eps, attention_scale  see the names above
    matrices, shapes, scales     [n_layer, 7]: address of the tiles, (row tiles, column tiles, rows), tensor scale
    *_norm                       [n_layer, n]; n = 0 where the architecture has none
    cos, sin                     [T, head_dim / 2]
    borders, entries             sequence s has tokens [borders[s], borders[s + 1]), the first at cache entry entries[s]
    round_probs                  [n_sequence]: whether probabilities are rounded to binary16
    pages                        [n_sequence, pages of a sequence]
    keys, values                 [n_layer, n_page, n_head_kv, page, head_dim]
    digits, sums                 scratch of every thread, as in `ternary.py`
    h … total8                   scratch of max(T, n_threads) rows; codes are as wide as the tiles, zero where padded,
                                 and tables are what `ternary.prepare` writes
    q … y                        scratch of T rows
    """
    if not enter(state, n_threads):
        return
    n_embd, n_q, n_ff, width = sizes[N_EMBD], sizes[N_Q], sizes[N_FF], sizes[HEAD_DIM]
    n_token, n_head, n_head_kv, stride = x.size // n_embd, n_q // width, sizes[N_KV] // width, sizes[TABLE_BYTES]
    digits = part(digits, thread * ternary.DIGITS, ternary.DIGITS)
    n_sums = sums.size // n_threads
    sums, nothing = part(sums, thread * n_sums, n_sums), part(x, 0, 0)
    first, last = _share(n_head, thread, n_threads)
    begin, end = _share(n_token * n_ff, thread, n_threads)
    for il in range(sizes[N_LAYER]):
        m = N_MATRIX * il
        _prepare(
            variant, thread, n_threads, state, n_token, n_embd, x, attn_norm, il * n_embd, eps, h, q8,
            shapes[N_SHAPE * (m + Q) + 1], tables, stride, scale8, total8,
        )  # fmt: skip
        for j, out in ((Q, q), (K, k), (V, v)):
            _product(
                variant, thread, n_threads, counters, matrices, shapes, scales, m + j, n_token, q8, tables, stride,
                scale8, total8, digits, sums, out, nothing,
            )  # fmt: skip
        wait(state, n_threads)
        _rotate_and_store(thread, n_threads, sizes, il, q, k, v, cos, sin, borders, entries, pages, keys, values)
        wait(state, n_threads)
        row = il * sizes[N_PAGE] * n_head_kv * sizes[PAGE]
        for s in range(entries.size):
            attend.heads(
                q, borders[s] * n_q, borders[s + 1] - borders[s], n_head, keys, values, row, n_head_kv, sizes[PAGE],
                width, pages, s * sizes[N_ENTRY], entries[s], attention_scale, round_probs[s], first, last, kqv,
            )  # fmt: skip
        wait(state, n_threads)
        _prepare(
            variant, thread, n_threads, state, n_token, n_q, kqv, attn_sub_norm, il * n_q, eps, h_q, q8_q,
            shapes[N_SHAPE * (m + O) + 1], tables, stride, scale8, total8,
        )  # fmt: skip
        _product(
            variant, thread, n_threads, counters, matrices, shapes, scales, m + O, n_token, q8_q, tables, stride,
            scale8, total8, digits, sums, y, x,
        )  # fmt: skip
        wait(state, n_threads)
        _prepare(
            variant, thread, n_threads, state, n_token, n_embd, x, ffn_norm, il * n_embd, eps, h, q8,
            shapes[N_SHAPE * (m + GATE) + 1], tables, stride, scale8, total8,
        )  # fmt: skip
        for j, out in ((GATE, gate), (UP, up)):
            _product(
                variant, thread, n_threads, counters, matrices, shapes, scales, m + j, n_token, q8, tables, stride,
                scale8, total8, digits, sums, out, nothing,
            )  # fmt: skip
        wait(state, n_threads)
        cpu.gate_row(sizes[RELU2], gate, up, begin, end, act)
        wait(state, n_threads)
        _prepare(
            variant, thread, n_threads, state, n_token, n_ff, act, ffn_sub_norm, il * n_ff, eps, h_ff, q8_ff,
            shapes[N_SHAPE * (m + DOWN) + 1], tables, stride, scale8, total8,
        )  # fmt: skip
        _product(
            variant, thread, n_threads, counters, matrices, shapes, scales, m + DOWN, n_token, q8_ff, tables, stride,
            scale8, total8, digits, sums, y, x,
        )  # fmt: skip
        wait(state, n_threads)
