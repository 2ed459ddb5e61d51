"""The numpy kernels against loops that are written from the definitions, one number at a time."""

from __future__ import annotations

import math

import kernel_inputs as inputs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.kernels import plain
from bitnet.kernels.variants import PLAIN
from crossval.envelope import LOCKED_OPERATION
from crossval.metrics import difference

FEW = settings(max_examples=15)


def locked(ours, theirs):
    return LOCKED_OPERATION.holds(difference(ours, theirs.astype(np.float32)).ratio)


def naive_int8_token(row):
    scale = np.float32(127.0 / max(max(abs(float(v)) for v in row), 1e-5))
    return [min(max(round(float(v * scale)), -128), 127) for v in row], [scale]


def naive_q8_k(row):
    codes, scales = [], []
    for begin in range(0, len(row), 256):
        block = row[begin : begin + 256]
        extreme = max(block, key=lambda v: abs(float(v)))
        with np.errstate(over="ignore", divide="ignore"):
            inverse = np.float32(-127) / extreme
        if not np.isfinite(inverse):
            inverse = np.float32(0)
        codes += [min(round(float(inverse * v)), 127) for v in block]
        scales.append(np.float32(1) / inverse if inverse else np.float32(0))
    return codes, scales


def naive_q8_0(row):
    codes, scales = [], []
    for begin in range(0, len(row), 32):
        block = row[begin : begin + 32]
        largest = max(abs(v) for v in block)
        with np.errstate(over="ignore", divide="ignore"):
            inverse = np.float32(127) / largest
            scales.append(np.float32(np.float16(largest / np.float32(127))))
        codes += [round(float(v * inverse)) if np.isfinite(inverse) else 0 for v in block]
    return codes, scales


@pytest.mark.parametrize(
    ("how", "naive"), [("int8_token", naive_int8_token), ("q8_k", naive_q8_k), ("q8_0", naive_q8_0)]
)
@given(x=inputs.activations())
@FEW
def test_quantisers(how, naive, x):
    q, scale, *total = inputs.quantise(plain, how, x)
    for t, row in enumerate(x):
        codes, scales = naive(row)
        assert q[t].tolist() == codes
        assert scale[t].reshape(-1).tolist() == scales
        if total:
            sums = np.array(codes).reshape(total[0][t].size, -1).sum(axis=1)
            assert total[0][t].reshape(-1).tolist() == sums.tolist()


def test_rounding_is_half_to_even_and_truncation_is_seen():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5] + [0] * 25], np.float32)
    q, _ = inputs.quantise(plain, "q8_0", x)
    assert q[0, :7].tolist() == [127, 0, 2, 2, 0, -2, -2]
    q, scale, total = inputs.quantise(plain, "int8_token", x)
    assert (q[0, :7].tolist(), scale[0], total[0]) == ([127, 0, 2, 2, 0, -2, -2], 1.0, 127)
    assert q[0].tolist() != np.trunc(x[0]).astype(int).tolist()


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6))
@FEW
def test_ternary_sums(seed, n_token, n_row):
    rng = np.random.default_rng(seed)
    trits, q = rng.integers(-1, 2, (n_row, 256), np.int8), rng.integers(-128, 128, (n_token, 256), np.int8)
    out = np.full((n_token, n_row), 99, np.int32)
    plain.ternary_sums(PLAIN, inputs.pack(trits), q, q.sum(axis=1), 0, n_row, out)
    for t in range(n_token):
        for r in range(n_row):
            assert out[t, r] == sum(int(w) * int(a) for w, a in zip(trits[r], q[t], strict=True))


@pytest.mark.parametrize("name", inputs.ROW_KERNELS)
@given(seed=st.integers(0, 2**32 - 1))
@FEW
def test_products(name, seed):
    """Against the float64 product of what the weights and the activations stand for."""
    call = inputs.row_kernel(name, np.random.default_rng(seed), 2, 5, 512)
    x = call.x.astype(np.float64)
    if name == "ternary_int8_token":
        q, scale, _ = inputs.quantise(plain, "int8_token", call.x)
        x = q / scale.astype(np.float64)[:, None]
    elif name in ("ternary_blocks", "q8_0_blocks"):
        q, scale, *_ = inputs.quantise(plain, "q8_k" if name == "ternary_blocks" else "q8_0", call.x)
        x = q * np.repeat(scale.astype(np.float64), 512 // scale.shape[1], axis=1)
    if name == "dense_f16":
        weight = call.weight.view(np.float16).astype(np.float64)
    elif name == "dense_bf16":
        weight = (call.weight.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    elif name == "dense_f32":
        weight = call.weight.astype(np.float64)
    else:
        ternary = name.startswith("ternary")
        weight = (call.trits if ternary else call.int8) * (float(call.scale) if ternary else 1.0)
        if name != "ternary_int8_token":
            weight = weight * np.repeat(call.block_scale.astype(np.float64), 512 // call.block_scale.shape[1], axis=1)
    expected = np.array([[math.fsum(w * a) for w in weight] for a in x])
    assert locked(call(plain), expected)
    assert not locked(call(plain), expected[::-1])  # the other token's products


@pytest.mark.parametrize("half_split", [True, False])
def test_rotary_pairs(half_split):
    x = np.arange(32, dtype=np.float32).reshape(1, 32)
    angle = np.linspace(0.1, 1, 8)[None]
    out = np.empty_like(x)
    plain.rotate(x, np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32), 16, half_split, out)
    expected = np.empty(32)
    for head in (0, 16):
        for i in range(8):
            a, b = (head + i, head + i + 8) if half_split else (head + 2 * i, head + 2 * i + 1)
            turned = complex(x[0, a], x[0, b]) * complex(math.cos(angle[0, i]), math.sin(angle[0, i]))
            expected[a], expected[b] = turned.real, turned.imag
    assert locked(out, expected[None])
    assert not locked(out, -expected[None])


def test_norm_and_gates():
    rng = np.random.default_rng(0)
    x, up = rng.standard_normal((2, 2, 16)).astype(np.float32)
    weight = rng.uniform(1, 2, 16).astype(np.float32)
    norm, relu2, silu = (np.empty_like(x) for _ in range(3))
    plain.rms_norm(x, weight, 0.5, norm)
    plain.relu2_gate(x, up, relu2)
    plain.silu_gate(x, up, silu)
    for t in range(2):
        root = math.sqrt(math.fsum(float(v) ** 2 for v in x[t]) / 16 + 0.5)
        assert locked(norm[t], np.array([float(v) / root * float(w) for v, w in zip(x[t], weight, strict=True)]))
        pairs = [(float(g), float(u)) for g, u in zip(x[t], up[t], strict=True)]
        assert locked(relu2[t], np.array([max(g, 0) ** 2 * u for g, u in pairs]))
        assert locked(silu[t], np.array([g / (1 + math.exp(-g)) * u for g, u in pairs]))
    assert not locked(relu2, silu)


def test_attention():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 64)).astype(np.float32)
    keys, values = rng.standard_normal((2, 2, 8, 16)).astype(np.float32)
    pages = np.array([2, 0], np.int32)  # entries 0 to 3, and 4 to 7, of pages of four
    pool = np.full((2, 3, 2, 4, 16), np.nan, np.float32)
    for store, entries in zip(pool, (keys, values), strict=True):
        store[pages] = entries.reshape(2, 2, 4, 16).transpose(1, 0, 2, 3)
    out, expected = np.empty_like(q), np.empty(q.shape)
    plain.attention(q, *pool, pages, 4, 0.25, False, 0, 4, out)  # noqa: FBT003  kernels take no keywords
    for t in range(3):
        for h in range(4):
            query = q[t, 16 * h : 16 * h + 16].astype(np.float64)
            weight = [math.exp(0.25 * float(query @ keys[h // 2, j])) for j in range(4 + t + 1)]
            mixed = sum(w * values[h // 2, j].astype(np.float64) for j, w in enumerate(weight)) / sum(weight)
            expected[t, 16 * h : 16 * h + 16] = mixed
    assert locked(out, expected)
    plain.attention(q, *pool, pages, 3, 0.25, False, 0, 4, out)  # noqa: FBT003  one entry of the cache too few
    assert not locked(out, expected)


@pytest.mark.parametrize("code", [-128, 127])
def test_the_largest_sums_do_not_wrap(code):
    trits = np.stack([np.full(6912, t, np.int8) for t in (-1, 0, 1)])
    q, out = np.full((2, 6912), code, np.int8), np.empty((2, 3), np.int32)
    plain.ternary_sums(PLAIN, inputs.pack(trits), q, q.sum(axis=1, dtype=np.int32), 0, 3, out)
    assert out.tolist() == [[-6912 * code, 0, 6912 * code]] * 2
