"""From a name to a path: what is here first, then the Hub, and never a guess among several."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

import golden_models
import pytest

import bitnet
from bitnet import hub_cache
from bitnet.errors import DownloadError, ModelFileError, UsageError
from bitnet.pretrained import resolve
from tests.hub_server import COMMIT, serve

REPO, FILE = "someone/tiny", "tiny.gguf"
CONTENT = Path(golden_models.model("b158_a")).read_bytes()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve() as running:
        running.files = {FILE: CONTENT, "README.md": b"read me"}
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "BITNET_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(hub_cache, "own_cache", lambda: tmp_path / "own" / "hub")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library waits between its retries
        yield running


# --- here --------------------------------------------------------------------------------------------------------


def test_a_file_is_itself(tmp_path):
    path = golden_models.model("b158_a")
    assert str(resolve(path)) == path
    assert bitnet.BitNetModel.from_pretrained(path, n_threads=1).logits([1, 2]).shape == (2, 512)
    assert bitnet.BitNetModel.from_file(path, n_threads=1).network.backend.n_threads == 1


def test_a_folder_with_one_model(tmp_path):
    shutil.copy(golden_models.model("b158_a"), tmp_path / "m.gguf")
    (tmp_path / "notes.txt").write_text("notes")
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path / "m.gguf"
    assert bitnet.BitNetModel.from_pretrained(tmp_path, device="plain").network.backend.device == "plain"


def test_a_folder_with_several_models_and_a_split_one(tmp_path):
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    assert resolve(tmp_path) == tmp_path / "a-00001-of-00002.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UsageError, match=r"has 2 GGUF files\n.*file=: a-00001-of-00002.gguf, b.gguf"):
        resolve(tmp_path)
    assert resolve(tmp_path, file="b.gguf") == tmp_path / "b.gguf"


def test_a_folder_with_a_checkpoint_or_nothing(tmp_path):
    with pytest.raises(ModelFileError, match="neither a GGUF file nor a safetensors checkpoint"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["./nothing", "/nothing/at/all", "nothing.gguf", "~/nothing-of-this-name"])
def test_a_path_that_is_not_there_is_no_repository(hub, name):
    with pytest.raises(ModelFileError, match="no such file"):
        bitnet.BitNetModel.from_pretrained(name)
    assert hub.requests == []


@pytest.mark.parametrize("names", [{"name": 5}, {"name": b"a/b"}, {"name": "a/b", "file": 5}])
def test_a_name_is_a_name(hub, names):
    with pytest.raises(UsageError, match=r"(name|file) is .*\n  hint: give"):
        bitnet.BitNetModel.from_pretrained(**names)
    assert hub.requests == []


# --- the Hub -----------------------------------------------------------------------------------------------------


def test_the_one_model_of_a_repository(hub):
    model = bitnet.BitNetModel.from_pretrained(REPO, n_threads=1)
    assert model.gguf.path.name == FILE
    assert COMMIT in str(model.gguf.path)
    fetched = len(hub.gets())
    assert resolve(REPO, revision="main") == model.gguf.path
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert resolve(REPO, sha256=digest) == model.gguf.path
    assert [path for _, path, _ in hub.gets()[fetched:] if path.endswith(FILE)] == []
    with pytest.raises(ModelFileError, match="not the"):
        resolve(REPO, sha256="0" * 64)


def test_what_is_in_the_cache_needs_no_network(hub, monkeypatch):
    path = resolve(REPO)
    hub.requests.clear()
    assert resolve(REPO, offline=True) == path
    monkeypatch.setenv("BITNET_OFFLINE", "1")
    assert resolve(REPO) == resolve(REPO, file=FILE) == path
    assert resolve(REPO, revision=COMMIT) == path
    assert hub.requests == []
    monkeypatch.delenv("BITNET_OFFLINE")
    hub.status = 503
    assert resolve(REPO) == path


def test_nothing_in_the_cache_and_no_network(hub):
    gone = r"someone/tiny@main: has no model in the cache, and the network is forbidden\n.*BITNET_OFFLINE"
    with pytest.raises(DownloadError, match=gone) as caught:
        resolve(REPO, offline=True)
    assert caught.value.exit_code == 4
    resolve(REPO, file="README.md")  # a repository of which something else is here
    with pytest.raises(DownloadError, match=gone):
        resolve(REPO, offline=True)
    hub.status = 503
    with pytest.raises(DownloadError, match="503"):
        resolve(REPO)
    with pytest.raises(DownloadError, match="network is forbidden"):
        resolve(REPO, file=FILE, offline=True)
    hub.status = 404
    with pytest.raises(DownloadError):
        resolve(REPO)


def test_several_models_in_a_repository(hub):
    hub.files["other.gguf"] = CONTENT
    with pytest.raises(UsageError, match=r"has 2 GGUF files\n.*other.gguf, tiny.gguf"):
        resolve(REPO)
    assert resolve(REPO, file="other.gguf").name == "other.gguf"


def test_all_parts_of_a_split_model(hub):
    hub.files = {f"a-0000{i}-of-00002.gguf": bytes([i]) for i in (1, 2)}
    hub.files |= {"b-00002-of-00002.gguf": b"of another"}
    path = resolve(REPO)
    assert path.name == "a-00001-of-00002.gguf"
    assert sorted(p.name for p in path.parent.iterdir()) == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    with pytest.raises(UsageError, match="one digest"):
        resolve(REPO, sha256="0" * 64)


def test_a_checkpoint(hub):
    wanted = {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"}
    wanted |= {"model.safetensors.index.json", "generation_config.json"}
    hub.files = {name: name.encode() for name in (*wanted, "README.md", "pytorch_model.bin", "onnx/config.json")}
    folder = resolve(REPO)
    assert {path.name for path in folder.iterdir()} == wanted
    hub.files = {"pytorch_model.bin": b"", "config.json": b"{}"}
    with pytest.raises(UsageError, match="neither a GGUF file nor"):
        resolve("someone/else")


@pytest.mark.parametrize("name", ["not a name", "a/b/c", "-x/y"])
def test_what_is_no_name(hub, name):
    with pytest.raises(UsageError):
        resolve(name)
    assert hub.requests == []


def test_a_checkpoint_of_a_repository_is_loaded_as_its_folder_is(hub):
    folder = Path(__file__).parents[1] / "fixtures" / "hf" / "bitnet-bitlinear"
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = bitnet.BitNetModel.from_pretrained(REPO, n_threads=1)
    here = bitnet.BitNetModel.from_pretrained(folder, n_threads=1)
    assert (model.logits([1, 2, 3]) == here.logits([1, 2, 3])).all()
    assert model.info.path != here.info.path
