"""Where and when a run took place, as the receipt records it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from receipts.record import Environment

#: Packages whose version can change a result.
_PACKAGES = ("gguf", "jinja2", "llama-cpp-python", "llvmlite", "numba", "numpy", "tokenizers")
#: Variables that change what this project does; a token is a secret and never listed.
_VARIABLES = (
    "BITNET_GGUF",
    "BITNET_TOKENIZER",
    "BITNET_DEVICE",
    "BITNET_ISA",
    "BITNET_NUM_THREADS",
    "BITNET_SEED",
    "BITNET_DETERMINISTIC",
    "BITNET_OFFLINE",
    "BITNET_CPP_DIR",
    "BITNET_MEMORY_LIMIT",
    "BITNET_BATCH_SIZE",
)


def now() -> str:
    """UTC, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def environment() -> Environment:
    """This machine. Paths are cut to their last part: they tell about a user and nothing about a result."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    variables = {name: Path(os.environ[name]).name for name in _VARIABLES if os.environ.get(name)}
    cpu, flags = _cpu()
    return Environment(
        os=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=cpu,
        cpu_flags=flags,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
        packages=packages,
        variables=variables,
    )


def cpu_name() -> str:
    """The processor, as the system names it."""
    return _cpu()[0]


def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model name and feature flags, as the operating system lists them, else as the compiler does."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = fields.get("flags") or fields.get("Features")
    if not flags:
        from llvmlite import binding

        flags = " ".join(name for name, on in binding.get_host_cpu_features().items() if on)
    return fields.get("model name") or platform.processor() or platform.machine(), tuple(sorted(flags.split()))


def command() -> str:
    """What was typed, without folders."""
    return shlex.join(["python", "-m", "crossval", *map(_without_folders, sys.argv[1:])])


def _without_folders(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return f"{flag}{equals}{Path(value).name if '/' in value else value}"


def git_state(folder: Path) -> tuple[str, bool | None]:
    """Commit of a checkout and whether it has changes; ("", None) where `folder` is not part of one.

    A folder that lies in a checkout without belonging to it (an environment inside a project) is not part of it.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603  # fixed arguments
            ["git", "-C", str(folder), *arguments],  # noqa: S607  # whichever git the user has
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return "", None
