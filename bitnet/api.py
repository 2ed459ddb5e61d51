"""`bitnet.load(path)`: from a file to a model that is ready."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from bitnet.architecture import read_config
from bitnet.arguments import instance_of, path_of, whole_number
from bitnet.bitnet_model import BitNetModel
from bitnet.compiled import AheadOfTime
from bitnet.config import ModelConfig, Numerics
from bitnet.errors import UsageError
from bitnet.gguf import GGUF
from bitnet.hf import open_model
from bitnet.kernels import check_device, kernels
from bitnet.kernels.variants import PLAIN, choose, for_blocks
from bitnet.limits import MOST_THREADS, check_room, parse_number
from bitnet.linear import Backend
from bitnet.model import network
from bitnet.packed_cache import Entry
from bitnet.packed_cache import entry as packed_entry
from bitnet.packed_cache import formats as kept_formats
from bitnet.runtime import Runtime, pool_pages
from bitnet.weight_statistics import is_ternary
from bitnet.weights import Weights, read_weights


def default_threads() -> int:
    """BITNET_NUM_THREADS, or the physical cores this process may use. Raises `UsageError` for nonsense."""
    asked = os.environ.get("BITNET_NUM_THREADS", "").strip()
    if asked:
        return parse_number(asked, most=MOST_THREADS, where="BITNET_NUM_THREADS", of="threads")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def default_numerics(weights: Weights) -> tuple[Numerics, tuple[str, ...]]:
    """BitNet's int8 activations where any projection is ternary, in type or in value; none for other float models.

    One rounding serves all projections, so that of a ternary model's float matrices is int8 too: the second value says
    it of a file that mixes both, judging floats by their first rows.
    """
    if not any(map(is_ternary, weights.projections())):
        return Numerics(activation="none"), ()
    floats = [m.name for m in weights.projections() if not is_ternary(m, n_row=1)]
    if not floats:
        return Numerics(), ()
    more = f" and {len(floats) - 1} more" if floats[1:] else ""
    return Numerics(), (f"not ternary, though other projections are: {floats[0]}{more}; all take int8 activations",)


def _read(gguf: GGUF, config: ModelConfig, place: Entry | None, device: str) -> tuple[Weights, bool]:
    """The weights, and whether they are packed ones of an earlier start."""
    kept = place.open() if place is not None else None
    kernels(device)  # importing takes as long as checking what was kept, which other threads do meanwhile
    if place is None or kept is None:
        return read_weights(gguf, config), False
    weights = read_weights(gguf, config, kept_formats(kept), kept.matrices)
    if kept.sound():
        return weights, True
    place.discard()
    return read_weights(gguf, config), False


@contextmanager
def _blaming(name: str, *, given: str | None) -> Iterator[None]:
    """Name the argument, not the variable that it took the place of, as what is at fault."""
    try:
        yield
    except UsageError as error:
        if not given:
            raise
        raise UsageError(error.what, where=name, remedy=error.remedy) from error


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    n_threads: int | None = None,
    numerics: Numerics | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
    isa: str | None = None,
    packed_cache: bool = True,
    on_packing: Callable[[int, int], None] = lambda *_: None,
    compile_ahead: bool = False,
) -> BitNetModel:
    """Open a GGUF file, or the folder of a Hugging Face checkpoint.

    Args:
        path: The file or folder; default BITNET_GGUF.
        device: `cpu` (compiled kernels) or `plain` (numpy); default BITNET_DEVICE, else `cpu`.
        n_threads: Default BITNET_NUM_THREADS, else the physical cores. Results do not depend on it.
        numerics: How activations and the cache are rounded; default BitNet's own where any projection is ternary.
        tokenizer: A tokenizer.json, tokenizer.model or GGUF in place of the file's own; default what `discovery` finds.
        cache_bytes: Size of the KV cache of all sequences; default four contexts, if there is memory for them. The
            system commits it as it is used.
        isa: Which kernels multiply ternary weights (`bitnet.kernels.variants`); default BITNET_ISA, else the best that
            this machine runs. Results do not depend on it.
        packed_cache: Whether packed weights may be kept for the next start, and taken from there; see
            `bitnet.packed_cache`. Results do not depend on it.
        on_packing: Told how many matrices are packed, of how many.
        compile_ahead: Whether the pass is compiled, or fetched from the cache of compiled code, by a thread while
            weights are packed, not when it is first needed. A program that ends before waits for it.

    Raises:
        UsageError: No path, or an argument without meaning here.
        ModelFileError: The file is damaged, incomplete, or of an unknown architecture.
        ResourceLimitError: The weights do not fit into BITNET_MEMORY_LIMIT.
    """
    began = time.perf_counter()
    path = path or os.environ.get("BITNET_GGUF")
    if not path:
        raise UsageError("no model is named", remedy="give a path, or set BITNET_GGUF")
    path_of(path, "path")
    if tokenizer is not None:
        path_of(tokenizer, "tokenizer")
    if numerics is not None:
        instance_of(numerics, Numerics, "numerics", "a bitnet.Numerics")
    for name, text in (("device", device), ("isa", isa)):
        if text is not None:
            instance_of(text, str, name, "a name, such as cpu" if name == "device" else "a name, such as avx2")
    if cache_bytes is not None:
        wanted = f"a number of bytes, 1 to {sys.maxsize}"
        cache_bytes = whole_number(cache_bytes, "cache_bytes", wanted, most=sys.maxsize)
    if not callable(on_packing):
        raise UsageError(f"on_packing is {on_packing!r}", remedy="give a function of two numbers, or leave it out")
    with _blaming("device", given=device):
        device = device or os.environ.get("BITNET_DEVICE") or "cpu"
        check_device(device)
    with _blaming("isa", given=isa):
        variant = choose(isa) if device == "cpu" else PLAIN
    if numerics is not None and numerics.activation == "q8_k":
        variant = for_blocks(variant)
    if n_threads is None:
        n_threads = default_threads()
    n_threads = whole_number(n_threads, "n_threads", f"a whole number, 1 to {MOST_THREADS}", most=MOST_THREADS)
    gguf = open_model(path)
    config, notices = read_config(gguf)
    check_room(gguf.n_bytes)
    place = packed_entry(gguf, variant.layout) if packed_cache else None
    weights, kept = _read(gguf, config, place, device)
    chosen, mixed = (numerics, ()) if numerics is not None else default_numerics(weights)
    backend = Backend(device, n_threads, variant)
    ahead = AheadOfTime(weights, backend, chosen) if compile_ahead else None

    def packing(done: int, total: int) -> None:
        if ahead is not None:
            ahead.start()  # after the first matrix: the kernels that pack are compiled by then
        on_packing(done, total)

    weights = weights.packed(backend, packing)
    if ahead is not None:
        ahead.start()
    if place is not None and not kept:
        place.keep(weights)
    gguf.release()
    net = network(gguf, config, weights, backend, chosen)
    if cache_bytes is not None:
        pool_pages(net, cache_bytes)  # refuses nonsense now, not at the first prompt
    runtime = Runtime(network=net, cache_bytes=cache_bytes, load_seconds=time.perf_counter() - began)
    return BitNetModel(gguf, weights, runtime, (*gguf.notices, *notices, *weights.notices, *mixed), tokenizer)
