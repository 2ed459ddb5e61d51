"""The report on a model file: what is sound passes, and each kind of fault is found, named and given a remedy."""

from __future__ import annotations

import json

import malformed
import numpy as np
import pytest
import small_models
from jsonschema import Draft202012Validator
from malformed import I2_S, NORM, Q, at, f32, filled, model
from test_gguf_shards import split
from test_refusals import CONTAINER, MODELS, ROOT

import bitnet
from bitnet.errors import ModelFileError, ResourceLimitError
from bitnet.gguf import GGMLType, from_bytes
from bitnet.validate import BALANCE_FROM, Finding, WeightReport, validate_weights, verify
from reference.contract import PROJECTIONS

FIXTURES = [*(ROOT / "fixtures" / "models").glob("*.gguf"), *(ROOT / "fixtures" / "goldens").glob("*.gguf")]
SCHEMA = Draft202012Validator(json.loads((ROOT / "schemas" / "model-verify-1.schema.json").read_text()))
#: Faults of the tokenizer and of its template that only show when something is encoded or rendered.
RENDERED = {"template without end", "template into the interpreter", "template that makes too much"}


def report(tmp_path, raw: bytes) -> WeightReport:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    return verify(path)


def only(found: WeightReport, severity: str) -> Finding:
    [finding] = found.of(severity)
    return finding


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.name)
def test_the_fixtures_are_sound(path):
    found = verify(path)
    assert found.ok
    assert found.of("warning") == ()
    assert found.matrices
    assert found.norms
    total = sum(found.trits.values())
    assert total == sum(m.n for m in found.matrices if m.name.startswith("blk."))
    SCHEMA.validate(found.to_dict())


def test_a_loaded_model_reports_the_same():
    path = FIXTURES[0]
    loaded = bitnet.load(path, device="plain").validate_weights()
    assert loaded.matrices == verify(path).matrices
    assert loaded.norms == verify(path).norms
    assert loaded.ok
    SCHEMA.validate(loaded.to_dict())


def test_a_loaded_model_is_examined_as_it_was_read(monkeypatch):
    loaded = bitnet.load(FIXTURES[0], device="plain")
    monkeypatch.setattr("bitnet.validate.read_formats", None)  # not found out again
    assert loaded.validate_weights().ok


@pytest.mark.parametrize("name", [name for name in (*CONTAINER, *MODELS) if name not in RENDERED])
def test_what_loading_refuses_is_an_error_here(tmp_path, name):
    found = report(tmp_path, CONTAINER[name] if name in CONTAINER else MODELS[name][0])
    assert not found.ok
    assert all(finding.what and finding.remedy for finding in found.of("error"))
    SCHEMA.validate(found.to_dict())
    json.dumps(found.to_dict(), allow_nan=False)
    assert "not usable" in str(found)


def test_all_faults_are_found_not_the_first_alone(tmp_path):
    raw = model(
        *I2_S,
        drop=["blk.0.ffn_up.weight"],
        tensors={Q: filled(0x55), NORM: at(0, f32(float("nan"))), "extra": [1.0]},
        keys={"tokenizer.ggml.bos_token_id": 999},
    )
    found = report(tmp_path, raw)
    assert {f.subject for f in found.of("error")} == {"blk.0.ffn_up.weight", Q, NORM, "extra", "tokenizer"}


def test_a_gamma_of_0_018_passes(tmp_path):
    gamma = np.random.default_rng(0).normal(0.018, 0.002, 128)
    found = report(tmp_path, model(*I2_S, tensors={"blk.0.attn_sub_norm.weight": gamma}))
    assert found.ok
    assert found.of("warning") == ()
    [norm] = [n for n in found.norms if n.name == "blk.0.attn_sub_norm.weight"]
    assert norm.rms == pytest.approx(0.018, rel=0.05)


@pytest.mark.parametrize("gamma", [1e-6, 1e6])
def test_a_gamma_that_no_training_makes_is_a_warning(tmp_path, gamma):
    found = report(tmp_path, model(*I2_S, tensors={NORM: np.full(128, gamma)}))
    assert found.ok
    assert only(found, "warning").subject == NORM


def test_a_gamma_of_zeros_is_an_error(tmp_path):
    assert only(report(tmp_path, model(*I2_S, tensors={NORM: np.zeros(128)})), "error").what.startswith("is all zero")


def codes_of(*trits):
    """A change of an I2_S tensor: every byte these four trits."""
    byte = sum((t + 1) << shift for t, shift in zip(trits, (6, 4, 2, 0), strict=True))
    return filled(byte)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (codes_of(1, -1, 1, -1), "0.0% of its weights are 0"),  # max|w| as scale
        (codes_of(1, 0, 1, 0), "0 weights of −1"),  # a table of codes without −1
        (at(-32, f32(-0.25)), "scale -0.25 is negative"),
    ],
)
def test_what_looks_wrongly_packed_is_a_warning(tmp_path, change, words):
    assert BALANCE_FROM <= 128 * 128
    found = report(tmp_path, model(*I2_S, tensors={Q: change}))
    assert found.ok
    warning = only(found, "warning")
    assert warning.subject == Q
    assert words in warning.what
    assert warning.remedy


def test_scales_of_1_everywhere_may_have_been_dropped(tmp_path):
    names = [n for n in small_models.parts(*I2_S)[1] if n.startswith("blk.") and "norm" not in n]
    found = report(tmp_path, model(*I2_S, tensors={name: at(-32, f32(1.0)) for name in names}))
    assert "dropped" in only(found, "warning").remedy


def test_a_scale_far_from_those_of_the_other_layers_is_a_warning():
    """Four layers; one scale is inverted."""
    source = ROOT / "fixtures" / "models" / "tiny-relu2.i2_s.gguf"
    from model_edits import edited, with_tail_scale

    assert verify(source).of("warning") == ()
    name = "blk.2.ffn_up.weight"
    scale = next(m.scale for m in verify(source).matrices if m.name == name)
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = edited(source, Path(folder) / "m.gguf", tensors={name: with_tail_scale(1 / scale)})
        warning = only(verify(path), "warning")
    assert warning.subject == name
    assert "the median of ffn_up is" in warning.what


def test_floats_that_are_not_ternary_are_noted_with_what_they_are_multiplied_with(tmp_path):
    def noted(*names):
        tensors = {name: np.random.default_rng(0).standard_normal((16, 16)) for name in names}
        found = report(tmp_path, model(tensors=tensors))
        assert found.ok
        return {note.subject: note.what for note in found.of("note") if "is not ternary" in note.what}

    assert [*noted(Q)] == [Q]
    assert noted(Q)[Q].endswith("multiplied as floats, with activations in int8, as the ternary ones")
    every = [f"blk.0.{name}.weight" for name in PROJECTIONS.values()]
    assert all(what.endswith("multiplied as floats, with activations as they are") for what in noted(*every).values())
    assert sorted(noted(*every)) == sorted(every)


def test_an_embedding_with_nan_is_an_error(tmp_path):
    values = np.random.default_rng(0).standard_normal((small_models.N_VOCAB, 16))
    values[200, 3] = np.nan
    found = report(tmp_path, model(tensors={"token_embd.weight": values}))
    assert only(found, "error").what == "holds NaN or infinity"


def test_sizes_of_the_vocabulary_are_compared(tmp_path):
    for size in (300, "270"):
        found = report(tmp_path, model(keys={".vocab_size": size}))
        assert only(found, "error").subject == "llama.vocab_size"
        with pytest.raises(ModelFileError, match="vocab_size"):
            bitnet.load(tmp_path / "m.gguf")
    found = report(tmp_path, model(keys={"tokenizer.ggml.tokens": 5}))
    assert only(found, "error").subject == "tokenizer"
    rows = np.random.default_rng(0).standard_normal((small_models.N_VOCAB + 10, 16))
    found = report(tmp_path, model(tensors={"token_embd.weight": rows}))
    assert found.ok
    assert any("never made into text" in note.what for note in found.of("note"))


def test_a_missing_pre_tokenizer_and_an_outdated_template_are_noted(tmp_path):
    keys = {"tokenizer.ggml.pre": malformed.ABSENT, "tokenizer.chat_template": "Human: BITNETAssistant: "}
    found = report(tmp_path, model("bitnet-b1.58", GGMLType.F16, 16, keys=keys))
    assert found.ok
    said = {note.subject: note.what for note in found.of("note")}
    assert "tokenizer.ggml.pre" in said["tokenizer"]
    assert said["tokenizer.chat_template"].startswith("corrected: ")


def test_a_model_without_a_tokenizer_or_template_in_memory():
    gguf = from_bytes(model(*I2_S))
    from bitnet.architecture import read_config

    assert validate_weights(gguf, read_config(gguf)[0]).ok


def test_many_findings_are_shortened_for_people(tmp_path):
    found = report(tmp_path, model(keys={".block_count": 50}))
    assert len(found.of("error")) == 49 * 9
    assert str(found).count("\nerror") + str(found).startswith("error") == 20
    assert "more of the same severities" in str(found)
    assert "441 error(s)" in str(found)


def test_a_limit_is_not_a_finding(tmp_path):
    import gguf_bytes

    with pytest.raises(ResourceLimitError):
        report(tmp_path, gguf_bytes.file(tuple(gguf_bytes.u32_key(f"k{i}", i) for i in range(65_537))))


def test_a_broken_header_is_named_by_field_and_place(tmp_path):
    error = only(report(tmp_path, CONTAINER["bool 2 in an array"]), "error")
    assert error.subject == "k[2]"
    assert error.what.startswith("a bool is 2, not 0 or 1 (at byte ")
    half = (ROOT / "fixtures" / "models" / "tiny-relu2.i2_s.gguf").read_bytes()[:100]
    assert only(report(tmp_path, half), "error").subject == "tensor count"
    assert only(report(tmp_path, b"nonsense"), "error").subject == "magic"
    shards = split(tmp_path / "split", 2)
    shards[1].write_bytes(shards[1].read_bytes()[:40])
    assert only(verify(shards[0]), "error").what.endswith(f" of {shards[1].name})")


def test_what_is_no_file_is_one_error(tmp_path):
    assert "no such file" in only(verify(tmp_path / "none.gguf"), "error").what
