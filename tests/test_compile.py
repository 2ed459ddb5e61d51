"""Compiled kernels are cached by the hash of their sources, or not at all where nothing can be written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from bitnet.kernels import compile as compiling

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(compiling, "_faults", [])
    compiling.cache_folder.cache_clear()
    yield tmp_path / "cache"
    compiling.cache_folder.cache_clear()


def test_the_folder_is_named_by_the_sources(fresh, monkeypatch, tmp_path):
    folder = compiling.cache_folder()
    assert folder is not None
    assert folder.is_dir()
    assert folder.parent == fresh
    sources = tmp_path / "kernels"
    shutil.copytree(Path(compiling.__file__).parent, sources, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiling, "__file__", str(sources / "compile.py"))
    compiling.cache_folder.cache_clear()
    assert compiling.cache_folder() == folder
    with (sources / "simd.py").open("a") as file:  # numba itself would not notice: the kernels only import it
        file.write("# changed\n")
    compiling.cache_folder.cache_clear()
    assert compiling.cache_folder() != folder


def test_without_a_variable_it_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(compiling.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    compiling.cache_folder.cache_clear()
    folder = compiling.cache_folder()
    compiling.cache_folder.cache_clear()
    assert folder is not None
    assert folder.parent == tmp_path / "bitnet-crossval" / "numba"


def test_a_folder_that_cannot_be_made_or_written_is_done_without(fresh, monkeypatch):
    fresh.write_text("a file stands where the folder should be")
    assert compiling.cache_folder() is None
    fresh.unlink()
    monkeypatch.setattr(compiling.os, "access", lambda *_: False)
    compiling.cache_folder.cache_clear()
    assert compiling.cache_folder() is None


def doubled():
    """What a kernel that is decorated now makes of three numbers, and what it found in the cache."""

    @compiling.kernel
    def double(x, out):
        for i in range(x.size):
            out[i] = 2 * x[i]

    out = np.empty(3)
    double(np.arange(3.0), out)
    return out.tolist(), sum(double.stats.cache_hits.values())


@pytest.mark.parametrize("writable", [True, False])
def test_a_kernel_compiles_either_way(fresh, writable):
    if not writable:
        fresh.write_text("")
    assert doubled() == ([0, 2, 4], 0)
    assert bool(list(fresh.rglob("*.nbi"))) is writable
    assert doubled() == ([0, 2, 4], 1 if writable else 0)
    assert compiling.cache_fault() is None


def test_a_kernel_that_cannot_be_kept_runs(fresh):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # room for an index, but not for a kernel
    try:
        assert doubled() == ([0, 2, 4], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert compiling.cache_fault().errno == errno.EFBIG
    assert not [path for path in fresh.rglob("*") if path.is_file()]
    assert doubled() == ([0, 2, 4], 0)
    assert doubled() == ([0, 2, 4], 1)


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("size", [0, 20])
def test_a_kernel_whose_file_is_damaged_is_compiled_again(fresh, kind, size):
    doubled()
    (damaged,) = fresh.rglob(f"*.{kind}")
    os.truncate(damaged, size)  # as a power cut leaves it
    assert doubled() == ([0, 2, 4], 0)
    assert doubled() == ([0, 2, 4], 1)


def test_the_cache_of_other_packages_stays_where_it_is(fresh):
    before = numba.config.CACHE_DIR

    @compiling.kernel
    def nothing(out):
        pass

    assert before == numba.config.CACHE_DIR


def test_division_by_zero_is_a_value_and_floats_are_strict(fresh):
    @compiling.kernel
    def work(x, out):
        out[0] = x[0] / x[1]
        out[1] = (x[2] + x[3]) - x[3]

    out = np.empty(2)
    work(np.array([1.0, 0.0, 1e-20, 1.0]), out)
    assert out.tolist() == [np.inf, 0.0]  # fast-math would give back 1e-20


@pytest.mark.slow
def test_a_home_that_is_a_file_does_not_stop_the_engine(tmp_path):
    """Everything is compiled in memory, which takes seconds."""
    (tmp_path / "home").write_text("")
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    code = (
        "import bitnet; from bitnet.kernels.compile import cache_folder; assert cache_folder() is None;"
        "print(bitnet.load('fixtures/goldens/b158_a.gguf').logits([1, 2, 3]).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "(3, 512)\n"), done.stderr
