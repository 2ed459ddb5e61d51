"""The shipped models and texts are what the manifest says, and the grammar makes them again."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bitnet
from bitnet import gguf
from bitnet.codecs import CODECS, unpack_i2_s, unpack_tq2_0
from bitnet.gguf import GGUF, GGMLType
from bitnet.tokenizer import from_gguf
from fixtures import grammar

FOLDER = Path(__file__).parent.parent / "fixtures"
MANIFEST = json.loads((FOLDER / "models" / "manifest.json").read_text(encoding="utf-8"))
MODELS: dict[str, dict[str, Any]] = MANIFEST["models"]
PROMPTS = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
FILES = {f"models/{name}": file for model in MODELS.values() for name, file in model["files"].items()}
HELDOUT = (FOLDER / "texts" / "heldout.txt").read_text(encoding="utf-8")
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
COPIED = [name for name, model in MODELS.items() if len(model["files"]) > 1]


def open_model(name: str, weight_type: str = "i2_s") -> GGUF:
    return gguf.read(FOLDER / "models" / f"{name}.{weight_type}.gguf")


def matrices(name: str) -> list[str]:
    layers = range(MODELS[name]["config"]["n_layer"])
    return [f"blk.{il}.{projection}" for il in layers for projection in PROJECTIONS]


def decoded(file: GGUF, base: str) -> NDArray[np.float32]:
    """A matrix as an engine computes with it: blocks decoded, `.scale` multiplied in."""
    info = file.tensors[f"{base}.weight"]
    values = CODECS[info.type].decode(file.raw(info.name), info.shape)
    if f"{base}.scale" in file.tensors:
        values = values * file.raw(f"{base}.scale").view(np.float32)[0]
    return np.asarray(values, np.float32)


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("name", [*FILES, *MANIFEST["texts"]])
def test_every_file_has_the_size_and_hash_of_the_manifest_and_the_readme(name: str) -> None:
    expected = {**FILES, **MANIFEST["texts"]}[name]
    data = (FOLDER / name).read_bytes()
    assert len(data) == expected["bytes"]
    assert hashlib.sha256(data).hexdigest() == expected["sha256"]
    assert f"| `{name}` | {len(data):,} | `{expected['sha256']}` |" in (FOLDER / "README.md").read_text(
        encoding="utf-8"
    )


def test_no_model_is_shipped_that_the_manifest_does_not_name() -> None:
    assert {f"models/{path.name}" for path in (FOLDER / "models").glob("*.gguf")} == set(FILES)
    assert list(MODELS) == ["tiny-relu2", "tiny-silu", "tiny-llama"]


@pytest.mark.parametrize("name", MODELS)
def test_i2_s_files_are_small_and_deep_enough_and_suit_every_ternary_type(name: str) -> None:
    assert FILES[f"models/{name}.i2_s.gguf"]["bytes"] <= 4 << 20
    config = MODELS[name]["config"]
    assert config["n_layer"] >= 4
    widths = (config["n_embd"], config["n_ff"], config["n_head"] * config["head_dim"])
    assert all(width % 256 == 0 for width in widths)


@pytest.mark.parametrize("name", MODELS)
def test_hyper_parameters_in_the_file_are_those_of_the_manifest(name: str) -> None:
    file, config = open_model(name), MODELS[name]["config"]
    arch = config["arch"]
    assert file.get("general.architecture", str) == arch
    assert file.get("general.file_type", int) == 40
    expected = {
        "vocab_size": config["n_vocab"],
        "context_length": config["n_ctx"],
        "embedding_length": config["n_embd"],
        "block_count": config["n_layer"],
        "feed_forward_length": config["n_ff"],
        "rope.dimension_count": config["head_dim"],
        "attention.head_count": config["n_head"],
        "attention.head_count_kv": config["n_head_kv"],
        "attention.layer_norm_rms_epsilon": float(np.float32(config["rms_eps"])),
        "rope.freq_base": config["rope_theta"],
    }
    assert {key: file.metadata[f"{arch}.{key}"] for key in expected} == expected
    assert len(file.metadata["tokenizer.ggml.tokens"]) == config["n_vocab"]
    declared = file.get(f"{arch}.hidden_activation", str, None)
    assert declared == (config["activation"] if config["activation_source"] == "declared" else None)


@pytest.mark.parametrize("name", MODELS)
def test_projections_are_ternary_with_a_positive_scale_and_the_rest_is_float(name: str) -> None:
    file = open_model(name)
    for base in matrices(name):
        info = file.tensors[f"{base}.weight"]
        assert info.type is GGMLType.I2_S
        ternary = unpack_i2_s(file.raw(info.name), info.shape)
        assert set(np.unique(ternary.trits)) == {-1, 0, 1}
        assert ternary.scale is not None
        assert 0 < ternary.scale < math.inf
    others = {info.type for key, info in file.tensors.items() if key.removesuffix(".weight") not in matrices(name)}
    assert others == {GGMLType.F16, GGMLType.F32}


def test_some_scale_is_no_float16_so_that_a_block_scale_could_not_carry_it() -> None:
    for name in MODELS:
        file = open_model(name)
        tensors = [file.tensors[f"{base}.weight"] for base in matrices(name)]
        scales = np.array([unpack_i2_s(file.raw(t.name), t.shape).scale for t in tensors], np.float32)
        assert (scales != scales.astype(np.float16).astype(np.float32)).any()


@pytest.mark.parametrize("name", COPIED)
def test_every_copy_decodes_to_the_same_bits(name: str) -> None:
    files = [open_model(name, weight_type) for weight_type in ("i2_s", "f32", "tq2_0")]
    for base in matrices(name):
        first, *others = (decoded(file, base) for file in files)
        assert all(same_bits(first, other) for other in others), base
    for key in files[0].tensors:
        if key.removesuffix(".weight") not in matrices(name):
            assert len({file.raw(key).tobytes() for file in files}) == 1, key


def test_one_changed_bit_is_not_the_same() -> None:
    base = decoded(open_model("tiny-silu"), "blk.0.attn_q")
    liar = base.copy()
    liar.view(np.uint32)[3, 5] ^= 1
    assert not same_bits(base, liar)


@pytest.mark.parametrize("name", COPIED)
def test_tq2_0_has_block_scale_one_and_the_scale_of_i2_s_beside_it(name: str) -> None:
    i2_s, tq2_0 = open_model(name), open_model(name, "tq2_0")
    for base in matrices(name):
        info = tq2_0.tensors[f"{base}.weight"]
        assert info.type is GGMLType.TQ2_0
        block_scale = unpack_tq2_0(tq2_0.raw(info.name), info.shape).block_scale
        assert block_scale is not None
        assert (block_scale == 1).all()
        scale = unpack_i2_s(i2_s.raw(info.name), info.shape).scale
        assert tq2_0.raw(f"{base}.scale").view(np.float32)[0] == np.float32(scale)


def test_the_grammar_gives_the_same_documents_everywhere() -> None:
    text = "\n".join(f"{doc.plain()} {doc.nats:.6f}" for doc in grammar.documents(200))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "4a2bf062e7c3c2bbaf3f9bc5ccf1d7e4f2b909966134e318dbdba333bfeb2c03"
    )
    assert list(grammar.documents(3, start=7)) == list(grammar.documents(10))[7:]


def test_the_held_out_text_is_made_again() -> None:
    made = grammar.documents(MANIFEST["heldout_documents"], "heldout")
    assert "\n\n".join(doc.plain() for doc in made) + "\n" == HELDOUT


def test_no_held_out_sentence_is_in_any_training_document() -> None:
    heldout = {s for document in HELDOUT.split("\n\n") for s in grammar.sentences(document)}
    assert len(heldout) > 200
    assert {grammar.part_of(s) for s in heldout} == {"heldout"}
    count = max(MANIFEST["tokenizer_documents"], *(m["training"]["documents"] for m in MODELS.values()))
    trained = {s for doc in grammar.documents(count) for s in grammar.sentences(doc.plain())}
    assert len(trained) > 10_000
    assert not heldout & trained
    assert {grammar.part_of(s) for s in trained} == {"train"}


def test_sentences_are_cut_where_they_end_and_speech_stays_whole() -> None:
    text = '"May I go?" asked Tom. "No," said Mia. Question: Who is there?\nAnswer: Tom is.'
    assert grammar.sentences(text)[:2] == ['"May I go?" asked Tom.', '"No," said Mia.']
    assert grammar.sentences("Question: Who is there?\nAnswer: Tom is.") == ["Who is there?", "Tom is."]


@pytest.mark.parametrize("name", MODELS)
def test_prompts_have_the_lengths_they_declare(name: str) -> None:
    tokenizer = from_gguf(open_model(name))
    texts = {prompt["name"]: prompt for prompt in PROMPTS[name] if "text" in prompt}
    for prompt in texts.values():
        assert len(tokenizer.encode(prompt["text"])) == prompt["tokens"], prompt["name"]
    assert texts["short-0"]["tokens"] <= 6
    assert all(30 <= texts[f"medium-{i}"]["tokens"] <= 41 for i in range(2))
    assert 105 <= texts["long"]["tokens"] <= 121


def test_only_the_chat_model_has_a_template_and_chats() -> None:
    for name in MODELS:
        chats = [prompt for prompt in PROMPTS[name] if "messages" in prompt]
        template = open_model(name).get("tokenizer.chat_template", str, None)
        assert bool(chats) == (template is not None) == (name == "tiny-relu2")
        assert all(chat["messages"][-1]["role"] == "user" for chat in chats)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_learnt_most_of_the_grammar(name: str) -> None:
    # A perfect model pays at most the nats of the grammar's choices; an untrained one pays ln(n_vocab), nearly 7.
    measured = MODELS[name]["heldout"]
    assert measured["nats_per_token"] < measured["grammar_nats_per_token"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_engine_finds_the_likelihood_of_the_manifest(name: str) -> None:
    model = bitnet.load(FOLDER / "models" / f"{name}.i2_s.gguf")
    nats, count = 0.0, 0
    for document in HELDOUT.rstrip("\n").split("\n\n"):
        ids = model.tokenizer.encode(document)
        logits = model.logits(ids)[:-1].astype(np.float64)
        largest = logits.max(axis=1)
        total = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        nats += float((total - logits[np.arange(len(logits)), ids[1:]]).sum())
        count += len(logits)
    measured = MODELS[name]["heldout"]
    assert count == measured["tokens"]
    # Flipped int8 roundings move single logits by about 1e-2 either way; over thousands of tokens they cancel to 1e-4,
    # and the manifest is rounded at the same place.
    assert nats / count == pytest.approx(measured["nats_per_token"], abs=1e-3)
