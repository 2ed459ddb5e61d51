"""Every kind of matrix times every kind of activation, against float64 on exactly the rounded inputs."""

from __future__ import annotations

import threading
from dataclasses import replace

import kernel_inputs as inputs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import linear
from bitnet.config import Numerics
from bitnet.errors import UsageError
from bitnet.kernels import plain
from bitnet.kernels.row_tiles import as_rows
from bitnet.kernels.variants import VARIANTS, runs_here
from bitnet.linear import Activations, Backend, DenseMatrix, Int8Matrix, Matrix, TernaryMatrix
from crossval.envelope import INTEGER_SUMS, LOCKED_OPERATION
from crossval.metrics import difference
from reference import rounding

HOWS = ("int8_token", "q8_k", "q8_0", "f16", "bf16", "none")
KINDS = ("ternary", "ternary with block scales", "int8", "f32", "f16", "bf16")
N_ROW, N_COL = 40, 512
SCALE = np.float32(0.37)


def matrix(kind, seed=0):
    """A matrix and its weights in float64, tensor scale applied."""
    rng = np.random.default_rng(seed)
    kept = {"name": "w", "type_name": kind, "n_row": N_ROW, "n_col": N_COL, "n_bytes": 1000, "scale": SCALE}
    if kind.startswith("ternary"):
        trits = rng.integers(-1, 2, (N_ROW, N_COL), np.int8)
        blocks = rng.uniform(0.5, 2, (N_ROW, 2)).astype(np.float32) if "block" in kind else None
        weights = trits * float(SCALE) * (1 if blocks is None else np.repeat(blocks.astype(np.float64), 256, axis=1))
        return TernaryMatrix(**kept, tiles=as_rows(inputs.pack(trits)), block_scale=blocks), weights
    if kind == "int8":
        data = rng.integers(-128, 128, (N_ROW, N_COL)).astype(np.int8)
        blocks = rng.uniform(0.01, 0.02, (N_ROW, N_COL // 32)).astype(np.float32)
        weights = data * np.repeat(blocks.astype(np.float64), 32, axis=1) * float(SCALE)
        return Int8Matrix(**kept, data=data, block_scale=blocks), weights
    data = rng.standard_normal((N_ROW, N_COL)).astype(np.float32)
    if kind == "f16":
        half = data.astype(np.float16)
        return DenseMatrix(**kept, data=half.view(np.uint16)), half.astype(np.float64) * float(SCALE)
    if kind == "bf16":
        bits = (data.view(np.uint32) >> 16).astype(np.uint16)
        exact = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return DenseMatrix(**kept, data=bits.view(np.int16)), exact * float(SCALE)
    return DenseMatrix(**kept, data=data), data * float(SCALE)


def packed(backend, m):
    """A matrix as a backend wants it."""
    return backend.pack(m) if isinstance(m, TernaryMatrix) else m


def exactly_rounded(x, how):
    """What the quantiser's integers and scales stand for, in float64."""
    if how in inputs.QUANTISERS:
        q, scale, *_ = inputs.quantise(plain, how, x)
        if how == "int8_token":
            return q / scale.astype(np.float64)[:, None]
        return q * np.repeat(scale.astype(np.float64), x.shape[1] // scale.shape[1], axis=1)
    if how == "f16":
        return x.astype(np.float16).astype(np.float64)
    if how == "bf16":
        nearest = (x.view(np.uint32).astype(np.uint64) + 0x7FFF + ((x.view(np.uint32) >> 16) & 1)) >> 16 << 16
        return nearest.astype(np.uint32).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def inputs_of(seed=1, n_token=3):
    return np.random.default_rng(seed).standard_normal((n_token, N_COL)).astype(np.float32)


def ratio(ours, expected):
    return difference(ours, expected.astype(np.float32)).ratio


@pytest.mark.parametrize("device", ["cpu", "plain"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair(kind, how, device):
    m, weights = matrix(kind)
    x = inputs_of()
    backend = Backend(device, 1)
    ours = backend.product(packed(backend, m), backend.activations(x), how, "projection")
    assert ours.dtype == np.float32
    assert LOCKED_OPERATION.holds(ratio(ours, exactly_rounded(x, how) @ weights.T))
    for other in HOWS:  # the comparison tells every other rounding, and a forgotten scale
        if other != how:
            assert not LOCKED_OPERATION.holds(ratio(ours, exactly_rounded(x, other) @ weights.T)), other
    assert not LOCKED_OPERATION.holds(ratio(ours, exactly_rounded(x, how) @ weights.T / float(SCALE)))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind, how, monkeypatch):
    monkeypatch.setattr(linear, "_MIN_SHARE", 1)
    m, _ = matrix(kind)
    one, *others = (Backend("cpu", n) for n in (1, 2, 3, 64))
    m = packed(one, m)
    expected = one.product(m, one.activations(inputs_of()), how, "head")
    for backend in others:
        assert np.array_equal(backend.product(m, backend.activations(inputs_of()), how, "head"), expected)


def test_the_ledger_counts_every_call():
    backend = Backend("cpu", 2)
    ternary, half = packed(backend, matrix("ternary")[0]), matrix("f16")[0]
    a = backend.activations(inputs_of())
    for _ in range(2):
        backend.product(ternary, a, "int8_token", "projection")
    backend.product(half, a, "none", "head")
    head, projection = list(backend.ledger)
    assert (head[0].kernel, head[0].role, head[0].weight_type) == ("cpu.dense.none", "head", "f16")
    assert (projection[0].kernel, projection[0].weight_type) == ("cpu.ternary_int8_token.int8_token", "ternary")
    assert (projection[1].calls, projection[1].rows, projection[1].bytes) == (2, 2 * 3 * N_ROW, 2 * ternary.n_bytes)
    assert ternary.n_bytes == ternary.tiles.data.nbytes >= N_ROW * N_COL * 1.6 / 8
    assert (head[1].calls, head[1].rows, head[1].bytes) == (1, 3 * N_ROW, 1000)
    assert Backend("plain", 1).ledger is not backend.ledger


@pytest.mark.parametrize(
    ("kind", "how", "kernel"),
    [
        ("ternary", "int8_token", "ternary_int8_token"),
        ("ternary", "q8_k", "ternary_blocks"),
        ("ternary", "none", "ternary_float"),
        ("ternary with block scales", "int8_token", "ternary_float"),
        ("ternary with block scales", "q8_k", "ternary_blocks"),
        ("int8", "q8_0", "q8_0_blocks"),
        ("int8", "int8_token", "q8_0_float"),
        ("bf16", "int8_token", "dense"),
    ],
)
def test_which_kernel_ran(kind, how, kernel):
    backend = Backend("plain", 1)
    backend.product(matrix(kind)[0], backend.activations(inputs_of()), how, "projection")
    [(use, _)] = backend.ledger
    assert use.kernel == f"plain.{kernel}.{how}"
    assert use.isa == "numpy"


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("how", ["int8_token", "none", "q8_k"])
def test_every_variant_gives_the_same_bits_and_says_which_it_is(kind, how):
    found = []
    for v in (v for v in VARIANTS.values() if runs_here(v) and (how != "q8_k" or v.layout == "2-bit")):
        backend = Backend("cpu", 1, v)
        m = backend.pack(matrix(kind)[0])
        assert m.tiles.layout == v.layout
        assert np.array_equal(m.codes, matrix(kind)[0].codes)
        found.append(backend.product(m, backend.activations(inputs_of()), how, "projection"))
        [(use, _)] = backend.ledger
        assert use.isa == v.isa
    assert len(found) >= 2
    assert all(np.array_equal(one.view(np.int32), found[0].view(np.int32)) for one in found)


def test_columns_that_fill_no_tile_are_padded():
    """384 columns are 19.2 tiles of 20."""
    backend, codes = Backend("cpu", 1, VARIANTS["generic-base3"]), matrix("ternary")[0].codes[:, :96]
    m = replace(matrix("ternary")[0], n_col=384, tiles=as_rows(np.ascontiguousarray(codes)))
    x = inputs_of()[:, :384]
    expected = Backend("plain", 1).product(m, Activations(x, plain), "int8_token", "head")
    assert np.array_equal(backend.product(backend.pack(m), backend.activations(x), "int8_token", "head"), expected)


def test_a_matrix_packed_for_other_kernels_is_refused():
    backend = Backend("cpu", 1, VARIANTS["generic"])
    m = matrix("ternary")[0]
    for use in (
        lambda: backend.product(m, backend.activations(inputs_of()), "int8_token", "projection"),
        lambda: backend.integer_sums(m, inputs_of()),
    ):
        with pytest.raises(UsageError, match="packed as rows, and the kernels generic read 2-bit"):
            use()
    assert backend.pack(backend.pack(m)).tiles.layout == "2-bit"


def test_an_unknown_kind_of_matrix_is_refused():
    bare = Matrix(name="w", type_name="?", n_row=1, n_col=16, n_bytes=1, scale=np.float32(1))
    with pytest.raises(UsageError, match="no kernel for a Matrix"):
        Backend("plain", 1).product(bare, Activations(np.zeros((1, 16), np.float32), plain), "none", "head")


def test_activations_are_quantised_once_for_all_that_share_them():
    calls = []

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(plain, name)

    a = Activations(inputs_of(), Counting())
    for _ in range(3):
        assert a.int8_token is a.int8_token
        assert a.q8_k is a.q8_k
        assert a.q8_0 is a.q8_0
    assert sorted(calls) == ["quantise_int8_token", "quantise_q8_0", "quantise_q8_k"]


@pytest.mark.parametrize("how", linear.INT8_TOKEN)
def test_int8_codes_and_scales_are_those_of_the_reference(how):
    telling = np.full((1, N_COL), 0.17716536, np.float32)  # 7.5 in float32 after its scale, a little less in truth
    telling[0, 0] = 3.0
    x = np.concatenate([inputs_of(), telling, np.zeros((1, N_COL), np.float32)])
    q, scale, total = Activations(x, plain).int8(how)
    expected, expected_scale = rounding.int8_token(x, kind=how)
    assert np.array_equal(q, expected)
    assert np.array_equal(scale, expected_scale[:, 0])
    assert np.array_equal(total, expected.sum(axis=1))
    assert q[-2, 1] == {"int8_token_fused": 7}.get(how, 8)


@pytest.mark.parametrize("how", linear.INT8_TOKEN)
def test_a_token_that_is_not_finite_has_no_scale(how):
    x = inputs_of()
    x[1, 3], x[2, 5] = np.nan, np.inf
    q, scale, total = Activations(x, plain).int8(how)
    assert np.isnan(scale).tolist() == [i in (1, 2) for i in range(len(x))]
    assert not q[1:3].any()
    assert np.array_equal(total, q.sum(axis=1, dtype=np.int32))


@pytest.mark.parametrize("device", ["cpu", "plain"])
def test_integer_sums_are_those_of_int64(device, monkeypatch):
    monkeypatch.setattr(linear, "_MIN_SHARE", 1)
    m, _ = matrix("ternary")
    trits = np.random.default_rng(0).integers(-1, 2, (N_ROW, N_COL), np.int8).astype(np.int64)
    x = inputs_of()
    q = inputs.quantise(plain, "int8_token", x)[0].astype(np.int64)
    backend = Backend(device, 3)
    found = backend.integer_sums(backend.pack(m), x)
    assert INTEGER_SUMS.holds(float((found != q @ trits.T).sum()))
    trits[7, 9] = 1 if trits[7, 9] != 1 else 0
    assert not INTEGER_SUMS.holds(float((found != q @ trits.T).sum()))


@given(n=st.integers(0, 70), n_threads=st.integers(1, 9), work=st.sampled_from([0, 1 << 17, 1 << 18, 1 << 30]))
@settings(max_examples=60)
def test_shares_cover_every_row_once(n, n_threads, work):
    seen, lock = [], threading.Lock()

    def run(begin, end):
        with lock:
            seen.append((begin, end))

    Backend("plain", n_threads).split(n, work, run)
    assert [i for begin, end in sorted(seen) for i in range(begin, end)] == list(range(n))
    assert len(seen) == 1 or all(begin < end for begin, end in seen)
    assert len(seen) == 1 or (n_threads > 1 and all((end - begin) * work >= n << 19 or end == n for begin, end in seen))


def test_a_thread_that_is_slow_takes_less():
    waiting, done, lock = threading.Event(), [], threading.Lock()

    def run(begin, end):
        if threading.current_thread() is not threading.main_thread():
            waiting.wait(20)
        with lock:
            done.append((begin, end, threading.current_thread()))
            if sum(b - a for a, b, thread in done if thread is threading.main_thread()) >= 500:
                waiting.set()

    Backend("plain", 2).split(1000, 1 << 40, run)
    assert waiting.is_set()  # more than half were done by the other one
    assert [i for begin, end, _ in sorted(done, key=lambda d: d[0]) for i in range(begin, end)] == list(range(1000))


def test_a_fault_in_any_thread_reaches_the_caller():
    def run(begin, end):
        if begin > 0:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Backend("plain", 3).split(6, 1 << 30, run)


def test_bfloat16_is_half_to_even_for_every_pattern_and_keeps_nan():
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (high | np.uint32(low)).view(np.float32)
        ours = linear.round_bf16(x)
        assert np.array_equal(np.isnan(ours), np.isnan(x))
        up = low > 0x8000 or (low == 0x8000)
        expected = high + np.where(up & ((low > 0x8000) | ((high >> 16) & 1 == 1)), np.uint32(0x10000), np.uint32(0))
        finite = ~np.isnan(x)
        assert np.array_equal(ours.view(np.uint32)[finite], expected[finite])


def test_values_beyond_a_format_become_infinite_without_a_warning():
    x = np.full((1, N_COL), 3e38, np.float32)
    backend = Backend("cpu", 1)
    for how in ("f16", "q8_0"):
        assert not np.isfinite(Activations(x, plain).rounded(how)).any()
        for kind in KINDS:
            assert not np.isfinite(
                backend.product(packed(backend, matrix(kind)[0]), backend.activations(x), how, "head")
            ).all()


@pytest.mark.parametrize(
    ("head", "one", "several"),
    [("f32", "none", "none"), ("f16", "f16", "f16"), ("bf16", "bf16", "bf16"), ("f16_decode", "f16", "none")],
)
def test_rounding_before_the_head(head, one, several):
    numerics = Numerics(head=head)
    assert (linear.head_rounding(numerics, 1), linear.head_rounding(numerics, 2)) == (one, several)


def test_what_is_shared_is_done_by_as_many_threads_as_it_is_worth():
    for n_threads, work, most in ((1, 1 << 30, 1), (3, 1 << 30, 3), (3, 1, 1), (3, 1 << 21, 2)):
        seen, left, begun = [], list(range(50)), threading.Barrier(most)

        def run(thread, left=left, seen=seen, begun=begun):
            begun.wait(20)
            while left:
                seen.append((thread, left.pop()))

        Backend("cpu", n_threads).share(work, run)
        assert sorted(i for _, i in seen) == list(range(50))
        assert {thread for thread, _ in seen} <= set(range(most))


def test_a_thread_that_has_not_begun_is_not_waited_for():
    backend, held, seen = Backend("cpu", 2), threading.Event(), []
    backend.share(1 << 30, lambda _thread: None)  # makes the pool
    occupied = backend._others.submit(lambda: held.wait(20))
    backend.share(1 << 30, seen.append)
    assert seen == [0]
    held.set()
    occupied.result()
    assert seen == [0]


def test_what_fails_in_another_thread_is_not_lost():
    both = threading.Barrier(2)

    def run(thread):
        both.wait(20)
        if thread == 1:
            raise MemoryError

    with pytest.raises(MemoryError):
        Backend("cpu", 2).share(1 << 30, run)
