"""Attention by groups of heads against the loop it replaces: the same bits, whatever the groups and pages."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.kernels import attend, scalars, simd, simd64
from bitnet.kernels.compile import kernel
from bitnet.kernels.cpu import exp


@kernel
def naive(q, keys, values, pages, start, scale, round_probs, out):
    """One head and token after the other, in the order that defines the bits."""
    _, n_kv, size, width = keys.shape
    n_head = q.shape[1] // width
    flat_q, flat_k, flat_v = q.reshape(-1), keys.reshape(-1), values.reshape(-1)
    for h in range(n_head):
        for t in range(q.shape[0]):
            seen = start + t + 1
            probs, lanes = np.empty(seen, np.float32), np.zeros((16, width), np.float32)
            largest = np.float32(-np.inf)
            for j in range(seen):
                acc = simd.zero_f32()
                at = ((np.int64(pages[j // size]) * n_kv + h // (n_head // n_kv)) * size + j % size) * width
                for i in range(0, width, 16):
                    acc = simd.fma_f32(simd.load(flat_k, at + i), simd.load(flat_q, (t * n_head + h) * width + i), acc)
                probs[j] = simd.sum_f32(acc) * scale
                largest = max(largest, probs[j])
            total = 0.0
            for j in range(seen):
                probs[j] = np.float32(exp(np.float64(probs[j] - largest)))
                total += np.float64(probs[j])
            inverse = np.float32(1.0 / total)
            for j in range(seen):
                p = np.float32(probs[j] * inverse)
                p = scalars.round_f16(p) if round_probs else p
                at = ((np.int64(pages[j // size]) * n_kv + h // (n_head // n_kv)) * size + j % size) * width
                for i in range(0, width, 16):
                    v, lane = simd.load(flat_v, at + i), lanes[j % 16]
                    simd.store_f32(lane, i, simd.fma_f32(v, simd.splat_f32(p), simd.load(lane, i)))
            for step in (8, 4, 2, 1):
                for lane in range(step):
                    lanes[lane] += lanes[lane + step]
            out[t, h * width : (h + 1) * width] = lanes[0]


def case(seed, n_kv, group, width, start, n_token, kind, size=16):
    rng = np.random.default_rng(seed)
    n_page = -(-(start + n_token) // size)
    cache = rng.standard_normal((2, n_page + 2, n_kv, size, width)).astype(np.float16)
    cache = cache.view(np.uint16) if kind == "f16" else cache.astype(np.float32)
    pages = rng.permutation(n_page + 2)[:n_page].astype(np.int32)
    q = rng.standard_normal((n_token, n_kv * group * width)).astype(np.float32)
    return q, cache[0], cache[1], pages, start, np.float32(rng.uniform(0.05, 3))


def both(arguments, *, round_probs=False, shares=()):
    q = arguments[0]
    ours, theirs = np.full_like(q, np.nan), np.full_like(q, np.nan)
    naive(*arguments, round_probs, theirs)
    n_head = q.shape[1] // arguments[1].shape[3]
    cuts = sorted([0, *(min(s, n_head) for s in shares), n_head])
    for head, end in pairwise(cuts):
        attend.attention(*arguments, round_probs, head, end, ours)
    return ours.view(np.int32), theirs.view(np.int32)


@pytest.mark.parametrize("kind", ["f32", "f16"])
@given(
    seed=st.integers(0, 2**32),
    n_kv=st.integers(1, 3),
    group=st.integers(1, 9),
    width=st.sampled_from([16, 48, 64, 128]),
    start=st.one_of(st.integers(0, 70), st.integers(100, 420)),
    n_token=st.integers(1, 6),
    round_probs=st.booleans(),
    size=st.sampled_from([16, 32, 64]),
    shares=st.lists(st.integers(0, 27), max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_every_bit_is_that_of_one_head_at_a_time(
    kind, seed, n_kv, group, width, start, n_token, round_probs, size, shares
):
    arguments = case(seed, n_kv, group, width, start, n_token, kind, size)
    ours, theirs = both(arguments, round_probs=round_probs, shares=shares)
    assert np.array_equal(ours, theirs)


def test_the_comparison_sees_one_unit_in_the_last_place_of_one_key():
    arguments = case(1, 2, 4, 64, 33, 1, "f32")
    _, theirs = both(arguments)
    arguments[1].view(np.int32)[arguments[3][1], 0, 5, 3] ^= 1 << 12
    ours, _ = both(arguments)
    assert not np.array_equal(ours[:, : 4 * 64], theirs[:, : 4 * 64])
    assert np.array_equal(ours[:, 4 * 64 :], theirs[:, 4 * 64 :])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [1, 2])
def test_what_is_not_finite_does_what_it_did(bad, which):
    arguments = case(2, 2, 4, 32, 20, 2, "f32")
    arguments[which][arguments[3][0], 1, 3] = bad
    ours, theirs = both(arguments)
    finite = np.isfinite(theirs.view(np.float32))
    assert np.array_equal(finite, np.isfinite(ours.view(np.float32)))
    assert np.array_equal(ours[finite], theirs[finite])
    assert finite[:, : 4 * 32].all()


@kernel
def exponentials(x, out):
    for i in range(0, x.size, 16):
        simd.store_f32(out, i, simd64.narrow(simd64.exp_f64(simd64.widen(simd.load(x, i)))))


@kernel
def single_exponentials(x, out):
    for i in range(x.size):
        out[i] = np.float32(exp(np.float64(x[i])))


def test_sixteen_exponentials_are_sixteen_times_one():
    special = [0.0, -0.0, -708.0, -708.1, -1e30, -np.inf, np.nan, -745.2, -87.3, 88.0]
    x = np.concatenate([special, -np.geomspace(1e-30, 800, 4086)]).astype(np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    expected = np.empty_like(x)
    single_exponentials(x, expected)
    assert np.array_equal(np.isnan(out), np.isnan(x))
    assert np.array_equal(out[~np.isnan(x)].view(np.int32), expected[~np.isnan(x)].view(np.int32))
