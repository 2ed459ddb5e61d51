"""The models on this machine."""

from __future__ import annotations

import shutil

import pytest
from checkpoints import FIXTURES
from command_line import MODELS, TINY, run

from bitnet.inventory import find_models


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A current folder, caches and an environment of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / ".hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for variable in ("HF_HUB_CACHE", "BITNET_GGUF"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_a_folder_that_is_named():
    found = {f.path.rpartition("/")[2]: f for f in find_models([MODELS])}
    assert len(found) == 7
    tiny = found["tiny-relu2.i2_s.gguf"]
    assert (tiny.arch, tiny.weight_type, tiny.tokenizer, tiny.loadable) == ("bitnet-b1.58", "I2_S", "embedded", True)
    assert found["tiny-silu.tq2_0.gguf"].weight_type == "TQ2_0"
    assert found["tiny-llama.f32.gguf"].weight_type == "F32"


def test_checkpoints():
    found = [f for f in find_models([FIXTURES]) if "bf16" in f.path]
    assert [f.tokenizer for f in found] == ["none"]
    assert found[0].loadable


def test_the_current_folder_the_cache_and_the_variable(elsewhere, monkeypatch):
    snapshot = elsewhere / ".hf/hub/models--someone--tiny/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    blob = elsewhere / ".hf/hub/models--someone--tiny/blobs/x"
    blob.parent.mkdir()
    shutil.copy(TINY, blob)
    (snapshot / "tiny.gguf").symlink_to(blob)
    (elsewhere / "work").mkdir()
    shutil.copy(MODELS / "tiny-silu.i2_s.gguf", elsewhere / "work")
    monkeypatch.setenv("BITNET_GGUF", TINY)
    found = find_models()
    assert [(f.place, f.repo) for f in found] == [("BITNET_GGUF", None), ("folder", None), ("cache", "someone/tiny")]


def test_each_file_once_and_a_split_model_by_its_first(elsewhere):
    shutil.copy(TINY, elsewhere / "a.gguf")
    (elsewhere / "b.gguf").symlink_to(elsewhere / "a.gguf")
    (elsewhere / "m-00002-of-00002.gguf").write_bytes(b"x")
    assert [f.path for f in find_models()] == ["a.gguf"]


def test_what_cannot_be_read_is_listed_with_the_reason(elsewhere):
    (elsewhere / "bad.gguf").write_bytes(b"nonsense, and more of it")
    (elsewhere / "gone.gguf").symlink_to(elsewhere / "nowhere")
    found = {f.path: f for f in find_models()}
    assert not found["bad.gguf"].loadable
    assert found["bad.gguf"].fault
    assert found["gone.gguf"].n_bytes == 0
    done = run("model", "list")
    assert done.code == 0
    assert "note: bad.gguf: " in done.err


def test_other_models_of_a_cache_are_left_out(elsewhere):
    other = elsewhere / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (other / "model.safetensors").write_bytes(b"x")
    deep = elsewhere / "a/b/c/d/e"
    deep.mkdir(parents=True)
    shutil.copy(TINY, deep)
    hidden = elsewhere / ".git"
    hidden.mkdir()
    shutil.copy(TINY, hidden)
    assert find_models() == ()


def test_nothing_and_nowhere():
    done = run("model", "list")
    assert done.code == 0
    assert "no model was found" in done.err
    assert run("model", "list", "-q").err == ""
    assert run("model", "list", "none").code == 2
