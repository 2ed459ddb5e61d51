"""How kernels are compiled: interpreter lock released, strict float arithmetic, cached on disk where possible."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

#: Nobody calls a kernel from C; leaving that entry out saves a twentieth of the time that compiling takes.
_SETTINGS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "no_cfunc_wrapper": True}


@cache
def cache_folder() -> Path | None:
    """The folder of compiled kernels, or None where nothing can be written.

    numba notices a changed module, not a changed import of it, so the folder is named by the hash of all kernels.
    NUMBA_CACHE_DIR, if set, takes the place of the user's cache folder.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or str(Path(platformdirs.user_cache_dir("bitnet-crossval")) / "numba")
    folder = Path(base) / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


#: Of each kernel that could not be kept in the folder.
_faults: list[OSError] = []


def cache_fault() -> OSError | None:
    """Why kernels could not be kept in the folder although it can be written to: a disk that is full, or a limit."""
    return _faults[0] if _faults else None


def _forgiving(kept: Any) -> None:
    """Let a cache of numba fail without harm: what cannot be read is compiled again, and what cannot be kept is not.

    numba writes the index first, so one whose data could not be written may name those of another version.
    """
    load, save = kept.load_overload, kept.save_overload

    def forget() -> None:
        with suppress(OSError):
            Path(kept._cache_file._index_path).unlink()

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception:  # whatever unpickling makes of a damaged file
            forget()
            return None

    def save_overload(signature: Any, compiled: Any) -> None:
        try:
            save(signature, compiled)
        except OSError as error:
            forget()
            _faults.append(error)

    kept.load_overload, kept.save_overload = load_overload, save_overload


def kernel(function: Callable[..., None]) -> Any:
    """Compile a kernel on first use."""
    import numba

    from bitnet.kernels.linking import KernelCompiler

    settings: Any = numba.config
    folder = cache_folder()
    others = settings.CACHE_DIR
    if folder is not None:
        settings.CACHE_DIR = str(folder)
    try:
        made = numba.njit(nogil=True, cache=folder is not None, pipeline_class=KernelCompiler, **_SETTINGS)(function)
    finally:
        settings.CACHE_DIR = others  # numba reads it while it decorates; other packages' functions have their own
    if folder is not None:
        _forgiving(made._cache)
    return made


def device(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels alone call: it becomes part of each of them. It cannot make arrays."""
    return _linked(function, _nrt=False)


def device_with_arrays(function: Callable[..., Any]) -> Any:
    """The same for a function that makes arrays of its own."""
    return _linked(function)


def _linked(function: Callable[..., Any], **settings: Any) -> Any:
    import numba

    from bitnet.kernels.linking import PIPELINE

    linked: dict[str, Any] = {} if PIPELINE is None else {"pipeline_class": PIPELINE, "no_cpython_wrapper": True}
    return numba.njit(**_SETTINGS, **linked, **settings)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """The same, written into its callers before they are compiled, which are few: one compilation fewer."""
    import numba

    return numba.njit(inline="always", **_SETTINGS)(function)
