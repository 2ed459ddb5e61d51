"""The devices of this machine: what they are, what they have, and why one cannot be used."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from bitnet import html
from bitnet.api import default_threads

#: What of a processor's features bears on these kernels; llvm's names.
_FEATURES = (
    *("sse2", "ssse3", "sse4.1", "avx", "f16c", "fma", "avx2", "avxvnni", "avxvnniint8"),
    *("avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512vbmi", "amx-int8"),
    *("neon", "fullfp16", "dotprod", "i8mm", "sve", "sve2"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """A device.

    Attributes:
        name: What `bitnet.load(device=…)` is given.
        kind: Processor or graphics card.
        description: What it calls itself.
        memory_total, memory_free: Bytes, where they are known.
        capabilities: Instruction sets, or what else its kernels depend on.
        threads: That it would use by default.
        available: Whether a model can be loaded on it.
        reason: Why not, and what to do; None if it can.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    description: str
    memory_total: int | None
    memory_free: int | None
    capabilities: tuple[str, ...]
    threads: int
    available: bool
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"capabilities": list(self.capabilities)}

    def _repr_html_(self) -> str:
        return Devices((self,))._repr_html_()


class Devices(tuple[DeviceInfo, ...]):
    """Devices, shown as a table in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        header = ("name", "description", "memory", "free", "capabilities", "available")
        rows = [
            (
                d.name,
                d.description,
                _gigabytes(d.memory_total),
                _gigabytes(d.memory_free),
                " ".join(d.capabilities),
                "yes" if d.available else f"no: {d.reason}",
            )
            for d in self
        ]
        return html.grid("devices", header, rows)


def devices() -> Devices:
    """Every device there is or could be; those that cannot be used say why."""
    memory = psutil.virtual_memory()
    shared: dict[str, Any] = {
        "kind": "cpu",
        "description": _processor(),
        "memory_total": memory.total,
        "memory_free": memory.available,
        "available": True,
    }
    return Devices(
        (
            DeviceInfo(name="cpu", capabilities=_features(), threads=default_threads(), **shared),
            DeviceInfo(name="plain", capabilities=(f"numpy {np.__version__}",), threads=default_threads(), **shared),
            *_graphics(),
        )
    )


def _features() -> tuple[str, ...]:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return tuple(name for name in _FEATURES if features.get(name))


def _processor() -> str:
    """What the processor calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware", "cpu model") and value.strip():
                return value.strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _graphics() -> list[DeviceInfo]:
    if find_spec("cupy") is None:
        return [_no_graphics("cuda", "cupy is not installed; pip install 'bitnet-crossval[cuda]'")]
    try:
        cupy = import_module("cupy")
        runtime = cupy.cuda.runtime
        count = runtime.getDeviceCount() if cupy.cuda.is_available() else 0
        found = [_card(cupy, i) for i in range(count)]
    except Exception as error:  # whatever a driver or a half-installed library raises: the list says it
        return [_no_graphics("cuda", f"cupy does not work: {' '.join(str(error).split())}")]
    return found or [_no_graphics("cuda", "cupy finds no CUDA device; check the driver with nvidia-smi")]


def _card(cupy: Any, index: int) -> DeviceInfo:  # noqa: ANN401  # cupy has no types
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    with cupy.cuda.Device(index):
        free, total = cupy.cuda.runtime.memGetInfo()
    name = properties["name"]
    return DeviceInfo(
        name=f"cuda:{index}",
        kind="gpu",
        description=name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name),
        memory_total=int(total),
        memory_free=int(free),
        capabilities=(f"sm_{properties['major']}{properties['minor']}",),
        threads=0,
        available=False,
        reason="this version has no kernels for it; use cpu",
    )


def _no_graphics(name: str, reason: str) -> DeviceInfo:
    return DeviceInfo(
        name=name,
        kind="gpu",
        description="CUDA",
        memory_total=None,
        memory_free=None,
        capabilities=(),
        threads=0,
        available=False,
        reason=reason,
    )


def _gigabytes(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1e9:.1f} GB"
