"""Copies for other engines: made once by one converter, and refused where they declare something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import golden_models
import liars
import numpy as np
import pytest
from model_edits import edited, with_tail_scale
from test_gguf_shards import split
from test_imports import imports

from bitnet.gguf import GGMLType, TypedArray, ValueType, read
from bitnet.transcode import transcode
from crossval import copies
from crossval.copies import CONVERTER, declared_otherwise, lossless_copy
from crossval.run import Run
from reference.oracle import Oracle

ROOT = Path(__file__).parents[1]
SOURCE = golden_models.model("b158_a")
ARCH = "bitnet-b1.58"
F32 = GGMLType.F32


@pytest.fixture
def unhashed():
    copies._converter.cache_clear()
    yield
    copies._converter.cache_clear()


def test_a_copy_is_made_once(tmp_path):
    made = lossless_copy(read(SOURCE), tmp_path, F32)
    before = made.stat()
    assert lossless_copy(read(SOURCE), tmp_path, F32) == made
    assert made.stat() == before
    assert lossless_copy(read(SOURCE), tmp_path, F32, arch="bitnet") != made


def test_the_copy_of_a_split_model_is_one_file_that_declares_the_same(tmp_path):
    shards = split(tmp_path)
    made = read(lossless_copy(read(shards[0]), tmp_path / "copies", F32))
    assert len(made.paths) == 1
    assert not any(key.startswith("split.") for key in made.metadata)
    assert declared_otherwise(read(shards[0]), made) == ""


@pytest.mark.parametrize("kept", [0, 20, 3000, -1])
def test_a_copy_that_was_cut_is_made_again(tmp_path, kept):
    made = lossless_copy(read(SOURCE), tmp_path, F32)
    whole = made.read_bytes()
    made.write_bytes(whole[:kept])
    assert lossless_copy(read(SOURCE), tmp_path, F32).read_bytes() == whole


def test_a_copy_of_another_converter_is_not_taken(tmp_path, monkeypatch, unhashed):
    before = lossless_copy(read(SOURCE), tmp_path, F32)
    copies._converter.cache_clear()
    monkeypatch.setattr(copies, "CONVERTER", CONVERTER[1:])
    assert lossless_copy(read(SOURCE), tmp_path, F32) != before


def test_all_code_that_converts_is_counted():
    """What `transcode` imports, and what that imports, within the engine; errors make no bytes."""
    folder = ROOT / "bitnet"
    hashed = {path for pattern in CONVERTER for path in folder.glob(pattern)}
    seen, left = {folder / "errors.py", folder / "__init__.py"}, [folder / "transcode.py"]
    while left:
        path = left.pop()
        seen.add(path)
        assert path in hashed
        for _, dotted in imports(path.read_text("utf-8"), ".".join(path.parent.relative_to(ROOT).parts)):
            place = ROOT / dotted.replace(".", "/")
            found = (place.with_suffix(".py"), place.parent.with_suffix(".py"), place.parent / "__init__.py")
            left += [file for file in found if file.is_file() and file not in seen]


KEYS = {
    "rope.freq_base": 777.0,
    "attention.layer_norm_rms_epsilon": 1e-3,
    "attention.head_count": 8,
    "attention.head_count_kv": 1,
    "context_length": 77,
    "block_count": 1,
    "hidden_act": "silu",
    "rope.scaling.type": "linear",
}


@pytest.mark.parametrize("arch", [None, "bitnet"])
@pytest.mark.parametrize("key", KEYS)
def test_another_hyper_parameter_is_named_with_both_values(tmp_path, key, arch):
    model = read(SOURCE)
    honest = transcode(model, tmp_path / "copy.gguf", F32, arch=arch)
    assert declared_otherwise(model, read(honest)) == ""
    other = read(edited(honest, tmp_path / "other.gguf", keys={f"{arch or ARCH}.{key}": KEYS[key]}))
    said = model.metadata.get(f"{ARCH}.{key}")
    told = declared_otherwise(model, other)
    assert told.startswith(f"{key} is {'absent' if said is None else repr(said)} in the model and ")
    assert repr(other.metadata[f"{arch or ARCH}.{key}"]) in told


def test_a_key_left_out_is_named(tmp_path):
    copy = edited(SOURCE, tmp_path / "copy.gguf", keys={f"{ARCH}.rope.freq_base": None})
    assert declared_otherwise(read(SOURCE), read(copy)).endswith("in the model and absent in the copy")


@pytest.mark.parametrize("key", ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"])
def test_another_tokenizer_is_named(tmp_path, key):
    from bitnet.synthetic import Shape, make

    shape = Shape(n_layer=1, n_embd=128, n_ff=128, n_head=2, n_head_kv=1, n_vocab=300)
    model = read(make(tmp_path / "model.gguf", shape))
    value = model.metadata[key]
    if isinstance(value, int):
        other = value + 1
    elif isinstance(value, np.ndarray):
        other = value[::-1].copy()
    else:
        other = TypedArray(ValueType.STRING, value.tolist()[::-1])
    copy = edited(model.path, tmp_path / "copy.gguf", keys={key: (model.types[key], other)})
    assert declared_otherwise(model, read(copy)).startswith(f"{key} is ")


def test_what_tells_of_the_file_may_differ(tmp_path):
    keys = {"general.name": "another name", "bitnet.kernel_config": "tiles"}
    assert declared_otherwise(read(SOURCE), read(edited(SOURCE, tmp_path / "copy.gguf", keys=keys))) == ""


def test_another_architecture_than_llama_cpps_name_is_named(tmp_path):
    copy = transcode(read(SOURCE), tmp_path / "copy.gguf", F32, arch="llama")
    assert declared_otherwise(read(SOURCE), read(copy)) == (
        "general.architecture is 'bitnet-b1.58' in the model and 'llama' in the copy"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("rope.freq_base", 777.0), ("attention.layer_norm_rms_epsilon", 1e-3), (None, None)]
)
def test_a_copy_that_both_sides_read_is_held_to_the_model(tmp_path, key, value):
    """They agree, because both read the same wrong number."""
    keys = {} if key is None else {f"{ARCH}.{key}": value}
    honest = transcode(read(SOURCE), tmp_path / "honest.gguf", F32)
    copy = edited(honest, tmp_path / "copy.gguf", keys=keys)
    plan = liars.plan(lambda: Oracle(str(copy)), model=Path(SOURCE), as_default=True, required_rungs=("identity",))
    plan = replace(plan, engine_file=copy, reference_file=copy)
    run = Run(replace(liars.options(tmp_path), explain=False), liars.quiet)
    rung = run.climb(plan).rung("identity")
    assert rung.outcome == ("pass" if key is None else "fail")
    if key is not None:
        said = read(SOURCE).metadata[f"{ARCH}.{key}"]
        assert f"{key} is {said!r} in the model and {read(copy).metadata[f'{ARCH}.{key}']!r} in the copy" in rung.why
        assert "remove it, or convert it again" in rung.why


def test_a_copy_with_other_weights_is_named(tmp_path):
    copy = edited(SOURCE, tmp_path / "copy.gguf", tensors={"blk.0.attn_q.weight": with_tail_scale(0.5)})
    plan = liars.plan(lambda: Oracle(str(copy)), model=Path(SOURCE), as_default=True, required_rungs=("identity",))
    rung = (
        Run(liars.options(tmp_path), liars.quiet).climb(replace(plan, engine_file=copy, reference_file=copy)).rungs[0]
    )
    assert rung.outcome == "fail"
    assert rung.why.startswith("the copy copy.gguf decodes to other ternary weights than the model")
