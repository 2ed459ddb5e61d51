"""The variants of the ternary kernels: one table of ids, instruction sets and layouts, and which one a machine gets.

A variant is chosen before anything is compiled, because an instruction that the machine does not have ends the
process. It reaches a kernel as its first argument: an object that only the compiler looks at, so each variant is
compiled, and cached, for itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from bitnet.errors import UsageError

Layout = Literal["rows", "2-bit", "base-3", "triples"]


@dataclass(frozen=True, slots=True)
class TileShape:
    """Rows, columns and bytes of one tile."""

    rows: int
    columns: int
    n_bytes: int


#: Of every layout that has tiles; what their bytes mean is in `row_tiles.py`.
TILES: Mapping[Layout, TileShape] = {
    "2-bit": TileShape(16, 16, 64),
    "base-3": TileShape(16, 20, 64),
    "triples": TileShape(32, 24, 160),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One compiled form of the ternary kernels.

    Attributes:
        id: What a user calls it (`BITNET_ISA`, `load(isa=…)`).
        isa: Instruction set, as the ledger and the receipts name it.
        layout: How its weights are packed.
        needs: CPU features, as LLVM names them; none for the one that runs everywhere.
        what: The instruction that does the work.
    """

    id: str
    isa: str
    layout: Layout
    needs: tuple[str, ...]
    what: str


#: Of the device `plain`.
PLAIN = Variant(id="plain", isa="numpy", layout="rows", needs=(), what="numpy on rows of codes")

#: Best first.
VARIANTS: Mapping[str, Variant] = {
    v.id: v
    for v in (
        Variant(
            id="avx512vnni",
            isa="avx512vnni",
            layout="base-3",
            needs=("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
            what="vpdpbusd on 512 bits, 1.6 bits a weight",
        ),
        Variant(
            id="avx512vnni-2bit",
            isa="avx512vnni",
            layout="2-bit",
            needs=("avx512f", "avx512bw", "avx512vl", "avx512vnni"),
            what="vpdpbusd on 512 bits",
        ),
        Variant(
            id="avx2",
            isa="avx2",
            layout="triples",
            needs=("avx2", "fma", "f16c"),
            what="vpshufb on 256 bits, three weights a lookup, 1.67 bits a weight",
        ),
        Variant(
            id="avx2-2bit", isa="avx2", layout="2-bit", needs=("avx2", "fma", "f16c"), what="vpmaddubsw on 256 bits"
        ),
        Variant(id="neon", isa="neon_dotprod", layout="2-bit", needs=("neon", "dotprod"), what="sdot on 128 bits"),
        Variant(id="generic", isa="generic", layout="2-bit", needs=(), what="LLVM vectors of 16-bit products"),
        Variant(id="generic-base3", isa="generic", layout="base-3", needs=(), what="LLVM vectors of 32-bit products"),
    )
}


@cache
def host_features() -> frozenset[str]:
    """CPU features of this machine, as LLVM names them."""
    from llvmlite import binding

    return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)


def runs_here(variant: Variant) -> bool:
    """Whether this machine has what a variant needs."""
    return host_features().issuperset(variant.needs)


def choose(asked: str | None = None) -> Variant:
    """The variant to compile: the one asked for, BITNET_ISA, or the best that runs here.

    Raises:
        UsageError: There is no such variant, or this machine cannot run it.
    """
    name = asked or os.environ.get("BITNET_ISA", "").strip() or None
    if name is None:
        return next(v for v in VARIANTS.values() if runs_here(v))
    variant = VARIANTS.get(name)
    usable = ", ".join(v.id for v in VARIANTS.values() if runs_here(v))
    if variant is None:
        raise UsageError(f"no kernels for {name!r}", where="BITNET_ISA", remedy=f"one of {usable}")
    if not runs_here(variant):
        missing = sorted(set(variant.needs) - host_features())
        raise UsageError(
            f"this CPU has no {', '.join(missing)}, which the kernels {name!r} need",
            where="BITNET_ISA",
            remedy=f"one of {usable}",
        )
    return variant


def for_blocks(variant: Variant) -> Variant:
    """The variant of the same instruction set for numerics with blocks of 256, which end within larger tiles."""
    if variant.layout in ("2-bit", "rows"):
        return variant
    return next(v for v in VARIANTS.values() if v.isa == variant.isa and v.layout == "2-bit")
