"""The layers of a forward pass as one compiled call that every thread runs, without the interpreter lock.

Threads meet at a barrier about six times a layer. Matrices are split by rows of tiles and attention by heads, so every
sum is made by one thread in the order of the kernels themselves: the same kernels that `model.py` calls one by one,
and the same bits. Rows are taken from a counter, an equal share of what is left each time, so that a thread which came
late, or whose core is slow, takes fewer. The small work before a product (norm, quantisation) is repeated by every
thread for one token, and shared between them by tokens for more.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from bitnet.kernels import attend, by_tokens, cpu, dot, ternary
from bitnet.kernels.barrier import peek, take, wait
from bitnet.kernels.compile import device, inlined, kernel, within
from bitnet.kernels.simd import intrinsic, round_f16

#: Elements of `sizes`.
HEAD_DIM, HALF_SPLIT, RELU2, ROUND_QUERY = range(4)
#: Rows of `matrices`, `shapes` and `scales` of a layer.
Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741  # the field's names

_attention, _rms_norm, _quantise, _rotate, _relu2_gate, _silu_gate = map(
    within,
    (attend.attention, cpu.rms_norm, cpu.quantise_int8_token, cpu.rotate, cpu.relu2_gate, cpu.silu_gate),
)


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer to bytes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(types.int64), build


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
def _prepare(v, thread, n_threads, state, x, weight, eps, h, q, n_tile, inputs, scale, total):
    """Norm (where there is one), int8 codes and tables of x [n_token, n]: row `thread` for one token, t for more."""
    n_token = x.shape[0]
    if n_token == 1:
        begin, end, to = 0, 1, thread
    else:
        begin, end = _share(n_token, thread, n_threads)
        to = begin
    stop = to + end - begin
    if weight.size:
        _rms_norm(x[begin:end], weight, eps, h[to:stop])
        _quantise(h[to:stop], q[to:stop], scale[to:stop], total[to:stop])
    else:
        _quantise(x[begin:end], q[to:stop], scale[to:stop], total[to:stop])
    ternary.prepare(v, q, begin, end, n_token, n_tile, to, inputs)
    if n_token > 1:
        wait(state, n_threads)


@inlined
def _take(v, counter, n_row_tile, n_token, n_threads):
    """An equal share of the row tiles that nobody has taken, counted on from block to block of tokens; maybe none."""
    n = n_row_tile * ternary.n_blocks(n_token)
    least = by_tokens.LEAST_ROW_TILES if ternary.is_turned(v, n_token) else 1
    size = max(least, (n - peek(counter)) // n_threads)
    begin = take(counter, size)
    return begin, min(begin + size, n)


@inlined
def _within(begin, end, n_row_tile):
    """The block of tokens that a range begins in, and which row tiles of it it has."""
    block, first = divmod(begin, n_row_tile)
    return block, first, min(n_row_tile, first + end - begin)


@inlined
def _multiply(v, thread, matrix, begin, end, block, q, tables, scale, total, digits, sums, out):
    """Some row tiles of one product for a block of tokens."""
    address, shape, tensor_scale = matrix
    tiles = numba.carray(_pointer(address), (shape[0], shape[1], dot.tile_bytes(v)))
    n_token = out.shape[0]
    first, last = (thread, thread + 1) if n_token == 1 else (0, len(q))
    inputs = tables if dot.table_bytes(v) else q
    ternary.multiply(
        v, tiles, q[first : first + n_token], inputs[first:last], total[first:], scale[first:], tensor_scale,
        begin, end, block, digits, sums, out,
    )  # fmt: skip


@inlined
def _extent(v, begin, end, block, out):
    """The tokens and the rows of out that belong to row tiles of a block of tokens."""
    first = ternary.TOGETHER * block
    n_row = dot.tile_rows(v)
    return first, min(first + ternary.TOGETHER, out.shape[0]), n_row * begin, min(n_row * end, out.shape[1])


@device
def _add(x, h, extent):
    first, last, begin, end = extent
    for t in range(first, last):
        for i in range(begin, end):
            x[t, i] = x[t, i] + h[t, i]


@device
def _gate(sizes, gate, up, extent, h):
    first, last, begin, end = extent
    for t in range(first, last):
        n = end - begin
        a, b = gate[t][begin:end].reshape((1, n)), up[t][begin:end].reshape((1, n))
        if sizes[RELU2]:
            _relu2_gate(a, b, h[t][begin:end].reshape((1, n)))
        else:
            _silu_gate(a, b, h[t][begin:end].reshape((1, n)))


@device
def _product(v, thread, n_threads, counter, matrix, q, tables, scale, total, digits, sums, out, x):
    """One product, by all threads together; added to x, unless x is empty."""
    n, n_token = matrix[1][0], out.shape[0]
    begin, end = _take(v, counter, n, n_token, n_threads)
    while begin < end:
        block, first, last = _within(begin, end, n)
        _multiply(v, thread, matrix, first, last, block, q, tables, scale, total, digits, sums, out)
        if x.size:
            _add(x, out, _extent(v, first, last, block, out))
        begin += last - first
        if begin == end:
            begin, end = _take(v, counter, n, n_token, n_threads)


@device
def _gated_product(
    v, thread, n_threads, counter, sizes, gate_matrix, up_matrix, q, tables, scale, total, digits, sums, gate, up, h
):
    """Gate and up, and what the activation makes of them, by all threads together."""
    n, n_token = gate_matrix[1][0], gate.shape[0]
    begin, end = _take(v, counter, n, n_token, n_threads)
    while begin < end:
        block, first, last = _within(begin, end, n)
        for matrix, out in ((gate_matrix, gate), (up_matrix, up)):
            _multiply(v, thread, matrix, first, last, block, q, tables, scale, total, digits, sums, out)
        _gate(sizes, gate, up, _extent(v, first, last, block, gate), h)
        begin += last - first
        if begin == end:
            begin, end = _take(v, counter, n, n_token, n_threads)


@device
def _store(store, page, slot, head, row):
    """One head of keys or values into the cache, in its type."""
    for i in range(row.size):
        store[page, head, slot, i] = _as_stored(store, row[i])


@device
def _rotate_and_store(thread, n_threads, sizes, q, k, v, cos, sin, borders, entries, tables, keys, values):
    """Rotary of this thread's heads, and its keys and values into the cache [n_page, n_head_kv, page, head_dim]."""
    width, page_size = sizes[HEAD_DIM], keys.shape[2]
    begin, end = _share(q.shape[1] // width, thread, n_threads)
    for t in range(q.shape[0]):
        row = q[t][begin * width : end * width].reshape((1, (end - begin) * width))
        _rotate(row, cos[t : t + 1], sin[t : t + 1], width, sizes[HALF_SPLIT] == 1, row)
        if sizes[ROUND_QUERY]:
            for i in range(row.size):
                row[0, i] = round_f16(row[0, i])
    begin, end = _share(keys.shape[1], thread, n_threads)
    for s in range(entries.size):
        for t in range(borders[s], borders[s + 1]):
            entry = entries[s] + t - borders[s]
            page, slot = tables[s, entry // page_size], entry % page_size
            for head in range(begin, end):
                row = k[t][head * width : (head + 1) * width].reshape((1, width))
                _rotate(row, cos[t : t + 1], sin[t : t + 1], width, sizes[HALF_SPLIT] == 1, row)
                _store(keys, page, slot, head, row[0])
                _store(values, page, slot, head, v[t][head * width : (head + 1) * width])


@kernel
def layers(
    variant, thread, n_threads, state, counters, sizes, eps, attention_scale,
    matrices, shapes, scales, attn_norm, attn_sub_norm, ffn_norm, ffn_sub_norm,
    cos, sin, borders, entries, round_probs, pages, keys, values,
    h, q8, h_q, q8_q, h_ff, q8_ff, tables, scale8, total8, q, k, v, kqv, gate, up, act, y, x,
):  # fmt: skip
    """All layers, in place: x [T, n_embd] from the embedding to the last residual.

    thread, n_threads, state     who this is of how many, and the barrier they share
    counters                     [n_layer, 7, …] int64, all 0: how many row tiles of a product are taken
    sizes, eps, attention_scale  see the names above
    matrices, shapes, scales     [n_layer, 7]: address of the tiles, (row tiles, column tiles), tensor scale
    *_norm                       [n_layer, n]; n = 0 where the architecture has none
    cos, sin                     [T, head_dim / 2]
    borders, entries             sequence s has tokens [borders[s], borders[s + 1]), the first at cache entry entries[s]
    round_probs                  [n_sequence]: whether probabilities are rounded to binary16
    pages                        [n_sequence, pages of a sequence]
    keys, values                 [n_layer, n_page, n_head_kv, page, head_dim]
    h … total8                   scratch of max(T, n_threads) rows; codes are as wide as the tiles, zero where padded,
                                 and tables are what `ternary.prepare` writes
    q … y                        scratch of T rows
    """
    digits, sums = np.empty(ternary.DIGITS, np.int8), np.empty(ternary.n_sums(variant, x.shape[0]), np.int32)
    nothing = x[:0]
    first, last = _share(q.shape[1] // sizes[HEAD_DIM], thread, n_threads)
    for il in range(matrices.shape[0]):
        m, s, c, taken = matrices[il], shapes[il], scales[il], counters[il]
        _prepare(variant, thread, n_threads, state, x, attn_norm[il], eps, h, q8, s[Q, 1], tables, scale8, total8)
        for j, out in ((Q, q), (K, k), (V, v)):
            _product(
                variant, thread, n_threads, taken[j], (m[j], s[j], c[j]), q8, tables, scale8, total8, digits, sums,
                out, nothing,
            )  # fmt: skip
        wait(state, n_threads)
        _rotate_and_store(thread, n_threads, sizes, q, k, v, cos, sin, borders, entries, pages, keys[il], values[il])
        wait(state, n_threads)
        for i in range(entries.size):
            begin, end = borders[i], borders[i + 1]
            _attention(
                q[begin:end], keys[il], values[il], pages[i], entries[i], attention_scale, round_probs[i],
                first, last, kqv[begin:end],
            )  # fmt: skip
        wait(state, n_threads)
        _prepare(
            variant, thread, n_threads, state, kqv, attn_sub_norm[il], eps, h_q, q8_q, s[O, 1], tables, scale8, total8
        )
        _product(
            variant, thread, n_threads, taken[O], (m[O], s[O], c[O]), q8_q, tables, scale8, total8, digits, sums, y, x
        )
        wait(state, n_threads)
        _prepare(variant, thread, n_threads, state, x, ffn_norm[il], eps, h, q8, s[GATE, 1], tables, scale8, total8)
        _gated_product(
            variant, thread, n_threads, taken[GATE], sizes, (m[GATE], s[GATE], c[GATE]), (m[UP], s[UP], c[UP]),
            q8, tables, scale8, total8, digits, sums, gate, up, act,
        )  # fmt: skip
        wait(state, n_threads)
        _prepare(
            variant, thread, n_threads, state, act, ffn_sub_norm[il], eps, h_ff, q8_ff, s[DOWN, 1], tables, scale8,
            total8,
        )  # fmt: skip
        _product(
            variant, thread, n_threads, taken[DOWN], (m[DOWN], s[DOWN], c[DOWN]), q8_ff, tables, scale8, total8,
            digits, sums, y, x,
        )  # fmt: skip
        wait(state, n_threads)
