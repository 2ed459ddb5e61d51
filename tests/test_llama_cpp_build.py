"""Obtaining libllama: the order of places, the key of the cache, one builder at a time, nothing half-built.

The tools are stand-ins on PATH that take milliseconds; the real build is what every other llama.cpp test runs on.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from reference import llama_cpp_build as build
from reference.runner import ReferenceUnavailableError

VERSION = "1.2.3"

CMAKE = """#!/bin/sh
echo "cmake $@" >> "$BUILD_TRACE"
if [ "$1" = "--build" ]; then
    echo "[1/2] Building CXX object"
    [ -z "$FAIL_BUILD" ] || { echo "ggml.c:1: fatal error: no such header"; exit 7; }
    sleep 0.2
    mkdir -p "$2/bin"
    cp "$A_LIBRARY" "$2/bin/libllama.so.1"
    ln -s libllama.so.1 "$2/bin/libllama.so"
    echo x > "$2/bin/libggml-base.so"
    echo x > "$2/bin/libother.so"
    echo "[2/2] Linking"
fi
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with stand-in tools, an empty cache, and a source archive in place of pip's download."""
    folder = tmp_path / "tools"
    folder.mkdir()
    source = tmp_path / "a_library.c"
    source.write_text("int llama_max_devices(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "a_library.so", source], check=True)
    for name, text in (("cmake", CMAKE), ("c++", "#!/bin/sh\necho c++ 12.2.0\n"), ("ninja", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))  # no tools beside it
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BUILD_TRACE", str(tmp_path / "trace"))
    monkeypatch.setenv("A_LIBRARY", str(tmp_path / "a_library.so"))
    for name in (build.LIBRARY_VARIABLE, "CXX", "BITNET_OFFLINE", "FAIL_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object() if name == "pip" else None)
    monkeypatch.setattr(build.importlib.metadata, "version", lambda _: VERSION)
    monkeypatch.setattr(build, "_run_logged", _download_or(build._run_logged))
    monkeypatch.setattr(build, "_check_loads", lambda folder, log: None)
    return folder


def _download_or(run):
    def logged(command, write, tell, *, doing, log):
        if doing != "download":
            run(command, write, tell, doing=doing, log=log)
            return
        destination = Path(command[command.index("--dest") + 1])
        with tarfile.open(destination / f"llama_cpp_python-{VERSION}.tar.gz", "w:gz") as archive:
            for name in ("vendor/llama.cpp/CMakeLists.txt", "README.md"):
                member = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
                archive.addfile(member, io.BytesIO())

    return logged


def cached() -> Path:
    return build.cache_folder(VERSION, build.find_toolchain())


def traces(tmp_path: Path) -> list[str]:
    return (tmp_path / "trace").read_text().splitlines()


def test_a_library_of_the_user_comes_first(tools, tmp_path, monkeypatch):
    (tmp_path / "libllama.so").touch()
    monkeypatch.setenv(build.LIBRARY_VARIABLE, str(tmp_path))
    assert build.ensure_library() == build.find_library() == tmp_path


def test_a_folder_without_a_library_is_an_error_not_a_build(tools, tmp_path, monkeypatch):
    monkeypatch.setenv(build.LIBRARY_VARIABLE, str(tmp_path))
    with pytest.raises(ReferenceUnavailableError, match="no libllama") as caught:
        build.ensure_library()
    assert build.LIBRARY_VARIABLE in caught.value.remedy


def test_a_library_inside_the_binding_comes_next(tools, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
    (tmp_path / "llama_cpp" / "lib" / "libllama.so").touch()
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "llama_cpp" / "__init__.py")})
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: spec)
    assert build.find_library() == tmp_path / "llama_cpp" / "lib"


def test_it_is_built_once_and_then_found(tools, tmp_path):
    assert build.find_library() is None
    told = []
    folder = build.ensure_library(told.append)
    assert folder == cached() / "lib" == build.find_library() == build.ensure_library()
    assert len(traces(tmp_path)) == 2  # configured and built, once
    configure, compile_ = traces(tmp_path)
    for flag in (*build.CMAKE_FLAGS, "-G Ninja"):
        assert flag in configure
    assert "--target llama" in compile_
    assert sorted(path.name for path in folder.iterdir()) == ["libggml-base.so", "libllama.so", "libllama.so.1"]
    assert (folder / "libllama.so").is_symlink()
    assert '"version": "1.2.3"' in (folder.parent / "build.json").read_text()
    assert told[0].endswith("fetching the source")
    assert "llama.cpp: building 1/2" in told
    left = {path.name for path in folder.parent.parent.iterdir()}
    assert left == {cached().name, f"{cached().name}.lock"}  # no build tree, no log


def test_concurrent_builders_build_once(tools, tmp_path):
    told: list[str] = []
    folders: list[Path] = []
    builders = [threading.Thread(target=lambda: folders.append(build.ensure_library(told.append))) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert folders == [cached() / "lib"] * 3
    assert len(traces(tmp_path)) == 2
    assert sum("waiting" in line for line in told) == 2


def test_a_failed_build_leaves_nothing_but_its_log(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_BUILD", "1")
    with pytest.raises(
        ReferenceUnavailableError, match=r"ended with 7: ggml\.c:1: fatal error: no such header"
    ) as caught:
        build.ensure_library()
    log = cached().with_name(f"{cached().name}.log")
    assert str(log) in caught.value.what
    assert "no such header" in log.read_text()
    assert {path.name for path in cached().parent.iterdir()} == {log.name, f"{cached().name}.lock"}
    monkeypatch.delenv("FAIL_BUILD")
    assert build.ensure_library() == cached() / "lib"


def test_what_a_killed_builder_left_is_swept_and_never_seen(tools):
    half = cached().parent / f".{cached().name}-abc" / "ready" / "lib"
    half.mkdir(parents=True)
    (half / "libllama.so").touch()
    cached().mkdir()  # without a library
    assert build.find_library() is None
    build.ensure_library()
    assert not half.exists()


def test_an_interrupt_ends_the_tools_too(tools, tmp_path, monkeypatch):
    def interrupt(line: str) -> None:
        if "building" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.ensure_library(interrupt)
    assert build.find_library() is None
    assert not list(cached().parent.glob(".*"))


def test_the_key_knows_version_compiler_flags_and_cpu(tools, monkeypatch):
    before = cached()
    assert build.cache_folder("1.2.4", build.find_toolchain()) != before
    monkeypatch.setattr(build, "_cpu_features", lambda: ["avx512f"])
    other_cpu = cached()
    monkeypatch.setattr(build, "CMAKE_FLAGS", (*build.CMAKE_FLAGS, "-DGGML_AVX=OFF"))
    other_flags = cached()
    (tools / "c++").write_text("#!/bin/sh\necho c++ 13.0.0\n")
    assert len({before, other_cpu, other_flags, cached()}) == 4


@pytest.mark.parametrize(("missing", "remedy"), [("cmake", "pip install cmake"), ("c++", "C++ compiler|g\\+\\+")])
def test_a_missing_tool_is_unavailable_with_a_remedy(tools, monkeypatch, missing, remedy):
    (tools / missing).unlink()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(ReferenceUnavailableError, match=remedy) as caught:
        build.ensure_library()
    assert build.LIBRARY_VARIABLE in caught.value.remedy
    assert build.find_library() is None


def test_tools_beside_this_python_are_found(tools, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tools / "cmake").rename(tmp_path / "bin" / "cmake")
    monkeypatch.setenv("PATH", str(tools))
    assert build.find_toolchain().cmake == str(tmp_path / "bin" / "cmake")


def test_offline_or_without_pip_it_is_unavailable(tools, monkeypatch):
    monkeypatch.setenv("BITNET_OFFLINE", "1")
    with pytest.raises(ReferenceUnavailableError, match="BITNET_OFFLINE"):
        build.ensure_library()
    monkeypatch.delenv("BITNET_OFFLINE")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ReferenceUnavailableError, match="no pip"):
        build.ensure_library()


def test_the_version_is_the_installed_one_else_the_pin(monkeypatch):
    def absent(_name):
        raise build.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(build.importlib.metadata, "version", absent)
    pins = ["numpy>=2", 'llama-cpp-python==9.8.7; extra == "llama-cpp"']
    monkeypatch.setattr(build.importlib.metadata, "requires", lambda _: pins)
    assert build.pinned_version() == "9.8.7"
    monkeypatch.setattr(build.importlib.metadata, "requires", absent)
    assert build.pinned_version().count(".") == 2  # from this source tree's own pyproject
    monkeypatch.setattr(build.importlib.metadata, "requires", lambda _: None)
    with pytest.raises(ReferenceUnavailableError, match="installed or pinned"):
        build.pinned_version()


def test_the_command_prints_the_folder_alone(tools, tmp_path, monkeypatch, capsys):
    assert build.main() == 0
    shown = capsys.readouterr()
    assert shown.out == f"{cached() / 'lib'}\n"
    assert "built in" in shown.err
    monkeypatch.setenv(build.LIBRARY_VARIABLE, str(tmp_path))
    assert build.main() == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "hint:" in shown.err
    assert "Traceback" not in shown.err


def test_a_library_that_does_not_load_is_not_published(tmp_path):
    (tmp_path / "libllama.so").write_text("no library")
    with pytest.raises(ReferenceUnavailableError, match="does not load"):
        build._check_loads(tmp_path, tmp_path / "log")
