import hashlib
import shutil
import time
from pathlib import Path

import pytest

from bitnet import gguf, hub_cache, tokenizer, tokenizer_files
from bitnet.discovery import VARIABLE, discover, repositories
from bitnet.errors import ResourceLimitError, TokenizerError, UsageError
from bitnet.hub_cache import Location
from fixtures.texts import battery, probes
from tests import tokenizer_exports as exports
from tests.hub_server import COMMIT, serve

REPO = "someone/tiny"
KEYS = probes.metadata("golden:llama-bpe")
OTHER = probes.changed("golden:llama-bpe", tokens=["日", *KEYS["tokenizer.ggml.tokens"][1:]], merges=[])
EMBEDDED = tokenizer.from_metadata(KEYS)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    for variable in (VARIABLE, "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("BITNET_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub_cache, "own_cache", lambda: tmp_path / "own" / "hub")


@pytest.fixture
def hub(monkeypatch):
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("BITNET_OFFLINE")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield running


def model(folder, keys=KEYS, **general):
    """A GGUF with a vocabulary in a folder of its own."""
    path = folder / "models" / "model.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    probes.write(path, keys | {f"general.{name.replace('__', '.')}": value for name, value in general.items()})
    return gguf.read(path)


def put(folder, keys=KEYS, name="tokenizer.json"):
    folder.mkdir(parents=True, exist_ok=True)
    return exports.write(folder, name, exports.tokenizer_json(keys))


def cached(repo=REPO, keys=KEYS):
    folder = hub_cache.folder_of(hub_cache.hub_cache(), repo)
    blob = put(folder / "blobs", keys, "etag")
    return hub_cache.install(blob, Location(repo=repo, file="tokenizer.json"), COMMIT)


def places(found):
    return [(step.place, step.outcome) for step in found.steps]


def same(found, expected=EMBEDDED):
    return all(found.tokenizer.encode(text) == expected.encode(text) for text in battery.nasty_texts())


def test_a_gguf_alone_has_its_embedded_tokenizer(tmp_path):
    file = model(tmp_path)
    found = discover(file, n_vocab=512)
    assert (found.source, found.path, found.notices) == ("embedded", file.path, ())
    assert found.sha256 == tokenizer_files.embedded_sha256(file.metadata)
    assert places(found) == [
        ("explicit path", "absent"), (VARIABLE, "absent"), ("beside the model", "absent"), ("caches", "skipped"),
        ("embedded", "used"),
    ]  # fmt: skip
    assert "the tokenizer is from: embedded: model.gguf (before: explicit path: not set;" in found.summary
    assert same(found)


def test_the_explicit_path_wins_over_the_variable_and_all_else(tmp_path, monkeypatch):
    file, named = model(tmp_path), put(tmp_path / "named")
    put(file.path.parent)
    monkeypatch.setenv(VARIABLE, str(put(tmp_path / "variable")))
    found = discover(file, path=named)
    assert (found.source, found.path) == ("file", named)
    assert found.sha256 == hashlib.sha256(named.read_bytes()).hexdigest()
    assert places(found) == [("explicit path", "used")]
    assert same(found)
    found = discover(file)
    assert (found.source, found.path) == ("file", tmp_path / "variable" / "tokenizer.json")
    monkeypatch.delenv(VARIABLE)
    assert discover(file).path == file.path.parent / "tokenizer.json"


def test_a_folder_or_another_gguf_may_be_named(tmp_path):
    file = model(tmp_path)
    put(tmp_path / "named")
    assert discover(file, path=tmp_path / "named").path == tmp_path / "named" / "tokenizer.json"
    other = tmp_path / "other.gguf"
    shutil.copy(probes.GOLDEN, other)
    found = discover(file, path=other)
    assert (found.source, found.sha256) == ("file", tokenizer_files.embedded_sha256(gguf.read(other).metadata))


def test_what_is_named_must_fit(tmp_path, monkeypatch):
    file = model(tmp_path)
    with pytest.raises(TokenizerError, match="token 0 is '日', and the model embeds"):
        discover(file, path=put(tmp_path / "named", OTHER))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing.json"))
    with pytest.raises(TokenizerError, match="cannot be read"):
        discover(file)
    with pytest.raises(TokenizerError, match="the embedding 500 rows"):
        discover(file, path=put(tmp_path / "good"), n_vocab=500)


def test_what_lies_beside_is_passed_over_if_it_does_not_fit(tmp_path):
    file = model(tmp_path)
    put(file.path.parent, OTHER)
    found = discover(file, n_vocab=512)
    assert found.source == "embedded"
    assert ("beside the model", "refused") in places(found)
    assert "passed over: " in found.notices[0]
    (file.path.parent / "tokenizer.json").write_bytes(b"{")
    assert "not valid JSON" in discover(file).notices[0]


def test_a_cached_tokenizer_is_found_by_the_models_place_or_metadata(tmp_path):
    path = cached()
    found = discover(model(tmp_path, repo_url=f"https://huggingface.co/{REPO}"))
    assert (found.source, found.path) == ("cache", path)
    assert same(found)
    snapshot = hub_cache.folder_of(hub_cache.hub_cache(), f"{REPO}-GGUF") / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(model(tmp_path).path, snapshot / "m.gguf")
    assert discover(gguf.read(snapshot / "m.gguf")).path == path
    assert discover(folder=snapshot).path == path
    assert discover(model(tmp_path)).source == "embedded"
    assert discover(model(tmp_path), repo=REPO).source == "cache"


def test_a_file_rescues_a_model_without_a_vocabulary(tmp_path):
    file = model(tmp_path, {})
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.model is missing") as caught:
        discover(file)
    assert "download: no repository is known" in caught.value.what
    assert VARIABLE in caught.value.remedy
    put(file.path.parent)
    assert discover(file, n_vocab=512).source == "file"


def test_a_folder_without_a_gguf(tmp_path):
    put(tmp_path)
    exports.write(tmp_path, "tokenizer_config.json", exports.tokenizer_config(KEYS, chat_template="{{ bos_token }}"))
    found = discover(folder=tmp_path, n_vocab=512, special_ids={"bos": 508, "eos": 511})
    assert (found.source, found.chat_template) == ("file", "{{ bos_token }}")
    assert found.notices == ("the model's eos id is 511, the tokenizer's 509; the tokenizer's is used",)


def test_what_is_wrong_with_the_embedded_one_is_the_error_if_there_is_no_other(tmp_path):
    file = model(tmp_path)
    with pytest.raises(TokenizerError, match="512 tokens, the embedding 500 rows, and no other") as caught:
        discover(file, n_vocab=500)
    assert "belongs to another model" in caught.value.remedy


def test_a_pin_holds_for_whatever_is_found(tmp_path):
    file, named = model(tmp_path), put(tmp_path / "named")
    digest = hashlib.sha256(named.read_bytes()).hexdigest()
    assert discover(file, path=named, sha256=f"sha256:{digest.upper()}").sha256 == digest
    with pytest.raises(TokenizerError, match="not the 0000"):
        discover(file, path=named, sha256="0" * 64)
    with pytest.raises(TokenizerError, match=r"not the 0000.* and no other tokenizer was found"):
        discover(file, sha256="0" * 64)


def test_a_guess_is_said(tmp_path):
    file = model(tmp_path, probes.changed("golden:llama-bpe", pre=None), architecture="bitnet-b1.58")
    [notice] = discover(file).notices
    assert notice.startswith("the splitting rules are llama-bpe, assumed: tokenizer.ggml.pre is missing")


def test_what_nothing_else_has_is_downloaded_once(tmp_path, hub):
    content = put(tmp_path / "remote").read_bytes()
    hub.files = {"tokenizer.json": content, "tokenizer_config.json": b'{"chat_template": "{{ eos_token }}"}'}
    file = model(tmp_path, {}, base_model__0__repo_url=f"https://huggingface.co/{REPO}/")
    found = discover(file, n_vocab=512)
    assert (found.source, found.sha256) == ("download", hashlib.sha256(content).hexdigest())
    assert found.chat_template == "{{ eos_token }}"
    assert same(found)
    asked = len(hub.requests)
    again = discover(file, n_vocab=512)
    assert (again.source, again.chat_template) == ("cache", "{{ eos_token }}")
    assert len(hub.requests) == asked


def test_a_download_that_fails_says_why(tmp_path, hub):
    file = model(tmp_path, {})
    with pytest.raises(TokenizerError, match=r"download: someone/tiny: has no file 'tokenizer\.model'"):
        discover(file, repo=REPO)
    hub.files = {"tokenizer.json": put(tmp_path / "remote").read_bytes()}
    with pytest.raises(TokenizerError, match="not the 0000"):
        discover(file, repo=REPO, sha256="0" * 64)
    hub.requests.clear()
    with pytest.raises(TokenizerError, match="the network is forbidden"):
        discover(file, repo=REPO, offline=True)
    assert hub.requests == []


def test_a_model_with_a_tokenizer_never_goes_to_the_network(tmp_path, hub):
    assert discover(model(tmp_path), repo=REPO).source == "embedded"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("value", "repos"),
    [
        (f"https://huggingface.co/{REPO}", (REPO,)),
        ("https://hf.co/a/b/", ("a/b",)),
        ("microsoft/bitnet-b1.58-2B-4T", ("microsoft/bitnet-b1.58-2B-4T",)),
        ("https://example.org/a/b", ()),
        ("https://huggingface.co/../b", ()),
        ("https://huggingface.co/a/b/tree/main", ()),
        (7, ()),
    ],
)
def test_which_repository_a_model_names(tmp_path, value, repos):
    assert repositories(model(tmp_path, source__url=value)) == repos


def test_arguments_without_meaning(tmp_path):
    with pytest.raises(UsageError, match="is not the name of a repository"):
        discover(model(tmp_path), repo="../x")


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "MAX_FILE", 1000)
    with pytest.raises(ResourceLimitError, match="larger than 1000 bytes"):
        discover(model(tmp_path), path=put(tmp_path / "named"))


def test_a_fixture_model_finds_its_own():
    path = Path(probes.MODELS / "tiny-relu2.i2_s.gguf")
    assert discover(gguf.read(path)).source == "embedded"
