"""Whether this machine can do all that the package does: one check a question, each with what helps where it fails.

A check fails where models cannot run; it warns where something beside that would not work, such as a comparison with
llama.cpp, or a download.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
import psutil

from bitnet import hub_cache
from bitnet.errors import BitNetError

Outcome = Literal["pass", "warn", "fail"]

_PACKAGES = ("numpy", "numba", "tokenizers", "jinja2", "huggingface_hub", "gguf")
_MEMORY = 2_000_000_000  # bytes: the published 2B-4T takes 1.2 GB, its cache of keys and values 0.6 GB at most
_DISK = 3_000_000_000  # bytes: a download of it, and one conversion
_LLAMA_CPP = "LLAMA_CPP_LIB_PATH"
_PATIENCE = 3.0  # seconds for an answer from the network
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: What was looked at.
        outcome: How it ended.
        detail: What was found.
        remedy: What the user can do; None where all is well.
    """

    name: str
    outcome: Outcome
    detail: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def examine() -> Iterator[Check]:
    """Every check, one after another; none raises."""
    for name, check in _CHECKS.items():
        try:
            outcome, detail, remedy = check()
        except BitNetError as error:
            outcome, detail, remedy = "fail", str(error).partition("\n")[0], error.remedy
        except Exception as error:  # whatever is broken here is what the check is for
            outcome, detail, remedy = "fail", f"{type(error).__name__}: {error}", "install the package again"
        yield Check(name=name, outcome=outcome, detail=detail, remedy=remedy)


_Found = tuple[Outcome, str, str | None]


def _python() -> _Found:
    missing = []
    for package in _PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing.append(f"{package} ({error})")
    if missing:
        return "fail", f"cannot be imported: {', '.join(missing)}", "python -m pip install --upgrade bitnet-crossval"
    return "pass", f"Python {sys.version.split()[0]} and the packages it needs", None


def _settings() -> _Found:
    from bitnet.settings import settings

    wrong = [f"{s.name} is {s.value!r}: {s.fault}" for s in settings() if s.fault]
    if wrong:
        return "fail", "; ".join(wrong), "unset the variable, or set it to a value that has a meaning"
    given = [s.name for s in settings() if s.origin == "variable"]
    return "pass", f"set: {', '.join(given)}" if given else "every variable at its default", None


def _kernels() -> _Found:
    """A product of the compiled kernels, the numpy ones and plain integers."""
    import numpy as np

    from bitnet.codecs import Ternary, ternary_codes
    from bitnet.codecs.i2_s import pack_i2_s
    from bitnet.gguf_types import GGMLType
    from bitnet.kernels.row_tiles import as_rows
    from bitnet.linear import Backend, TernaryMatrix

    rng = np.random.default_rng(0)
    n_token, n_row, n_col = 3, 64, 256
    ternary = Ternary(trits=rng.integers(-1, 2, (n_row, n_col)).astype(np.int8), scale=0.5)
    raw = pack_i2_s(ternary.trits, 0.5)
    codes, scale, _ = ternary_codes(GGMLType.I2_S, raw, (n_row, n_col))
    matrix = TernaryMatrix(
        name="check",
        type_name="I2_S",
        n_row=n_row,
        n_col=n_col,
        n_bytes=codes.nbytes,
        tiles=as_rows(codes),
        scale=np.float32(scale),
        block_scale=None,
    )
    x = rng.standard_normal((n_token, n_col)).astype(np.float32)
    backends = [Backend("cpu", 1), Backend("plain", 1)]
    packed = [(backend, backend.pack(matrix)) for backend in backends]
    sums = [backend.integer_sums(m, x) for backend, m in packed]
    outputs = [backend.product(m, backend.activations(x), "int8_token", "projection") for backend, m in packed]
    due = backends[1].activations(x).int8_token[0].astype(np.int32) @ ternary.trits.T.astype(np.int32)
    if not all(np.array_equal(s, due) for s in sums) or not np.array_equal(outputs[0], outputs[1]):
        remedy = "unset NUMBA_CPU_NAME and the like, remove the kernel cache, and report this if it stays"
        return "fail", "the compiled kernels and numpy do not agree on a product", remedy
    return "pass", f"compiled for {backends[0].variant.id}, equal to numpy to the bit", None


def _kernel_cache() -> _Found:
    from bitnet.kernels.compile import cache_fault, cache_folder

    folder, fault, remedy = cache_folder(), cache_fault(), "set NUMBA_CACHE_DIR to a folder"
    if folder is None:
        return "warn", "can be written nowhere: kernels are compiled at every start", remedy
    if fault is not None:
        return "warn", f"{folder}: {fault.strerror}: kernels are compiled at every start", remedy
    with tempfile.TemporaryFile(dir=folder):
        return "pass", str(folder), None


def _model_cache() -> _Found:
    return "pass", str(hub_cache.writable_cache()), None


def _memory() -> _Found:
    free = psutil.virtual_memory().available
    if free < _MEMORY:
        return "warn", f"{free / 1e9:.1f} GB free; the 2B-4T model takes about 2", "close other programs"
    return "pass", f"{free / 1e9:.1f} GB free", None


def _disk() -> _Found:
    folder = hub_cache.hub_cache()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < _DISK:
        return "warn", f"{free / 1e9:.1f} GB free where models are kept", "make room, or set HF_HOME to another disk"
    return "pass", f"{free / 1e9:.1f} GB free where models are kept", None


def _compiler() -> _Found:
    compiler = next((name for name in _COMPILERS if shutil.which(name)), None)
    missing = [what for what, there in (("C++ compiler", compiler), ("cmake", shutil.which("cmake"))) if not there]
    if missing:
        return "warn", f"no {' and no '.join(missing)}: llama.cpp cannot be built to compare with", "install them"
    return "pass", f"{compiler} and cmake", None


def _llama_cpp() -> _Found:
    declared = os.environ.get(_LLAMA_CPP)
    remedy = "`python -m nox -s crossval` builds it once; only comparisons need it"
    if declared:
        if not _holds_library(Path(declared)):
            return "fail", f"{_LLAMA_CPP} is {declared}, where there is no libllama", f"unset {_LLAMA_CPP}"
        return "pass", f"{declared} ({_LLAMA_CPP})", None
    places = [Path(platformdirs.user_cache_dir("bitnet-crossval"))]
    with suppress(importlib.metadata.PackageNotFoundError):
        places.append(Path(str(importlib.metadata.distribution("llama-cpp-python").locate_file("llama_cpp"))))
    found = [folder for place in places for folder in (*place.glob("*/*/lib"), place / "lib") if _holds_library(folder)]
    return ("pass", str(found[0]), None) if found else ("warn", "no libllama was found", remedy)


def _holds_library(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("libllama.so", "libllama.dylib"))


def _network() -> _Found:
    if hub_cache.offline():
        return "pass", "forbidden by BITNET_OFFLINE or HF_HUB_OFFLINE; nothing is fetched", None
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not address.startswith(("http://", "https://")):
        return "fail", f"HF_ENDPOINT is {address!r}", "unset it, or give an address that begins with https://"
    answered = _within(_PATIENCE, lambda: _answers(address))
    if not answered:
        remedy = "check proxies (https_proxy), or set BITNET_OFFLINE=1; models on this machine run all the same"
        return "warn", f"no answer from {address} in {_PATIENCE:.0f} s", remedy
    return "pass", f"{address} answers", None


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310  # its scheme is checked above
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE):  # noqa: S310  # as above
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True  # an answer, if not a friendly one
    except OSError:
        return False


def _within(seconds: float, question: Callable[[], bool]) -> bool:
    """The answer, or False where it takes longer: looking up a name cannot be bounded otherwise."""
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(question()), daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answers and answers[0])


_CHECKS: dict[str, Callable[[], _Found]] = {
    "packages": _python,
    "settings": _settings,
    "kernels": _kernels,
    "kernel cache": _kernel_cache,
    "model cache": _model_cache,
    "memory": _memory,
    "disk": _disk,
    "compiler": _compiler,
    "llama.cpp": _llama_cpp,
    "network": _network,
}
