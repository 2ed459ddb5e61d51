"""Which engines run a file: every rule, and what llama.cpp itself says of the files here."""

from __future__ import annotations

import pytest
import tiny_models
from command_line import MODELS, ROOT, TINY, run
from model_edits import edited

from bitnet.architecture import read_config
from bitnet.compat import compatibility
from bitnet.convert import convert
from bitnet.hf import open_model
from reference.runner import ReferenceUnavailableError


def answers(path):
    gguf = open_model(path)
    return {c.engine: c for c in compatibility(gguf, read_config(gguf)[0])}


def runs(path):
    return {name: c.runs for name, c in answers(path).items()}


def said(path, engine):
    return " ".join(f"{r.what} {r.remedy or ''}" for r in answers(path)[engine].reasons)


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("tiny-relu2.i2_s", ("yes", "no", "depends", "no")),
        ("tiny-silu.i2_s", ("yes", "no", "yes", "no")),
        ("tiny-silu.tq2_0", ("yes", "yes", "no", "no")),
        ("tiny-llama.i2_s", ("yes", "no", "yes", "no")),
        ("tiny-llama.tq2_0", ("yes", "yes", "no", "wrong")),
        ("tiny-llama.f32", ("yes", "yes", "yes", "wrong")),
    ],
)
def test_the_shipped_models(name, due):
    path = MODELS / f"{name}.gguf"
    assert runs(path) == dict(zip(("bitnet", "llama.cpp", "bitnet.cpp", "transformers"), due, strict=True))


def test_a_squared_relu_under_the_name_that_llama_cpp_knows(tmp_path):
    convert(TINY, tmp_path / "b.gguf", type="tq2_0", arch="bitnet")
    assert runs(tmp_path / "b.gguf")["llama.cpp"] == "wrong"
    assert "computes SiLU" in said(tmp_path / "b.gguf", "llama.cpp")
    convert(TINY, tmp_path / "c.gguf", type="i2_s", arch="bitnet")
    assert runs(tmp_path / "c.gguf")["bitnet.cpp"] == "wrong"


def test_types_that_are_retired_and_widths_that_do_not_suit():
    assert "types 36 to 38 are retired" in said(TINY, "llama.cpp")
    assert "--type tq2_0 --arch bitnet" in said(TINY, "llama.cpp")
    narrow = ROOT / "fixtures/goldens/b158_a.gguf"
    gguf = open_model(narrow)
    if any(i.shape[-1] % 256 for n, i in gguf.tensors.items() if n.endswith("ffn_down.weight")):
        assert "--type f16" in said(narrow, "llama.cpp")


@pytest.mark.parametrize(
    ("keys", "engine", "answer", "what"),
    [
        ({"tokenizer.ggml.pre": None}, "llama.cpp", "wrong", "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.pre": "falcon_e"}, "llama.cpp", "no", "falcon_e"),
        ({"tokenizer.ggml.model": None}, "llama.cpp", "no", "has no tokenizer"),
        ({"tokenizer.ggml.model": None}, "bitnet.cpp", "no", "has no tokenizer"),
        ({"tokenizer.ggml.model": None}, "bitnet", "depends", "has no tokenizer"),
    ],
)
def test_keys(keys, engine, answer, what, tmp_path):
    base = edited(MODELS / "tiny-silu.tq2_0.gguf", tmp_path / "b.gguf", keys=keys)
    found = answers(base)[engine]
    assert answer in {r.answer for r in found.reasons}
    assert what in said(base, engine)


def test_tables_of_bitnet_cpp_need_its_tiles(tmp_path):
    convert(MODELS / "tiny-silu.i2_s.gguf", tmp_path / "b.gguf", type="tl1")
    assert runs(tmp_path / "b.gguf")["bitnet.cpp"] == "depends"
    assert runs(tmp_path / "b.gguf")["llama.cpp"] == "no"


def test_a_checkpoint():
    found = runs(ROOT / "fixtures/hf/bitnet-autobitlinear")
    assert found == {"bitnet": "depends", "llama.cpp": "no", "bitnet.cpp": "no", "transformers": "yes"}
    assert "has no tokenizer" in said(ROOT / "fixtures/hf/bitnet-autobitlinear", "bitnet")


def test_the_remedies_are_commands_that_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-relu2.i2_s", "tiny-llama.i2_s", "tiny-silu.tq2_0"):
        for answer in answers(MODELS / f"{name}.gguf").values():
            for reason in answer.reasons:
                words = (reason.remedy or "").split()
                if words[:3] == ["bitnet", "model", "convert"]:
                    words[4] = f"{name}.{answer.engine}.{len(list(tmp_path.iterdir()))}"
                    assert run(*words[1:], "-q").code == 0, words
    assert list(tmp_path.iterdir())


def test_the_command():
    done = run("model", "compat", TINY)
    assert done.code == 0
    for engine in ("bitnet", "llama.cpp", "bitnet.cpp", "transformers"):
        assert f"\n{engine} " in done.out
    assert "→ bitnet model convert" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-relu2.i2_s", "tiny-silu.i2_s", "tiny-silu.tq2_0", "tiny-llama.tq2_0"])
def test_llama_cpp_says_the_same(name):
    pytest.importorskip("llama_cpp")
    path = MODELS / f"{name}.gguf"
    try:
        with tiny_models.live(path) as runner:
            assert runner.tokenize("One day")
        opened = True
    except ReferenceUnavailableError as error:
        if "refuses" not in str(error):
            pytest.skip(str(error))
        opened = False
    assert opened == (runs(path)["llama.cpp"] != "no")
