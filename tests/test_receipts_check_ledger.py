"""The ledger cannot say what these kernels, on this model and machine, did not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from receipt_liars import NOW, check_liar, liars

from fixtures.receipts import sample
from receipts.rule import RULES, View


@pytest.mark.parametrize("hole", liars("check_ledger"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


@pytest.mark.parametrize(
    ("isa", "flag"),
    [
        ("avx2", "avx2"),
        ("avx512f", "avx512f"),
        ("avx512_vnni", "avx512_vnni"),
        ("avx512vnni", "avx512vnni"),
        ("avx_vnni", "avx_vnni"),
        ("neon", "asimd"),
        ("neon", "neon"),
        ("neon_dotprod", "asimddp"),
        ("sve", "sve"),
    ],
)
def test_an_instruction_set_needs_its_flag(isa, flag):
    assert not isa_findings(isa, ("avx", "avx2", "avx512f", "neon", flag))
    assert isa_findings(isa, ("sse2",))


@pytest.mark.parametrize("isa", ["generic", "numpy", "sse2", "x86_64", "aarch64"])
def test_what_every_cpu_has_needs_no_flag(isa):
    assert not isa_findings(isa, ())


def isa_findings(isa, flags):
    receipt = sample.minimal()
    part = receipt.ledger[0]
    part = replace(part, entries=tuple(replace(entry, isa=isa) for entry in part.entries))
    receipt = replace(receipt, ledger=(part,), environment=replace(receipt.environment, cpu_flags=flags))
    return list(RULES["ledger.isa"].check(View(receipt, (), NOW)))


def test_an_activation_quantiser_in_a_kernels_name_is_no_weight_type():
    receipt = sample.minimal()
    part = receipt.ledger[0]
    entry = replace(part.entries[0], kernel="cpu.ternary_q8_0.q8_0")
    receipt = replace(receipt, ledger=(replace(part, entries=(entry,)),))
    assert not list(RULES["ledger.weight_type"].check(View(receipt, (), NOW)))


def test_every_packing_from_ternary_information_to_padded_floats_is_plausible():
    receipt = sample.minimal()
    part = receipt.ledger[0]
    weights = part.passes * sample.SHAPE.projection_weights
    for bits, honest in ((1.5, False), (1.6, True), (2, True), (8, True), (32, True), (40, False)):
        entry = replace(part.entries[0], bytes=int(weights * bits / 8))
        view = View(replace(receipt, ledger=(replace(part, entries=(entry,)),)), (), NOW)
        assert (not list(RULES["ledger.bytes"].check(view))) is honest
