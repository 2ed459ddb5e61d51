"""The kernels of variants that this machine may not run, by their instructions."""

from __future__ import annotations

import re
from functools import cache

import pytest

from bitnet.kernels.emit import SYMBOL, emitted
from bitnet.kernels.variants import VARIANTS

#: What the inner loops must be made of, and what they must not.
INSTRUCTIONS = {
    "avx512vnni": (r"vpdpbusd\s.*zmm", r"vpmull"),
    "avx512vnni-2bit": (r"vpdpbusd\s.*zmm", r"vpmull"),
    "avx2": (r"vpmaddubsw\s.*ymm", r"zmm"),
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
    assert re.search(rf"\.globl\s+{SYMBOL}\b", code)
    assert re.search(r"prefetcht0|prfm\s+pldl1keep", code)


@pytest.mark.slow
def test_the_search_tells_variants_apart():
    assert not re.search(INSTRUCTIONS["avx512vnni"][0], assembly("avx2"))
    assert re.search(INSTRUCTIONS["avx2"][1], assembly("avx512vnni"))


@pytest.mark.slow
def test_an_object_file_is_of_the_other_machine():
    code = emitted(VARIANTS["neon"], "object")
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64
