"""`bitnet system info`: the device, the instruction set, and every setting with where it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.cli.options import Device, Format, Output, Threads, TokenizerOption

_PACKAGES = ("numpy", "numba", "tokenizers", "huggingface_hub", "gguf", "jinja2", "rich", "typer")


def info(
    model: Annotated[Path | None, typer.Option("--model", "-m", help="GGUF file.")] = None,
    threads: Threads = None,
    device: Device = None,
    tokenizer: TokenizerOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampler.")] = None,
    output: Output = Format.human,
) -> None:
    """Show this machine, and every setting with its origin. A flag beats a variable, a variable beats a default."""
    from bitnet.cli import output as out
    from bitnet.settings import settings

    flags = {
        "BITNET_GGUF": model,
        "BITNET_NUM_THREADS": threads,
        "BITNET_DEVICE": device,
        "BITNET_TOKENIZER": tokenizer,
        "BITNET_SEED": seed,
    }
    every = settings(flags)
    machine, kernels, caches, versions = _machine(), _kernels(), list(_caches()), _versions()
    if output is Format.json:
        values = {
            "machine": machine,
            "kernels": kernels,
            "settings": [s.to_dict() for s in every],
            "caches": caches,
            "versions": versions,
        }
        print(out.document("system-info-1", values))
        return
    cores = (
        f"{machine['cores']} physical cores, {machine['logical_cores']} logical, {machine['usable_cores']} usable here"
    )
    out.facts(
        [
            ("system", f"{machine['system']}, {machine['processor']}"),
            ("instructions", machine["instruction_set"]),
            ("cores", cores),
            ("memory", f"{out.megabytes(machine['memory_free'])} free of {out.megabytes(machine['memory_total'])}"),
        ]
    )
    print()
    states = ("in use" if k["chosen"] else "usable" if k["usable"] else "not on this CPU" for k in kernels)
    lines = [(k["id"], k["layout"], state, k["what"]) for k, state in zip(kernels, states, strict=True)]
    out.table(("kernels", "weights", "here", "what they use"), lines)
    print()
    rows = [(s.name, s.value or "-", s.origin, s.fault or s.meaning) for s in every]
    out.table(("setting", "value", "origin", "what it is for"), rows)
    print()
    out.table(
        ("cache", "path", "size"), [(c["name"], c["path"] or "none", out.megabytes(c["n_bytes"])) for c in caches]
    )
    print()
    out.facts([("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))])


def _machine() -> dict[str, Any]:
    import platform

    import psutil

    from bitnet.kernels import instruction_set

    memory = psutil.virtual_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor() or platform.machine(),
        "instruction_set": instruction_set("cpu"),
        "cores": psutil.cpu_count(logical=False) or 1,
        "logical_cores": psutil.cpu_count() or 1,
        "usable_cores": usable or 1,
        "memory_total": memory.total,
        "memory_free": memory.available,
    }


def _kernels() -> list[dict[str, Any]]:
    from bitnet.errors import UsageError
    from bitnet.kernels.variants import VARIANTS, choose, runs_here

    try:
        chosen = choose()
    except UsageError:  # the setting's own line says why
        chosen = None
    return [
        {
            "id": v.id,
            "isa": v.isa,
            "layout": v.layout,
            "what": v.what,
            "usable": runs_here(v),
            "chosen": v is chosen,
        }
        for v in VARIANTS.values()
    ]


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _caches() -> Iterator[dict[str, Any]]:
    from bitnet import hub_cache
    from bitnet.kernels.compile import cache_folder

    places = {"models (Hub)": hub_cache.hub_cache(), "models (own)": hub_cache.own_cache(), "kernels": cache_folder()}
    for name, path in places.items():
        yield {"name": name, "path": None if path is None else str(path), "n_bytes": _size(path)}


def _size(folder: Path | None) -> int:
    """Bytes of all files, those behind links once."""
    seen = {}
    for top, _, names in os.walk(folder) if folder is not None else ():
        for name in names:
            try:
                status = (Path(top) / name).lstat()
            except OSError:
                continue  # a file that went away meanwhile
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import bitnet

    found = {"bitnet": bitnet.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
