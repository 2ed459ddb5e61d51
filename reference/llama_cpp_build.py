"""Obtains libllama, once: what is already there, what was built before, or a build of the pinned source.

The package `llama-cpp-python` is a binding and a source archive of llama.cpp. Installing it as usual builds far
more than is needed, so the two halves are had apart: the binding by

    CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python==<pin>

which takes seconds, and the library by `ensure_library()`, which builds the one target `llama` of the same
archive (about three minutes on two cores) into the user's cache. Without the binding the library alone can
still be built; the version is then the pin of this project's `llama-cpp` extra.

    python -m reference.llama_cpp_build      # prints the folder, progress on stderr

The order is: `LLAMA_CPP_LIB_PATH`; a library inside the installed binding; the cache; a build. A cached build is
keyed by the version, the CMake flags, what is kept, the compiler and the CPU's features, because the build is native.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from reference.runner import ReferenceUnavailableError

Progress = Callable[[str], None]

PACKAGE = "llama-cpp-python"
LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"

#: One shared library for this machine's CPU, its own threads, and nothing that needs the network or a server.
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    f"-DCMAKE_INSTALL_RPATH={'@loader_path' if sys.platform == 'darwin' else '$ORIGIN'}",
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")),
)

#: What a build leaves in the cache; a build that kept less, by an older version of this project, is no build.
KEPT = ("lib", "include")

_MANUAL = f"or point {LIBRARY_VARIABLE} at a folder with libllama and libggml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """What builds the library.

    Attributes:
        cmake: Path of cmake.
        compiler: Path of the C++ compiler.
        compiler_version: First line of its `--version`.
        generator: Extra arguments for cmake (`-G Ninja` where there is a ninja).
    """

    cmake: str
    compiler: str
    compiler_version: str
    generator: tuple[str, ...]


def find_library() -> Path | None:
    """The folder of a library that is already here, or None. Builds nothing.

    Raises:
        ReferenceUnavailableError: If `LLAMA_CPP_LIB_PATH` is set but holds no libllama.
    """
    declared = os.environ.get(LIBRARY_VARIABLE)
    if declared:
        folder = Path(declared)
        if not holds_library(folder):
            raise ReferenceUnavailableError(
                f"{LIBRARY_VARIABLE} is {declared!r}, where there is no libllama",
                remedy=f"unset {LIBRARY_VARIABLE}, or name the folder that holds libllama and libggml",
            )
        return folder
    spec = importlib.util.find_spec("llama_cpp")
    if spec is not None and spec.origin is not None and holds_library(Path(spec.origin).parent / "lib"):
        return Path(spec.origin).parent / "lib"
    try:
        cached = cache_folder(pinned_version(), find_toolchain()) / "lib"
    except ReferenceUnavailableError:  # without a compiler the key of a cached build is unknown
        return None
    return cached if holds_library(cached) else None


def ensure_library(progress: Progress | None = None) -> Path:
    """The folder with libllama and libggml, building it first if need be.

    Args:
        progress: Called with one line for each step.

    Raises:
        ReferenceUnavailableError: No compiler, no cmake, no source, or it does not build.
    """
    tell = progress or _silent
    found = find_library()
    if found is not None:
        return found
    version, tools = pinned_version(), find_toolchain()
    folder = cache_folder(version, tools)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock"), tell):
        if not holds_library(folder / "lib"):  # another process may have built it while we waited
            _build(version, tools, folder, tell)
    return folder / "lib"


def find_headers() -> Path | None:
    """The folder that holds a library which is here and, in `include/`, the headers it was built from; or None."""
    library = find_library()
    root = None if library is None else library.parent
    return root if root is not None and (root / "include" / "llama.h").is_file() else None


def holds_library(folder: Path) -> bool:
    """Whether there is a libllama in a folder."""
    return any((folder / name).is_file() for name in ("libllama.so", "libllama.dylib"))


def pinned_version() -> str:
    """The version of llama-cpp-python: the installed one, else the pin of this project.

    Raises:
        ReferenceUnavailableError: If neither is known.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pass
    for requirement in _own_requirements():
        match = re.match(rf"{PACKAGE}\s*==\s*([\w.]+)", requirement)
        if match:
            return match[1]
    raise ReferenceUnavailableError(
        f"no version of {PACKAGE} is installed or pinned", remedy="install this project with its llama-cpp extra"
    )


def _own_requirements() -> list[str]:
    try:
        return importlib.metadata.requires("bitnet-crossval") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
        if not pyproject.is_file():
            return []
        extras: dict[str, list[str]] = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
        return [requirement for group in extras.values() for requirement in group]


def find_toolchain() -> Toolchain:
    """cmake, a C++ compiler and perhaps ninja, on PATH or beside this Python.

    Raises:
        ReferenceUnavailableError: If one is missing, with how to get it.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise ReferenceUnavailableError(
            "llama.cpp is not built and there is no cmake", remedy=f"pip install cmake, {_MANUAL}"
        )
    compiler, version = find_compiler()
    generator = ("-G", "Ninja") if shutil.which("ninja", path=path) else ()
    return Toolchain(cmake=cmake, compiler=compiler, compiler_version=version, generator=generator)


def find_compiler() -> tuple[str, str]:
    """Path of a C++ compiler (`CXX`, or one on PATH) and the first line of its `--version`.

    Raises:
        ReferenceUnavailableError: There is none, with how to get one.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((found for name in names if (found := shutil.which(name, path=path))), None)
    if compiler is None:
        remedy = "xcode-select --install" if sys.platform == "darwin" else "install g++ (on Debian: apt install g++)"
        raise ReferenceUnavailableError(
            f"llama.cpp is not built and there is no C++ compiler ({', '.join(names)})", remedy=f"{remedy}, {_MANUAL}"
        )
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)  # noqa: S603  # the user's compiler
    return compiler, (shown.stdout or shown.stderr).strip().partition("\n")[0]


def cache_folder(version: str, tools: Toolchain) -> Path:
    """Where the build of a version by a compiler for this CPU is kept."""
    parts = (version, *CMAKE_FLAGS, *KEPT, tools.compiler_version, platform.machine(), *_cpu_features())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("bitnet-crossval")) / "llama-cpp" / f"{version}-{key}"


def _cpu_features() -> list[str]:
    """What a native build depends on: the feature flags of the first CPU, else its name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return [platform.processor()]
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted(match[1].split()) if match else [platform.processor()]


def _build(version: str, tools: Toolchain, folder: Path, tell: Progress) -> None:
    """Build into a scratch folder beside `folder`, then rename: a half-built library is never visible."""
    for left_behind in folder.parent.glob(f".{folder.name}-*"):  # we hold the lock, so its builder is dead
        shutil.rmtree(left_behind, ignore_errors=True)
    log = folder.with_name(f"{folder.name}.log")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch_name:
        scratch = Path(scratch_name)
        with log.open("w") as sink:
            source = _fetch_source(version, scratch, sink.write, tell)
            build = scratch / "build"
            tell(f"llama.cpp ({PACKAGE} {version}): configuring")
            configure = (
                *(tools.cmake, "-S", str(source), "-B", str(build), *tools.generator, *CMAKE_FLAGS),
                f"-DCMAKE_CXX_COMPILER={tools.compiler}",
            )
            _run_logged(configure, sink.write, tell, doing="configure", log=log)
            jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
            compile_ = (tools.cmake, "--build", str(build), "--target", "llama", "--parallel", jobs)
            _run_logged(compile_, sink.write, tell, doing="build", log=log)
        ready = scratch / "ready"
        (ready / "lib").mkdir(parents=True)
        for library in _libraries(build):
            shutil.copy2(library, ready / "lib" / library.name, follow_symlinks=False)
        (ready / "include").mkdir()  # for `bitnet_cpp_build`, which compiles against a library's own headers
        for header in (*source.glob("include/*.h"), *source.glob("ggml/include/*.h")):
            shutil.copy2(header, ready / "include" / header.name)
        shutil.rmtree(build)  # so that the check below cannot find anything in the build tree
        _check_loads(ready / "lib", log)
        record = {
            "version": version,
            "compiler": tools.compiler_version,
            "cmake_flags": CMAKE_FLAGS,
            "seconds": round(time.monotonic() - started, 1),
        }
        (ready / "build.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a library is no build
        ready.rename(folder)
    log.unlink()
    tell(f"llama.cpp ({PACKAGE} {version}): built in {time.monotonic() - started:.0f} s")


def _libraries(build: Path) -> Iterator[Path]:
    pattern = re.compile(r"lib(llama|ggml)[\w.-]*\.(so|dylib)[\d.]*")
    return (path for path in build.rglob("lib*") if pattern.fullmatch(path.name))


def _fetch_source(version: str, scratch: Path, write: Callable[[str], object], tell: Progress) -> Path:
    """Download the source archive with the user's own pip and unpack llama.cpp from it."""
    if os.environ.get("BITNET_OFFLINE", "0") not in {"", "0"}:
        raise ReferenceUnavailableError(
            f"llama.cpp is not built and BITNET_OFFLINE forbids fetching {PACKAGE} {version}",
            remedy=f"unset BITNET_OFFLINE once, {_MANUAL}",
        )
    if importlib.util.find_spec("pip") is None:
        raise ReferenceUnavailableError(
            f"llama.cpp is not built and this Python has no pip to fetch {PACKAGE} with",
            remedy=f"python -m ensurepip, {_MANUAL}",
        )
    tell(f"llama.cpp ({PACKAGE} {version}): fetching the source")
    download = (
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--progress-bar", "off"),
        *("--disable-pip-version-check", "--dest", str(scratch), f"{PACKAGE}=={version}"),
    )
    _run_logged(download, write, tell, doing="download", log=None)
    archives = sorted(scratch.glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        raise ReferenceUnavailableError(f"pip fetched no source archive of {PACKAGE} {version}", remedy=_MANUAL)
    marker = "/vendor/llama.cpp/"
    with tarfile.open(archives[0]) as archive:
        members = [member for member in archive if marker in member.name]
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11 has it from 3.11.4 on
        archive.extractall(scratch / "source", members)  # noqa: S202  # the pinned release, filtered where that exists
    archives[0].unlink()
    found = next((scratch / "source").glob("*/vendor/llama.cpp/CMakeLists.txt"), None)
    if found is None:
        raise ReferenceUnavailableError(f"the archive of {PACKAGE} {version} holds no llama.cpp", remedy=_MANUAL)
    return found.parent


def _run_logged(
    command: Sequence[str], write: Callable[[str], object], tell: Progress, *, doing: str, log: Path | None
) -> None:
    """Run a command into the log, passing its step counts on. Its whole process group dies with us."""
    last: list[str] = []
    process = subprocess.Popen(  # noqa: S603  # our own arguments, no shell
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            write(line)
            last = [*last, line.strip()][-12:]
            step = re.match(r"\[\s*(\d+/\d+|\d+%)\]", line)
            if step:
                tell(f"llama.cpp: building {step[1]}")
        code = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        process.stdout.close()
    if code != 0:
        errors = [line for line in last if re.search("error", line, re.IGNORECASE)] or last
        where = f"; the log is {log}" if log is not None else ""
        raise ReferenceUnavailableError(
            f"llama.cpp: the {doing} step ended with {code}: {errors[-1] if errors else 'no output'}{where}",
            remedy=f"mend that and run again, {_MANUAL}",
        )


def _check_loads(folder: Path, log: Path) -> None:
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).llama_max_devices"
    library = next(path for path in sorted(folder.iterdir()) if path.name in {"libllama.so", "libllama.dylib"})
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=False)  # noqa: S603  # our own arguments
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ReferenceUnavailableError(
            f"llama.cpp was built but does not load: {last}; the log is {log}", remedy=_MANUAL
        )


@contextmanager
def _locked(path: Path, tell: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("llama.cpp: another process is building it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _silent(_line: str) -> None:
    """Progress that nobody asked for."""


def main() -> int:
    """Print the folder on stdout; progress and trouble go to stderr."""
    shown = ""

    def tell(line: str) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}" if "building " in line else f"\r\x1b[K{line}\n")
        elif _step_of_ten(line) != shown:
            shown = _step_of_ten(line)
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    try:
        folder = ensure_library(tell)
    except ReferenceUnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{folder}\n")
    return 0


def _step_of_ten(line: str) -> str:
    """A line reduced so that ten steps of a build differ: progress in a log file, without a line per source file."""
    match = re.search(r"building (\d+)(?:/(\d+)|%)", line)
    if match is None:
        return line
    return f"building {10 * int(match[1]) // int(match[2] or 100)}"


if __name__ == "__main__":
    sys.exit(main())
