from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet import hub_cache
from bitnet.errors import UsageError
from bitnet.hub_cache import Location

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "BITNET_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub_cache, "own_cache", lambda: tmp_path / "own" / "hub")


def put(cache, location, content=b"x", commit=COMMIT):
    blob = hub_cache.folder_of(cache, location.repo) / "blobs" / "etag"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    return hub_cache.install(blob, location, commit)


def test_where_the_hub_keeps_its_cache(monkeypatch, tmp_path):
    assert hub_cache.hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", "/named")
    assert hub_cache.hub_cache() == Path("/named")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert hub_cache.hub_cache() == Path("/xdg/huggingface/hub")


def test_what_is_installed_is_found_by_branch_and_by_commit():
    location = Location(repo="a/b", file="sub/x.gguf")
    path = put(hub_cache.hub_cache(), location)
    assert hub_cache.find(location) == path
    assert hub_cache.find(Location(repo="a/b", file="sub/x.gguf", revision=COMMIT)) == path
    assert hub_cache.find(Location(repo="a/b", file="y")) is None
    assert hub_cache.find(Location(repo="a/b", file="sub/x.gguf", revision="v1")) is None
    assert (hub_cache.repo_of(path), hub_cache.commit_of(path)) == ("a/b", COMMIT)


def test_installing_again_replaces_the_link():
    location = Location(repo="a/b", file="x")
    put(hub_cache.hub_cache(), location, b"old")
    assert put(hub_cache.hub_cache(), location, b"new").read_bytes() == b"new"


def test_a_file_system_without_links_gets_copies(monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = put(hub_cache.hub_cache(), Location(repo="a/b", file="x"), b"content")
    assert not path.is_symlink()
    assert path.read_bytes() == b"content"


def test_a_damaged_reference_is_no_find():
    location = Location(repo="a/b", file="x")
    put(hub_cache.hub_cache(), location)
    ref = hub_cache.folder_of(hub_cache.hub_cache(), "a/b") / "refs" / "main"
    for bad in (b"../../..", b"\xff", b""):
        ref.write_bytes(bad)
        assert hub_cache.find(location) is None


def test_our_own_cache_is_read_too_and_written_where_the_hubs_cannot_be(tmp_path):
    (tmp_path / "hf").write_text("a file where a folder should be")
    assert hub_cache.writable_cache() == hub_cache.own_cache()
    location = Location(repo="a/b", file="x")
    assert hub_cache.find(location) is None
    path = put(hub_cache.own_cache(), location)
    assert hub_cache.find(location) == path
    (tmp_path / "own" / "hub").rename(tmp_path / "moved")
    (tmp_path / "own").rmdir()
    (tmp_path / "own").write_text("here too")
    with pytest.raises(UsageError, match="can be written"):
        hub_cache.writable_cache()


@pytest.mark.parametrize(
    "repo", ["", "a/b/c", "../x", "a/..", "a b/c", "a--b/c", "-a/b", "/a", "a/", "x" * 97, "a\n/b"]
)
def test_what_is_no_repository(repo):
    with pytest.raises(UsageError, match="is not the name of a repository"):
        Location(repo=repo, file="x")


@pytest.mark.parametrize("file", ["", "/x", "../x", "a/../b", "a//b", "./x", "a\\b", "C:x", "x\0"])
def test_what_is_no_file(file):
    with pytest.raises(UsageError, match="is not a path inside"):
        Location(repo="a/b", file=file)


@pytest.mark.parametrize("revision", ["", "../x", "/x", "a b", "a..b", "-x"])
def test_what_is_no_revision(revision):
    with pytest.raises(UsageError, match="is not a revision"):
        Location(repo="a/b", file="x", revision=revision)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_spelling_leads_out_of_the_cache(repo, file, revision):
    try:
        location = Location(repo=repo, file=file, revision=revision)
    except UsageError:
        return
    cache = Path("/cache")
    path = hub_cache.folder_of(cache, location.repo) / "refs" / location.revision / location.file
    assert ".." not in path.parts
    assert path.is_relative_to(cache)


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("True", True), ("on", True), ("0", False), ("", False), (" no ", False)]
)
def test_the_network_is_forbidden_by_a_variable(value, expected, monkeypatch):
    monkeypatch.setenv("BITNET_OFFLINE", value)
    assert hub_cache.offline() is expected
    monkeypatch.setenv("BITNET_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub_cache.offline() is expected


def test_neither_yes_nor_no(monkeypatch):
    monkeypatch.setenv("BITNET_OFFLINE", "maybe")
    with pytest.raises(UsageError, match="'maybe'"):
        hub_cache.offline()


@pytest.mark.parametrize("path", ["/x/model.gguf", "/hub/models--a--b/model.gguf", "/hub/models---/snapshots/c/x"])
def test_a_path_outside_a_cache_has_no_repository(path):
    assert hub_cache.repo_of(Path(path)) is None
    assert hub_cache.commit_of(Path(path)) is None
