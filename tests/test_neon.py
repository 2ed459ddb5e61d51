"""The ARM kernels, emitted here, linked with a driver and run by an emulator: the sums of numpy."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from bitnet.kernels import row_tiles
from bitnet.kernels.emit import emitted
from bitnet.kernels.variants import VARIANTS

pytestmark = pytest.mark.neon


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neon")
    (folder / "kernels.o").write_bytes(emitted(VARIANTS["neon"], "object"))
    driver = Path(__file__).with_name("neon_driver.c")
    command = ["aarch64-linux-gnu-gcc", "-O2", "-static", str(driver), str(folder / "kernels.o"), "-o"]
    subprocess.run([*command, str(folder / "run")], check=True)
    return folder / "run"


def run(program, *arrays):
    raw = b"".join(a.tobytes() for a in arrays)
    done = subprocess.run(["qemu-aarch64", "-cpu", "max", str(program)], input=raw, capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.int32)


def sums(program, codes, q):
    tiles = row_tiles.pack(codes, "2-bit")
    row_tile, n_tile, _ = tiles.data.shape
    found = run(program, np.array([0, row_tile, n_tile, len(q)]), tiles.data, q).reshape(row_tile, len(q), 16)
    return found.transpose(1, 0, 2).reshape(len(q), -1)[:, : len(codes)]


def digits(codes):
    """[n_row, n_col] 0, 1, 2."""
    groups = codes.reshape(len(codes), -1, 1, 32)
    return (
        ((groups >> np.array([6, 4, 2, 0], np.uint8).reshape(1, 1, 4, 1)) & 3).reshape(len(codes), -1).astype(np.int64)
    )


def packed(values):
    groups = values.reshape(len(values), -1, 4, 32).astype(np.uint8)
    return np.ascontiguousarray(
        groups[:, :, 0] << 6 | groups[:, :, 1] << 4 | groups[:, :, 2] << 2 | groups[:, :, 3]
    ).reshape(len(values), -1)


@pytest.mark.parametrize("n_token", [1, 2, 3, 4, 7, 8, 9, 17])
@pytest.mark.parametrize(("n_row", "n_col"), [(1, 128), (16, 256), (33, 640), (48, 6912)])
def test_random_vectors(program, n_row, n_col, n_token):
    rng = np.random.default_rng(n_row + n_token)
    values = rng.integers(0, 3, (n_row, n_col))
    q = rng.integers(-128, 128, (n_token, n_col)).astype(np.int8)
    assert np.array_equal(sums(program, packed(values), q), q.astype(np.int64) @ values.T)


@pytest.mark.parametrize("digit", [0, 1, 2])
@pytest.mark.parametrize("code", [-128, -1, 0, 127])
def test_extremes_at_the_width_of_the_2b_model(program, digit, code):
    q = np.full((5, 6912), code, np.int8)
    codes = packed(np.full((32, 6912), digit))
    assert np.array_equal(sums(program, codes, q), np.full((5, 32), 6912 * digit * code))
    assert np.array_equal(digits(codes), np.full((32, 6912), digit))


@pytest.mark.parametrize("n_input", [1, 2, 3, 7, 8])
@pytest.mark.parametrize(("n_row", "groups"), [(1, 1), (5, 20)])
def test_planes_of_the_head(program, n_row, groups, n_input):
    rng = np.random.default_rng(n_row + n_input)
    high = rng.integers(0, 256, (n_row, groups, 3, 32)).astype(np.uint8)
    low = rng.integers(0, 256, (n_row, groups, 1, 32)).astype(np.uint8)
    q = rng.integers(-127, 128, (n_input, 128 * groups)).astype(np.int8)
    high[0], low[0], q[0] = 255, 255, -127
    found = run(program, np.array([1, n_row, groups, n_input]), high, low, q).reshape(2, n_input, n_row)
    x, y, z = np.moveaxis(high, 2, 0)
    h = np.stack([x & 63, y & 63, z & 63, x >> 6 | (y >> 6) << 2 | (z >> 6) << 4], 2).reshape(n_row, -1)
    codes = low >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    assert np.array_equal(found[0], q.astype(np.int64) @ h.T.astype(np.int64))
    assert np.array_equal(found[1], q.astype(np.int64) @ codes.reshape(n_row, -1).T.astype(np.int64))


def test_the_comparison_sees_one_bit(program):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, (16, 256))
    q = rng.integers(1, 128, (1, 256)).astype(np.int8)
    wrong = values.copy()
    wrong[3, 77] = (wrong[3, 77] + 1) % 3
    assert not np.array_equal(sums(program, packed(wrong), q), q.astype(np.int64) @ values.T)
