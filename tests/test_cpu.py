"""The compiled kernels: integers equal int64 numpy, floats stay in proven bounds, splits and batches change no bit."""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import pairwise

import kernel_inputs as inputs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.kernels import cpu, plain
from bitnet.kernels.compile import kernel
from crossval.envelope import LOCKED_OPERATION
from crossval.metrics import difference

SEEDS = st.integers(0, 2**32 - 1)
TOKENS = st.integers(1, 5)
FEW = settings(max_examples=20)  # each is a matrix of thousands of random numbers
UNIT = 2.0**-24  # half a unit in the last place of float32, relative


def same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs, equal_nan=True), f"{(ours != theirs).sum()} of {ours.size} differ"


def locked(ours, theirs):
    found = difference(ours, theirs)
    assert found.compared
    assert LOCKED_OPERATION.holds(found.ratio), found.ratio


# --- quantisers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", inputs.QUANTISERS)
@given(x=inputs.activations(), bad=st.sampled_from([None, np.nan, np.inf, -np.inf]), where=st.integers(0, 255))
@FEW
def test_a_quantiser_gives_the_bits_of_plain_numpy(how, x, bad, where):
    if bad is not None:
        x[-1, where] = bad
    for ours, theirs in zip(inputs.quantise(cpu, how, x), inputs.quantise(plain, how, x), strict=True):
        same_bits(ours, theirs)


@pytest.mark.parametrize("how", inputs.QUANTISERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_quantised_to_a_number(how, bad):
    x = np.ones((3, 512), np.float32)
    x[1, 300] = bad
    q, scale, *_ = inputs.quantise(cpu, how, x)
    width = x.shape[1] // scale.reshape(3, -1).shape[1]
    hit = np.isnan(scale.reshape(3, -1))
    assert hit.sum() == 1
    assert hit[1, 300 // width]
    assert not q.reshape(3, -1, width)[hit].any()
    assert (np.abs(q.reshape(3, -1, width)[~hit]) == 127).all()


@pytest.mark.parametrize("how", inputs.QUANTISERS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, -1e-40, 3e-37])
def test_a_block_of_almost_nothing_is_zero(how, value):
    """127 / 3e-37 is no float32: the inverse scale would be infinite, and infinity · 0 is NaN."""
    x = np.zeros((2, 256), np.float32)
    x[:, 7] = value
    q, scale, *totals = inputs.quantise(cpu, how, x)
    assert not q.any()
    assert np.isfinite(scale).all()
    assert not any(t.any() for t in totals)


# --- matrices (the sums of trits: test_ternary.py) ------------------------------------------------------------------


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
@given(seed=SEEDS, n_token=TOKENS, n_row=st.integers(1, 20), groups=st.integers(1, 4))
@FEW
def test_products_of_whole_numbers_are_exact(name, seed, n_token, n_row, groups):
    """Small integers and scales that are powers of two: no order of summation rounds, so bits are equal."""
    rng = np.random.default_rng(seed)
    call = inputs.row_kernel(name, rng, n_token, n_row, 256 * groups, exact=True)
    same_bits(call(cpu), call(plain))


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
@given(seed=SEEDS, n_token=TOKENS, n_row=st.integers(1, 20), groups=st.integers(1, 4))
@FEW
def test_products_of_reals_stay_in_the_bound_of_their_order(name, seed, n_token, n_row, groups):
    """A lane adds n / 16 products, each rounded once, the tree four times; scales round three times more."""
    rng = np.random.default_rng(seed)
    n_col = 256 * groups
    call = inputs.row_kernel(name, rng, n_token, n_row, n_col)
    error = np.abs(call(cpu).astype(np.float64) - call(plain))
    assert (error <= (n_col / 16 + 7) * UNIT * call.magnitude).all()


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
def test_that_bound_catches_a_wrong_scale_and_a_lost_product(name):
    call = inputs.row_kernel(name, np.random.default_rng(1), 3, 8, 1024)
    bound = (1024 / 16 + 7) * UNIT * call.magnitude
    right = call(plain)
    assert (np.abs(right * np.float32(1.001) - right) > bound).any()
    for drop in (0, 511, 1023):
        assert (np.abs(call(cpu, without=drop) - right) > bound).any()


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
@given(seed=SEEDS, n_token=TOKENS, borders=st.lists(st.integers(0, 17), max_size=4))
@FEW
def test_rows_may_be_split_anywhere(name, seed, n_token, borders):
    unit = inputs.unit(name)
    call = inputs.row_kernel(name, np.random.default_rng(seed), n_token, 17 * unit, 256)
    whole, parts = call(cpu), np.full((n_token, 17 * unit), np.nan, np.float32)
    borders = sorted([0, *borders, 17])
    for row, end in pairwise(borders):
        before, mine = parts.copy(), np.s_[unit * row : unit * end]
        call(cpu, row=row, end=end, out=parts)
        same_bits(np.delete(parts, mine, axis=1), np.delete(before, mine, axis=1))
    same_bits(parts, whole)


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
@given(seed=SEEDS)
@FEW
def test_a_token_does_not_see_its_batch(name, seed):
    call = inputs.row_kernel(name, np.random.default_rng(seed), 5, 9, 512)
    whole = call(cpu)
    for t in range(5):
        same_bits(call(cpu, token=t), whole[t : t + 1])


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("module", [cpu, plain])
def test_a_token_that_is_not_finite_stays_so_and_stays_alone(name, bad, module):
    clean = inputs.row_kernel(name, np.random.default_rng(3), 3, 8, 256)(module)
    dirty = inputs.row_kernel(name, np.random.default_rng(3), 3, 8, 256, bad=bad)(module)
    assert not np.isfinite(dirty[1]).any()
    same_bits(dirty[[0, 2]], clean[[0, 2]])


# --- the rest of a layer -------------------------------------------------------------------------------------------


@given(SEEDS, TOKENS, st.sampled_from([16, 64, 512]), st.sampled_from([1e-5, 1e-6]), st.sampled_from([1e-6, 1, 1e6]))
@FEW
def test_rms_norm_is_its_definition_to_the_bit(seed, n_token, n, eps, size):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n_token, n)) * size).astype(np.float32)
    x[0] = 0
    weight = rng.uniform(0.5, 1.5, n).astype(np.float32)
    out, expected = np.empty_like(x), np.empty_like(x)
    cpu.rms_norm(x, weight, np.float32(eps), out)
    for t in range(n_token):
        mean = np.float32(np.cumsum((x[t] * x[t]).astype(np.float64))[-1] / n)
        scale = np.float32(1) / np.sqrt(mean + np.float32(eps))
        expected[t] = x[t] * scale * weight
    same_bits(out, expected)
    plain.rms_norm(x, weight, np.float32(eps), expected)
    locked(out, expected)
    if n_token > 1:
        with pytest.raises(AssertionError):  # the comparison sees a forgotten weight
            locked(out / weight, expected)


@pytest.mark.parametrize("half_split", [True, False])
@given(seed=SEEDS, n_token=TOKENS, n_head=st.integers(1, 4), head_dim=st.sampled_from([16, 64, 128]))
@FEW
def test_rotary_embedding(half_split, seed, n_token, n_head, head_dim):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_token, n_head * head_dim)).astype(np.float32)
    angle = rng.uniform(0, 6, (n_token, head_dim // 2))
    angle[0] = 0
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    out, expected = np.empty_like(x), np.empty_like(x)
    cpu.rotate(x, cos, sin, head_dim, half_split, out)
    plain.rotate(x, cos, sin, head_dim, half_split, expected)
    same_bits(out[0], x[0])  # angle 0
    locked(out, expected)
    if n_token > 1:
        cpu.rotate(x, cos, sin, head_dim, not half_split, out)
        with pytest.raises(AssertionError):
            locked(out, expected)


@kernel
def exponentials(x, out):
    """`cpu.exp` of all."""
    for i in range(x.size):
        out[i] = cpu.exp(x[i])


def exp(x):
    """One of them."""
    out = np.empty(1)
    exponentials(np.array([x], np.float64), out)
    return out[0]


def test_exp_is_within_two_units_in_the_last_place():
    grid = np.concatenate([np.linspace(-708, 0, 4001), np.linspace(-1e-3, 0, 101), -np.geomspace(1e-300, 1, 201)])
    grid = np.concatenate([grid, np.arange(-1021, 1) * np.log(2), [-np.nextafter(0, 1), 1.0, 709.0]])
    worst = 0.0
    with localcontext() as context:
        context.prec = 40
        for x in grid:
            exact, ours = Decimal(float(x)).exp(), exp(x)
            worst = max(worst, float(abs(Decimal(ours) - exact) / Decimal(float(np.spacing(float(exact))))))
    assert 0 < worst < 2
    assert exp(0.0) == 1.0
    assert exp(-708.0) > 0.0
    assert [exp(x) for x in (-708.1, -1e6, -np.inf)] == [0.0, 0.0, 0.0]
    assert np.isnan(exp(np.nan))


@given(SEEDS, TOKENS, st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
@FEW
def test_gates(seed, n_token, size):
    rng = np.random.default_rng(seed)
    gate, up = ((rng.standard_normal((n_token, 48)) * s).astype(np.float32) for s in (size, 1.0))
    gate[0, :3] = 0.0, -0.0, np.nan
    ours, theirs = np.empty_like(gate), np.empty_like(gate)
    cpu.relu2_gate(gate, up, ours)
    plain.relu2_gate(gate, up, theirs)
    same_bits(ours, theirs)
    assert np.isnan(ours[0, 2])
    cpu.silu_gate(gate, up, ours)
    plain.silu_gate(gate, up, theirs)
    # two exponentials, each within 2 units of float64, then rounded to float32: neighbours at most
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    assert (np.abs(ours - theirs) <= 2 * UNIT * np.abs(theirs))[~np.isnan(ours)].all()
    naive = gate.astype(np.float64) / (1 + np.exp(-np.clip(gate.astype(np.float64), -700, None))) * up
    locked(ours[:, 3:], naive[:, 3:].astype(np.float32))
    cpu.relu2_gate(gate, up, ours)
    with pytest.raises(AssertionError):
        locked(ours[:, 3:], theirs[:, 3:])


# --- attention -----------------------------------------------------------------------------------------------------


class Attention:
    """Random queries and a cache of 48 entries, of which those past the last token are NaN: nobody may read them.

    The entries lie in pages of 16 that are strewn over a pool of 7; the other pages are NaN too.
    """

    def __init__(self, seed, *, n_token=3, n_head=4, n_kv=2, width=32, start=0, kind=np.float32, size=16):
        rng = np.random.default_rng(seed)
        self.q = rng.standard_normal((n_token, n_head * width)).astype(np.float32)
        entries = rng.standard_normal((2, n_kv, 48, width)).astype(np.float16)
        entries[:, :, start + n_token :] = np.nan
        self.entries = [c.view(np.uint16) if kind == np.uint16 else c.astype(np.float32) for c in entries]
        self.start, self.n_head, self.scale = start, n_head, np.float32(width**-0.5)
        self.strew(rng, size)

    def strew(self, rng, size):
        """Put the entries into pages of `size`, anywhere in the pool."""
        n_kv, n_entry, width = self.entries[0].shape
        self.pages = rng.permutation(n_entry // size + 4)[: n_entry // size].astype(np.int32)
        self.cache = []
        for entries in self.entries:
            nothing = np.nan if entries.dtype == np.float32 else np.float16(np.nan).view(np.uint16)
            pool = np.full((n_entry // size + 4, n_kv, size, width), nothing, entries.dtype)
            pool[self.pages] = entries.reshape(n_kv, -1, size, width).transpose(1, 0, 2, 3)
            self.cache.append(pool)
        return self

    def entry(self, key_or_value, head, position):
        """The stored vector, to be written."""
        size = self.cache[0].shape[2]
        return self.cache[key_or_value][self.pages[position // size], head, position % size]

    def __call__(self, module, *, round_probs=False, heads=None, out=None, tokens=None):
        first, last = tokens or (0, len(self.q))
        q = np.ascontiguousarray(self.q[first:last])
        out = np.full_like(q, np.nan) if out is None else out
        head, end = heads or (0, self.n_head)
        module.attention(q, *self.cache, self.pages, self.start + first, self.scale, round_probs, head, end, out)
        return out


ATTENTIONS = st.builds(
    Attention,
    SEEDS,
    n_token=TOKENS,
    n_head=st.sampled_from([2, 4, 6]),
    width=st.sampled_from([16, 64, 128]),
    start=st.integers(0, 30),
    kind=st.sampled_from([np.float32, np.uint16]),
)


@given(ATTENTIONS)
@FEW
def test_attention(attention):
    ours, theirs = attention(cpu), attention(plain)
    locked(ours, theirs)
    width = attention.cache[0].shape[3]
    other_group = np.roll(ours.reshape(len(ours), -1, width), 1, axis=1).reshape(ours.shape)
    with pytest.raises(AssertionError):
        locked(other_group, theirs)


@given(ATTENTIONS, st.integers(0, 6))
@FEW
def test_heads_and_tokens_may_be_split_anywhere(attention, border):
    whole, parts = attention(cpu), np.full_like(attention.q, np.nan)
    border = min(border, attention.n_head)
    attention(cpu, heads=(border, attention.n_head), out=parts)
    attention(cpu, heads=(0, border), out=parts)
    same_bits(parts, whole)
    one_by_one = [attention(cpu, tokens=(t, t + 1)) for t in range(len(whole))]
    same_bits(np.concatenate(one_by_one), whole)


@given(ATTENTIONS, SEEDS)
@FEW
def test_where_the_pages_lie_does_not_matter(attention, seed):
    rng = np.random.default_rng(seed)
    for module in (cpu, plain):
        strewn = attention.strew(rng, 16)(module)
        for size in (16, 48):  # 48: in one piece
            same_bits(attention.strew(rng, size)(module), strewn)
        attention.pages = (attention.pages + 1) % np.int32(len(attention.cache[0]))
        with pytest.raises(AssertionError):
            same_bits(attention(module), strewn)


@pytest.mark.parametrize("module", [cpu, plain])
def test_attention_where_it_is_exact(module):
    attention = Attention(0, n_token=4, n_head=2, n_kv=1)
    values = np.arange(4 * 32, dtype=np.float32).reshape(4, 32)
    attention.q[:] = 0  # every probability is the same: 1, 1/2, 1/3, 1/4
    for t in range(4):
        attention.entry(1, 0, t)[:] = values[t]
    out = attention(module).reshape(4, 2, 32)
    for t in (0, 1, 3):
        same_bits(out[t], np.tile(values[: t + 1].mean(axis=0), (2, 1)))
    for t in range(4):
        attention.entry(1, 0, t)[:] = 1
    third = np.float32(np.float16(np.float32(1 / 3)))
    same_bits(attention(module, round_probs=True)[2], np.full(64, 3 * third))
    same_bits(attention(module)[2], np.ones(64, np.float32))  # 3 · float32(1/3) rounds to 1


@pytest.mark.parametrize("module", [cpu, plain])
def test_a_score_that_is_not_a_number_reaches_its_own_tokens_only(module):
    attention = Attention(1, n_token=4)
    clean = attention(module)
    for key_or_value in (0, 1):
        attention.entry(key_or_value, 0, 2)[:] = np.nan  # of the first group, at position 2
        dirty = attention(module).reshape(4, 4, 32)
        assert np.isnan(dirty[2:, :2]).all()
        same_bits(dirty[:2], clean.reshape(4, 4, 32)[:2])
        same_bits(dirty[:, 2:], clean.reshape(4, 4, 32)[:, 2:])
        attention.entry(0, 0, 2)[:] = 0
