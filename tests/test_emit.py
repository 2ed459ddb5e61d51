"""The kernels of variants that this machine may not run, by their instructions."""

from __future__ import annotations

import re
from functools import cache

import pytest

from bitnet.kernels.emit import PLANE_SYMBOL, SYMBOL, emitted
from bitnet.kernels.variants import VARIANTS

#: What the inner loops must be made of, and what they must not.
INSTRUCTIONS = {
    "avx512vnni": (r"vpdpbusd\s.*zmm", r"vpmull"),
    "avx512vnni-2bit": (r"vpdpbusd\s.*zmm", r"vpmull"),
    "avx2": (r"vpshufb\s.*ymm", r"zmm"),
    "avx2-2bit": (r"vpmaddubsw\s.*ymm", r"zmm"),
    "neon": (r"sdot\s+v\d+\.4s", r"\smul\s+v"),
    "generic": (r"pmullw", r"ymm"),
}


@cache
def assembly(name):
    return emitted(VARIANTS[name], "assembly").decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_inner_loops_use_the_instructions_of_the_variant(name):
    needed, forbidden = INSTRUCTIONS[name]
    code = assembly(name)
    assert len(re.findall(needed, code)) >= 16
    assert not re.search(forbidden, code)
    for symbol in (SYMBOL, PLANE_SYMBOL):
        assert re.search(rf"\.globl\s+{symbol}\b", code)
    assert re.search(r"prefetcht0|prfm\s+pldl1keep", code)


#: What multiplies the planes of the head.
PLANES = {
    "avx512vnni": (r"vpdpbusd\s.*ymm", 24),
    "avx512vnni-2bit": (r"vpdpbusd\s.*ymm", 24),
    "avx2": (r"vpmaddubsw\s.*ymm", 24),
    "neon": (r"sdot\s+v\d+\.4s", 48),
    "generic": (r"pmullw", 24),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANES)
def test_the_head_uses_the_instructions_of_the_variant(name):
    needed, count = PLANES[name]
    code = assembly(name)
    assert len(re.findall(needed, code[code.index(f"_{PLANE_SYMBOL}") :])) >= count


@pytest.mark.slow
def test_the_search_tells_variants_apart():
    assert not re.search(INSTRUCTIONS["avx512vnni"][0], assembly("avx2"))
    assert re.search(INSTRUCTIONS["avx2"][1], assembly("avx512vnni"))


@pytest.mark.slow
def test_an_object_file_is_of_the_other_machine():
    code = emitted(VARIANTS["neon"], "object")
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64
