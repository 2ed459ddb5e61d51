"""The table of variants, and which one a machine gets."""

from __future__ import annotations

import pytest

from bitnet.errors import UsageError
from bitnet.kernels import variants
from bitnet.kernels.variants import TILES, VARIANTS, choose, runs_here


@pytest.fixture
def host(monkeypatch):
    """Pretend to be a machine with these features."""

    def pretend(*features):
        monkeypatch.setattr(variants, "host_features", lambda: frozenset(features))

    monkeypatch.delenv("BITNET_ISA", raising=False)
    return pretend


def test_ids_are_those_of_the_table_and_layouts_are_known():
    assert all(key == v.id for key, v in VARIANTS.items())
    assert {v.layout for v in VARIANTS.values()} == set(TILES)
    assert not VARIANTS["generic"].needs


@pytest.mark.parametrize(
    ("features", "best"),
    [
        ((), "generic"),
        (("avx2",), "generic"),  # without fma and f16c it is no machine we know
        (("avx2", "fma", "f16c"), "avx2"),
        (("avx2", "fma", "f16c", "avx512f"), "avx2"),
        (("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"), "avx512vnni"),
        (("neon",), "generic"),
        (("neon", "dotprod"), "neon"),
    ],
)
def test_the_best_that_runs_is_chosen(host, features, best):
    host(*features)
    assert choose().id == best


def test_one_that_is_asked_for_is_taken_or_refused_but_never_replaced(host, monkeypatch):
    host("avx2", "fma", "f16c")
    assert choose("generic").id == "generic"
    with pytest.raises(UsageError, match="no avx512bw, avx512f") as refused:
        choose("avx512vnni")
    assert "one of avx2, avx2-2bit, generic, generic-base3" in str(refused.value)
    with pytest.raises(UsageError, match="no kernels for 'sse9'"):
        choose("sse9")
    monkeypatch.setenv("BITNET_ISA", "generic-base3")
    assert choose().id == "generic-base3"
    assert choose("avx2").id == "avx2"
    monkeypatch.setenv("BITNET_ISA", "")
    assert choose().id == "avx2"


def test_blocks_of_256_need_tiles_that_end_with_them():
    for v in VARIANTS.values():
        assert variants.for_blocks(v).layout == "2-bit"
        assert variants.for_blocks(v).isa == v.isa
    assert variants.for_blocks(variants.PLAIN) is variants.PLAIN


def test_features_of_this_machine_are_llvms():
    assert variants.host_features() <= frozenset(__import__("llvmlite").binding.get_host_cpu_features())
    assert runs_here(VARIANTS["generic"])
