"""Rotary tables: each way of making angles, told from the others, against exact ones."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
from test_config import model_config

from bitnet import rope
from bitnet.config import Numerics
from bitnet.rope import rotary_tables

CONFIG = model_config(head_dim=64, rope_theta=500000.0)


def exact(position, i, d=64, theta=500000):
    """Cos and sin of position · theta^(−2i/d) to 40 digits, by their series."""
    with localcontext() as context:
        context.prec = 60
        angle = Decimal(position) * Decimal(theta) ** (Decimal(-2 * i) / Decimal(d))
        angle -= (angle / TWO_PI).to_integral_value() * TWO_PI
        term, sums = Decimal(1), [Decimal(0), Decimal(0)]
        for n in range(60):
            sums[n % 2] += term * (1 if n % 4 < 2 else -1)
            term *= angle / (n + 1)
        return sums


TWO_PI = Decimal("6.283185307179586476925286766559005768394338798750211641949889184615632812572417997256069650684")


@pytest.mark.parametrize("position", [0, 1, 7, 500, 4095])
def test_f64_tables_are_correctly_rounded(position):
    cos, sin = rotary_tables(CONFIG, Numerics(rope="f64"), position, 1)
    for i in range(0, 32, 3):
        c, s = exact(position, i)
        # half a unit of float32, and the 4096 · 2^-52 that a float64 angle may be off by
        for ours, value in ((cos[0, i], c), (sin[0, i], s)):
            assert abs(float(Decimal(float(ours)) - value)) <= float(np.spacing(abs(ours))) / 2 + 1e-12


@pytest.mark.parametrize("style", ["f64", "f32", "f32_iterated"])
def test_position_zero_turns_nothing_and_tables_do_not_depend_on_the_batch(style):
    numerics = Numerics(rope=style)
    cos, sin = rotary_tables(CONFIG, numerics, 0, 20)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (20, 32)
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()
    for start, n in ((0, 7), (7, 1), (8, 12)):
        part = rotary_tables(CONFIG, numerics, start, n)
        assert np.array_equal(part, (cos[start : start + n], sin[start : start + n]))


def test_each_way_has_its_own_rounding():
    """Over 4,000 positions the float32 angles drift from the exact ones by position · 2^-24, and from each other."""
    tables = {s: rotary_tables(CONFIG, Numerics(rope=s), 0, 4000)[0] for s in ("f64", "f32", "f32_iterated")}
    for one, other in (("f64", "f32"), ("f64", "f32_iterated"), ("f32", "f32_iterated")):
        error = np.abs(tables[one].astype(np.float64) - tables[other]).max()
        assert 0 < error < 4000 * 32 * 2.0**-24  # at most 32 roundings, each relative to the angle


def test_float32_angles_are_products_of_float32():
    position, i = 1234, 5
    cos, sin = rotary_tables(CONFIG, Numerics(rope="f32"), position, 1)
    frequency = np.float32(1) / np.float32(500000) ** (np.float32(2 * i) / np.float32(64))
    angle = float(np.float32(position) * np.float32(frequency))
    assert (cos[0, i], sin[0, i]) == (np.float32(np.cos(angle)), np.float32(np.sin(angle)))


def test_iterated_angles_are_multiplied_one_by_one(monkeypatch):
    monkeypatch.setattr(rope, "_c_library", lambda: (lambda x: x, lambda x: x))  # so the tables are the angles
    angles, _ = rotary_tables(CONFIG, Numerics(rope="f32_iterated"), 77, 1)
    step = np.float32(float(np.float32(500000)) ** float(np.float32(-2 / 64)))
    angle = np.float32(77)
    for i in range(32):
        assert angles[0, i] == angle
        angle = np.float32(angle * step)


@pytest.mark.parametrize("style", ["f64", "f32", "f32_iterated"])
def test_factors_divide_the_frequencies(style):
    half = rotary_tables(CONFIG, Numerics(rope=style), 10, 1, np.full(32, 2, np.float32))
    assert np.array_equal(half, rotary_tables(CONFIG, Numerics(rope=style), 5, 1))
    assert not np.array_equal(half, rotary_tables(CONFIG, Numerics(rope=style), 10, 1))


@pytest.mark.parametrize("missing", ["no name", "no file", "no function"])
def test_without_a_c_library_the_functions_are_correctly_rounded(monkeypatch, missing):
    def refuse(_name):
        raise OSError

    monkeypatch.setattr(rope.ctypes.util, "find_library", lambda _: None if missing == "no name" else "m")
    monkeypatch.setattr(rope.ctypes, "CDLL", refuse if missing == "no file" else lambda _: object())
    rope._c_library.cache_clear()
    cos, sin = rotary_tables(CONFIG, Numerics(rope="f32_iterated"), 100, 3)
    rope._c_library.cache_clear()
    libm = rotary_tables(CONFIG, Numerics(rope="f32_iterated"), 100, 3)
    # C libraries promise a unit in the last place; half of one is the rounding of the other side
    assert np.abs(np.array(libm) - (cos, sin)).max() <= 1.5 * 2.0**-24
