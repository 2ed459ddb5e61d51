"""Arguments of the kernels: random matrices and activations, and one way to call every kernel that takes rows."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bitnet.codecs.i2_s import trits_to_codes
from bitnet.kernels import plain, row_tiles
from bitnet.kernels.variants import PLAIN, choose, for_blocks

QUANTISERS = ("int8_token", "q8_k", "q8_0")
ROW_KERNELS = (
    "ternary_int8_token",
    "ternary_blocks",
    "ternary_float",
    "q8_0_blocks",
    "q8_0_float",
    "dense_f32",
    "dense_f16",
    "dense_bf16",
)


def pack(trits):
    """Trits [n_row, n_col] to codes [n_row, n_col / 4]."""
    return trits_to_codes(np.ascontiguousarray(trits, np.int8))


@st.composite
def activations(draw):
    """[1 to 5, 256 or 512] float32, with zeros, ties, subnormals and the largest values among them."""
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from([256, 512])))
    special = st.sampled_from([0.0, -0.0, 0.5, 1.5, -2.5, 127.0, -127.0, 1e-5, 1e-40, 3e38, -3e38])
    return draw(arrays(np.float32, shape, elements=special | st.floats(-(2.0**100), 2.0**100, width=32), fill=special))


def unit(name):
    """Rows that a compiled kernel's range counts as one: a ternary matrix is split by tiles of 16."""
    return 16 if name.startswith("ternary") else 1


def quantise(module, how, x):
    """Codes, scales and (but for q8_0) sums of codes."""
    blocks = {"int8_token": None, "q8_k": 256, "q8_0": 32}[how]
    shape = (len(x),) if blocks is None else (len(x), x.shape[1] // blocks)
    out = [np.full(x.shape, 99, np.int8), np.full(shape, 99, np.float32)]
    if how != "q8_0":
        out.append(np.full(shape, 99, np.int32))
    getattr(module, f"quantise_{how}")(x, *out)
    return out


class row_kernel:  # noqa: N801  it is called as a function is
    """A kernel over rows with its arguments; `magnitude` is Σ |weight · activation| of each result.

    Args:
        exact: Small whole numbers and scales that are powers of two, so that no sum rounds.
        bad: A value that is put into the middle of token 1.
    """

    def __init__(self, name, rng, n_token, n_row, n_col, *, exact=False, bad=None):
        self.name, self.n_row = name, n_row

        def scales(*shape):
            return (2.0 ** rng.integers(-3, 3, shape) if exact else rng.uniform(0.1, 2, shape)).astype(np.float32)

        x = rng.integers(-8, 9, (n_token, n_col)) if exact else rng.standard_normal((n_token, n_col))
        self.x = x.astype(np.float32)
        if exact:
            self.x[:, ::32] = 127  # so that every quantiser has the scale 1
        if bad is not None:
            self.x[1, n_col // 2] = bad
        self.scale = scales()[()]
        self.block_scale = scales(n_row, n_col // (32 if name.startswith("q8_0") else 256))
        self.trits = rng.integers(-1, 2, (n_row, n_col), np.int8)
        self.int8 = rng.integers(-128, 128, (n_row, n_col)).astype(np.int8)
        weight = self.int8 % 8 if exact else rng.standard_normal((n_row, n_col))
        kind = name.removeprefix("dense_")
        if kind == "f16":
            self.weight = weight.astype(np.float16).view(np.uint16)
        elif kind == "bf16":
            self.weight = (weight.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.int16)
        else:
            self.weight = weight.astype(np.float32)

    def __call__(self, module, *, row=0, end=None, out=None, token=None, without=None):
        """The products; of one `token` alone, or `without` one of the activations."""
        x = self.x if token is None else self.x[token : token + 1]
        out = np.full((len(x), self.n_row), np.nan, np.float32) if out is None else out
        step = 1 if module is plain else unit(self.name)
        rows = (row, -(-self.n_row // step) if end is None else end, out)
        v = PLAIN if module is plain else for_blocks(choose())
        tiles = row_tiles.pack(pack(self.trits), v.layout).data
        quantised = quantise(module, {"ternary_blocks": "q8_k", "q8_0_blocks": "q8_0"}.get(self.name, "int8_token"), x)
        if without is not None:
            x = x.copy()
            x[:, without] = 0
            if len(quantised) == 3:
                sums = quantised[2].reshape(len(x), -1)
                sums[:, without * sums.shape[1] // x.shape[1]] -= quantised[0][:, without]
            quantised[0][:, without] = 0
        if self.name == "ternary_int8_token":
            q, scale, total = quantised
            module.ternary_int8_token(v, tiles, q, total, scale, self.scale, *rows)
        elif self.name == "ternary_blocks":
            q, scale, total = quantised
            module.ternary_blocks(v, tiles, self.block_scale, q, total, scale, self.scale, *rows)
        elif self.name == "ternary_float":
            module.ternary_float(v, tiles, self.block_scale, x, self.scale, *rows)
        elif self.name == "q8_0_blocks":
            module.q8_0_blocks(self.int8, self.block_scale, *quantised, *rows)
        elif self.name == "q8_0_float":
            module.q8_0_float(self.int8, self.block_scale, x, *rows)
        else:
            module.dense(self.weight, x, *rows)
        return out

    @property
    def magnitude(self):
        """Σ |weight · activation|, [n_token, n_row] float64."""
        x = np.abs(self.x).astype(np.float64)
        if self.name == "ternary_int8_token":
            return x.max(axis=1, keepdims=True) / 127 * (x.shape[1] * 127) * float(self.scale) * np.ones(self.n_row)
        if self.name.startswith("dense"):
            kind = self.name.removeprefix("dense_")
            w = self.weight.view(np.float16) if kind == "f16" else self.weight
            w = (w.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else w
            return x @ np.abs(w).astype(np.float64).T
        w = self.trits if self.name.startswith("ternary") else self.int8
        spread = np.repeat(self.block_scale, self.x.shape[1] // self.block_scale.shape[1], axis=1)
        scale = float(self.scale) if self.name.startswith("ternary") else 1.0
        return (x + x.max(axis=1, keepdims=True) / 127) @ (np.abs(w.astype(np.float64)) * spread).T * scale
