"""Envelopes of the quantisers, measured on kernels against the oracle; and that a wrong kernel is noticed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bitnet.errors import UsageError
from bitnet.gguf import GGMLType
from bitnet.kernels import plain
from crossval.__main__ import app
from crossval.accuracy import TYPES, accuracy_table, all_accuracies, quantiser_accuracy
from crossval.envelope import QUANTISED_PRODUCT

by_name = {"ids": lambda t: t.name}


@pytest.mark.parametrize("inputs", ["dense", "ternary"])
@pytest.mark.parametrize("type_", TYPES, **by_name)
@pytest.mark.parametrize("device", ["cpu", "plain"])
def test_every_format_is_within_its_envelope(type_, inputs, device):
    r = quantiser_accuracy(type_, inputs, device=device)
    assert r.passed
    assert r.compared == 16 * 320
    assert r.kernel_id == f"{device}.ternary_int8_token.int8_token"
    # Exact sums and three float32 roundings: below 3 · 2⁻²⁴ relative, 3.2e-14 squared.
    assert r.kernel < 3.2e-14
    if inputs == "ternary":
        assert (r.kept, r.ternarisation) == (0, 0)
        assert r.total == pytest.approx(r.activation, rel=1e-3)
    else:
        assert 0.2 < r.ternarisation < 0.3  # of normally distributed weights: no format can help it


def test_the_parts_do_not_depend_on_the_format():
    for inputs in ("dense", "ternary"):
        rows = [quantiser_accuracy(t, inputs, device="plain") for t in TYPES]
        assert len({(r.ternarisation, r.activation) for r in rows}) == 1


@pytest.mark.parametrize("type_", [GGMLType.TL1, GGMLType.TL2], **by_name)
@pytest.mark.parametrize("device", ["cpu", "plain"])
def test_rows_that_are_no_multiple_of_128(type_, device):
    r = quantiser_accuracy(type_, "ternary", device=device, shape=(160, 544))
    assert r.passed
    assert r.kernel < 3.2e-14


def test_the_envelopes_are_those_promised():
    limits = {name: e.limit for name, e in QUANTISED_PRODUCT.items()}
    assert limits == {"I2_S": 1e-5, "TL1": 1e-4, "TL2": 1e-4, "TQ1_0": 1e-5, "TQ2_0": 1e-5}
    assert all(e.reason for e in QUANTISED_PRODUCT.values())


@pytest.mark.parametrize("defect", ["scale", "rounding", "row"])
def test_a_kernel_that_lies_is_noticed(monkeypatch, defect):
    honest = plain.ternary_int8_token

    def lying(v, codes, q, total, scale, tensor_scale, row, end, out):
        honest(v, codes, q, total, scale, tensor_scale, row, end, out)
        if defect == "scale":
            out *= np.float32(1.005)
        elif defect == "rounding":
            out[:] = (out * 64).round() / 64
        else:
            out[:, row] = 0

    monkeypatch.setattr(plain, "ternary_int8_token", lying)
    assert not quantiser_accuracy(GGMLType.I2_S, "ternary", device="plain").passed


def test_a_quantiser_that_changes_ternary_weights_is_noticed():
    r = quantiser_accuracy(GGMLType.I2_S, "ternary", device="plain")
    fields = {name: getattr(r, name) for name in r.__dataclass_fields__}
    assert not type(r)(**fields | {"kept": 1e-9}).passed
    assert not type(r)(**fields | {"ternarisation": 1e-9}).passed
    assert not type(r)(**fields | {"kernel": float("nan")}).passed


def test_other_types_and_inputs_are_refused():
    with pytest.raises(UsageError, match="no accuracy of F16"):
        quantiser_accuracy(GGMLType.F16, "dense")
    with pytest.raises(UsageError, match="'sparse'"):
        quantiser_accuracy(GGMLType.I2_S, "sparse")


def test_the_table_shows_every_part_in_80_columns():
    text = io.StringIO()
    Console(file=text, width=80).print(accuracy_table(all_accuracies("plain")))
    lines = text.getvalue().splitlines()
    assert not any("…" in line for line in lines)
    assert sum(line.rstrip().endswith("yes") for line in lines) == 2 * len(TYPES)
    result = CliRunner().invoke(app, ["accuracy", "--device", "plain"])
    assert result.exit_code == 0
    assert "TL2" in result.output
