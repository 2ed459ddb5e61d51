"""What is checked of a machine: each check shown something broken, and it says so."""

from __future__ import annotations

import socket
import time

import pytest
from command_line import run
from hub_server import serve

from bitnet import doctor, hub_cache
from bitnet.kernels import compile as compiling
from bitnet.kernels import cpu


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("BITNET_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)


def checks():
    return {c.name: c for c in doctor.examine()}


def test_all_is_well_here():
    found = checks()
    assert not [c for c in found.values() if c.outcome == "fail"]
    assert "equal to numpy" in found["kernels"].detail
    assert "forbidden" in found["network"].detail
    done = run("system", "doctor")
    assert done.code == 0
    assert done.out.count("\n") > len(found)
    assert all((c.remedy is None) == (c.outcome == "pass") for c in found.values())


def test_kernels_that_lie_are_found(monkeypatch):
    def lying(codes, q, total, row, end, out):
        out[:, row:end] = 7

    monkeypatch.setattr(cpu, "ternary_sums", lying)
    found = checks()["kernels"]
    assert found.outcome == "fail"
    assert found.remedy
    assert run("system", "doctor").code == 1


def test_kernels_that_do_not_compile_are_found(monkeypatch):
    def broken(*_):
        raise RuntimeError("no LLVM here")

    monkeypatch.setattr(cpu, "quantise_int8_token", broken)
    found = checks()["kernels"]
    assert (found.outcome, found.detail) == ("fail", "RuntimeError: no LLVM here")


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no_such_package"))
    found = checks()["packages"]
    assert found.outcome == "fail"
    assert "no_such_package" in found.detail


def test_caches_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(hub_cache, "own_cache", lambda: tmp_path / "file" / "own")
    monkeypatch.setattr(compiling, "cache_folder", lambda: None)
    found = checks()
    assert found["model cache"].outcome == "fail"
    assert found["model cache"].remedy == "set HF_HOME to a folder that can"
    assert found["kernel cache"].outcome == "warn"


def test_little_memory_little_disk_no_compiler(monkeypatch):
    monkeypatch.setattr(doctor, "_MEMORY", 1 << 60)
    monkeypatch.setattr(doctor, "_DISK", 1 << 60)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    found = checks()
    assert [found[n].outcome for n in ("memory", "disk", "compiler")] == ["warn"] * 3
    assert found["compiler"].detail.startswith("no C++ compiler and no cmake")
    assert run("system", "doctor").code == 0  # models run all the same


def test_llama_cpp(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert checks()["llama.cpp"].outcome == "fail"
    (tmp_path / "libllama.so").write_bytes(b"")
    assert checks()["llama.cpp"].outcome == "pass"
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    monkeypatch.setattr(doctor.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "_holds_library", lambda _: False)
    assert checks()["llama.cpp"].outcome == "warn"


@pytest.mark.parametrize("status", [0, 404, 503])
def test_a_network_that_answers(status, monkeypatch):
    monkeypatch.delenv("BITNET_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as hub:
        hub.status = status
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert checks()["network"].outcome == "pass"


def test_a_network_that_does_not(monkeypatch):
    monkeypatch.delenv("BITNET_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(doctor, "_PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert checks()["network"].outcome == "warn"
        time.sleep(0.2)  # until its thread has given up too
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")
    assert checks()["network"].outcome == "fail"
