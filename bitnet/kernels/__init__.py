"""Kernels by device: `cpu` (numba), `plain` (numpy). One table, filled on first use; importing this imports neither.

A device is named by the caller and never replaced by another.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Literal, get_args

from bitnet.errors import UsageError

Device = Literal["cpu", "plain"]

_MODULES: dict[str, str] = {"cpu": "bitnet.kernels.cpu", "plain": "bitnet.kernels.plain"}


def check_device(device: str) -> None:
    """Raise `UsageError` for a device that does not exist."""
    if device not in _MODULES:
        raise UsageError(f"no device {device!r}", where="BITNET_DEVICE", remedy=f"one of {', '.join(get_args(Device))}")


@cache
def kernels(device: str) -> ModuleType:
    """The module of kernels for a device, imported. Raises `UsageError` for one that does not exist."""
    check_device(device)
    return importlib.import_module(_MODULES[device])


@cache
def instruction_set(device: str) -> str:
    """The widest vector extension that the kernels of a device were compiled for."""
    if device != "cpu":
        return "numpy"
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    for name in ("avx512f", "avx2", "avx", "sse2", "sve", "neon"):
        if features.get(name):
            return name
    return str(binding.get_process_triple()).split("-", maxsplit=1)[0]
