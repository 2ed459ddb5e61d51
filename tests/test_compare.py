"""Two models on decoded values; every difference that can be made is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import MODELS, ROOT, TINY, run
from model_edits import edited, with_tail_scale

from bitnet.compare import compare
from bitnet.convert import convert
from bitnet.gguf import read
from bitnet.hf import open_model

Q = "blk.0.attn_q.weight"


def of(result, name=Q):
    return next(t for t in result.tensors if t.name == name)


def changed(tmp_path, **changes):
    return read(edited(TINY, tmp_path / "b.gguf", **changes))


@pytest.mark.parametrize("to", ["i2_s", "tq2_0", "tq1_0", "tl1", "tl2", "f32", "hf"])
def test_every_lossless_carrier_is_equal(to, tmp_path):
    convert(TINY, tmp_path / "b", type=to)
    result = compare(read(TINY), open_model(tmp_path / "b"))
    assert result.weights_equal
    assert {t.status for t in result.tensors} == {"equal"}
    assert not result.hyper_parameters
    if to != "hf":  # a checkpoint's tokenizer is a file that says the same in other words
        assert result.equal


def test_the_shipped_carriers_of_one_model_are_equal():
    files = [read(MODELS / f"tiny-silu.{kind}.gguf") for kind in ("f32", "i2_s", "tq2_0")]
    assert compare(files[0], files[1]).weights_equal
    assert compare(files[1], files[2]).weights_equal


def test_one_trit(tmp_path):
    def flip(raw):
        raw[0] ^= 0x40 if raw[0] & 0xC0 else 0x80
        return raw

    found = of(compare(read(TINY), changed(tmp_path, tensors={Q: flip})))
    assert (found.status, found.n_differ, found.n_signs) == ("differs", 1, 1)
    assert found.max_abs == pytest.approx(found.scale_a)


def test_another_scale_is_told_from_other_trits(tmp_path):
    found = of(compare(read(TINY), changed(tmp_path, tensors={Q: with_tail_scale(0.5)})))
    assert found.status == "differs"
    assert found.n_signs == 0
    assert found.scale_b == 0.5
    assert found.max_abs == pytest.approx(abs(0.5 - found.scale_a))
    assert 0 < found.n_differ < found.n


def test_a_norm_by_one_ulp(tmp_path):
    name = "output_norm.weight"

    def nudge(raw):
        values = raw.view(np.float32)
        values[3] = np.nextafter(values[3], np.float32(9))
        return raw

    found = of(compare(read(TINY), changed(tmp_path, tensors={name: nudge})), name)
    assert (found.status, found.n_differ) == ("differs", 1)
    assert 0 < found.max_abs < 1e-6


@pytest.mark.parametrize("same", [False, True])
def test_what_is_no_number_is_never_equal(same, tmp_path):
    name = "output_norm.weight"

    def poison(raw):
        raw.view(np.float32)[0] = np.nan
        return raw

    bad = changed(tmp_path, tensors={name: poison})
    found = of(compare(bad if same else read(TINY), bad), name)
    assert (found.status, found.n_differ, found.max_abs) == ("differs", 1, None)


def test_names_shapes_and_what_is_missing(tmp_path):
    source = read(TINY)
    norm = source.raw("output_norm.weight").view(np.float32)
    result = compare(
        source,
        changed(
            tmp_path,
            drop=["output_norm.weight", "blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight"],
            tensors={
                "final_norm.weight": norm,
                "blk.0.attn_norm.weight": np.ones(7, np.float32),
                "extra.weight": np.ones(512, np.float32),
            },
        ),
    )
    assert (of(result, "output_norm.weight").status, of(result, "output_norm.weight").other) == (
        "renamed",
        "final_norm.weight",
    )
    assert "final_norm.weight" not in [t.name for t in result.tensors]
    assert of(result, "blk.0.ffn_norm.weight").status == "only_a"
    assert of(result, "extra.weight").status == "only_b"
    assert of(result, "blk.0.attn_norm.weight").status == "shape"
    assert not result.weights_equal


def test_hyper_parameters_and_tokenizer(tmp_path):
    keys = {"bitnet-b1.58.rope.freq_base": 10000.0, "tokenizer.ggml.pre": "default"}
    result = compare(read(TINY), changed(tmp_path, keys=keys))
    assert [(d.field, d.b) for d in result.hyper_parameters] == [("rope_theta", "10000.0")]
    assert [d.field for d in result.tokenizer] == ["ggml.pre", "digest"]
    assert result.weights_equal
    assert not result.equal


def test_the_command(tmp_path):
    other = MODELS / "tiny-llama.f32.gguf"
    done = run("model", "compare", TINY, TINY)
    assert done.code == 0
    assert "the models are equal" in done.out
    done = run("model", "compare", TINY, other)
    assert done.code == 1
    assert "the models differ" in done.out
    assert "rope_style" in done.out
    path = edited(TINY, tmp_path / "b.gguf", keys={"tokenizer.ggml.pre": "default"})
    done = run("model", "compare", TINY, path)
    assert done.code == 1
    assert "the weights are equal to the bit; hyper-parameters or tokenizer differ" in done.out
    listed = json.loads(run("model", "compare", TINY, path, "--format", "json").out)
    assert listed["weights_equal"]
    assert len(listed["tensors"]) == len(read(TINY).tensors)
    assert "blk.0.attn_q.weight" in run("model", "compare", TINY, path, "--all").out


def test_a_checkpoint_with_a_gguf_made_of_it(tmp_path):
    folder = ROOT / "fixtures/hf/bitnet-bitlinear"
    convert(folder, tmp_path / "b.gguf", type="i2_s")
    assert compare(open_model(folder), read(tmp_path / "b.gguf")).weights_equal
