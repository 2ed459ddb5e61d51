import hashlib
import threading
import time

import pytest

from bitnet import download, hub_cache
from bitnet.errors import DownloadError, ModelFileError, ResourceLimitError, UsageError
from tests.hub_server import COMMIT, git_name, serve

REPO, FILE = "someone/tiny", "tiny.gguf"
CONTENT = bytes(range(256)) * 800  # 204,800 bytes
DIGEST = hashlib.sha256(CONTENT).hexdigest()


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
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # it holds back 10 MB at a time
        yield running


def kept(tmp_path):
    """Every file that a download left, locks apart."""
    found = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    return sorted(path.name for path in found if path.suffix != ".lock")


def test_a_file_is_fetched_verified_and_kept_as_the_hub_keeps_it(hub, tmp_path):
    fetched = download.fetch(REPO, FILE, sha256=DIGEST)
    assert fetched.path == tmp_path / "hf/hub/models--someone--tiny/snapshots" / COMMIT / FILE
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.n_bytes, fetched.transferred) == (DIGEST, len(CONTENT), len(CONTENT))
    assert (fetched.commit, fetched.notices) == (COMMIT, ())
    assert kept(tmp_path) == sorted([FILE, DIGEST, "main"])
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(REPO, FILE, cache_dir=tmp_path / "hf/hub")
    assert found == str(fetched.path)


def test_the_cache_is_asked_before_the_bytes_are_fetched_again(hub):
    download.fetch(REPO, FILE)
    again = download.fetch(REPO, FILE)
    assert (again.transferred, again.sha256) == (0, DIGEST)
    assert len(hub.gets()) == 1


def test_a_bar_is_shown_when_asked_for(hub, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # shows bars where there is no terminal, too
    download.fetch(REPO, FILE, progress=True)
    assert FILE in capsys.readouterr().err
    download.fetch(REPO, "README.md")
    assert capsys.readouterr().err == ""


def test_a_commit_in_the_cache_needs_no_network(hub):
    download.fetch(REPO, FILE)
    asked = len(hub.requests)
    assert download.fetch(REPO, FILE, revision=COMMIT, sha256=DIGEST).transferred == 0
    assert len(hub.requests) == asked


def test_offline_uses_the_cache_alone(hub, monkeypatch):
    monkeypatch.setenv("BITNET_OFFLINE", "1")
    with pytest.raises(DownloadError, match="not in the cache, and the network is forbidden"):
        download.fetch(REPO, FILE)
    with pytest.raises(DownloadError, match="cannot be listed"):
        download.list_files(REPO)
    assert hub.requests == []
    download.fetch(REPO, FILE, offline=False)
    asked = len(hub.requests)
    assert download.fetch(REPO, FILE).sha256 == DIGEST
    assert len(hub.requests) == asked


def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub):
    hub.break_after, hub.breaks = 50_000, 3
    assert download.fetch(REPO, FILE).sha256 == DIGEST
    assert [asked for _, _, asked in hub.gets()] == [None, "bytes=50000-", "bytes=100000-", "bytes=150000-"]


def test_what_an_interrupted_program_had_is_kept_for_the_next(hub, tmp_path, monkeypatch):
    from huggingface_hub import file_download

    def interrupted(url, file, **options):
        file.write(CONTENT[:70_000])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download.fetch(REPO, FILE)
    assert kept(tmp_path) == [f"{DIGEST}.incomplete"]
    fetched = download.fetch(REPO, FILE)
    assert (fetched.sha256, fetched.transferred) == (DIGEST, len(CONTENT) - 70_000)
    assert [asked for _, _, asked in hub.gets()] == ["bytes=70000-"]
    assert kept(tmp_path) == sorted([FILE, DIGEST, "main"])


def test_a_server_that_never_gets_anywhere_is_given_up_and_nothing_takes_the_name(hub, tmp_path):
    hub.break_after = 0
    with pytest.raises(DownloadError, match="broke off after 0 of 204800 bytes") as caught:
        download.fetch(REPO, FILE)
    assert "run it again" in caught.value.remedy
    assert kept(tmp_path) == [f"{DIGEST}.incomplete"]
    hub.break_after = None
    assert download.fetch(REPO, FILE).sha256 == DIGEST


def test_a_server_without_ranges_starts_over(hub):
    hub.ranges, hub.break_after, hub.breaks = False, 50_000, 2
    assert download.fetch(REPO, FILE).path.read_bytes() == CONTENT


def test_a_damaged_remainder_is_fetched_once_more(hub, tmp_path):
    blobs = hub_cache.folder_of(hub_cache.hub_cache(), REPO) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{DIGEST}.incomplete").write_bytes(b"\0" * 60_000)
    fetched = download.fetch(REPO, FILE)
    assert fetched.path.read_bytes() == CONTENT
    assert [asked for _, _, asked in hub.gets()] == ["bytes=60000-", None]


def test_a_remainder_longer_than_the_file_is_dropped(hub):
    blobs = hub_cache.folder_of(hub_cache.hub_cache(), REPO) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{DIGEST}.incomplete").write_bytes(b"\0" * (len(CONTENT) + 1))
    assert download.fetch(REPO, FILE).path.read_bytes() == CONTENT


LIES = {
    "announces more": ({"announce": len(CONTENT) + 7}, DownloadError, "ended after 204800 of 204807 bytes"),
    "announces less": ({"announce": len(CONTENT) - 7}, DownloadError, "announced 204793 bytes and sends more"),
    "promises more": ({"length": len(CONTENT) + 7}, DownloadError, "broke off|refuses to go on"),
    "sends more": ({"send": CONTENT * 3}, DownloadError, "sends more"),
    "sends less": ({"send": CONTENT[:-9]}, DownloadError, "ended after 204791 of 204800"),
    "sends other bytes": ({"send": b"x" * len(CONTENT)}, ModelFileError, "not what was announced"),
    "names no commit": ({"commit": None}, DownloadError, "does not say which version"),
    "names a commit of its own": ({"commit": "../../../etc"}, DownloadError, "does not say which version"),
    "names a blob of its own": ({"etag": "../../x"}, DownloadError, "does not say which version"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_found_out(lie, hub, tmp_path):
    behaviour, kind, message = LIES[lie]
    for name, value in behaviour.items():
        setattr(hub, name, value)
    with pytest.raises(kind, match=message) as caught:
        download.fetch(REPO, FILE)
    assert caught.value.remedy
    assert FILE not in kept(tmp_path)
    assert DIGEST not in kept(tmp_path)
    for name in behaviour:
        setattr(hub, name, getattr(type(hub)(), name))
    assert download.fetch(REPO, FILE).path.read_bytes() == CONTENT  # a lie leaves nothing that spoils the truth


def test_a_pin_is_checked_before_a_byte_is_fetched(hub, tmp_path):
    with pytest.raises(ModelFileError, match="nothing was transferred"):
        download.fetch(REPO, FILE, sha256="0" * 64)
    assert hub.gets() == []
    assert kept(tmp_path) == []


def test_a_pin_is_checked_against_the_bytes_and_a_mismatch_leaves_nothing(hub, tmp_path):
    hub.etag = git_name(CONTENT)
    with pytest.raises(ModelFileError, match="not what was asked for"):
        download.fetch(REPO, FILE, sha256="0" * 64)
    assert kept(tmp_path) == []
    assert download.fetch(REPO, FILE, sha256=f"sha256:{DIGEST.upper()}").sha256 == DIGEST
    with pytest.raises(ModelFileError, match="not the 0000"):
        download.fetch(REPO, FILE, sha256="0" * 64)


def test_a_small_file_is_checked_by_its_name_in_git(hub):
    hub.etag = git_name(CONTENT)
    hub.send = CONTENT[::-1]
    with pytest.raises(ModelFileError, match="not what was announced"):
        download.fetch(REPO, FILE)


FAILURES = {
    "private": ({"status": 401}, "may not be read", "HF_TOKEN"),
    "forbidden": ({"status": 403}, "may not be read", "HF_TOKEN"),
    "gated": ({"status": 403, "error_code": "GatedRepo"}, "is gated", "HF_TOKEN"),
    "no repository": ({"status": 404, "error_code": "RepoNotFound"}, "no repository", "check the name"),
    "no revision": ({"status": 404, "error_code": "RevisionNotFound"}, "has no revision 'main'", "branch"),
    "no file": ({"files": {}}, "has no file 'tiny.gguf'", "name of the file"),
    "not found": ({"status": 404}, "is not found", "names"),
    "broken": ({"status": 500}, "answers 500", "later"),
    "busy": ({"status": 503}, "answers 503", "later"),
    "breaks at the bytes": ({"get_status": 500}, "answers 500", "later"),
    "cannot go on": ({"get_status": 416}, "refuses to go on", "run it again"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_says_what_it_is_and_what_to_do(failure, hub, tmp_path):
    behaviour, message, remedy = FAILURES[failure]
    for name, value in behaviour.items():
        setattr(hub, name, value)
    with pytest.raises(DownloadError, match=message) as caught:
        download.fetch(REPO, FILE)
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 4
    assert FILE not in kept(tmp_path)


def test_a_silent_server_is_given_up(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.break_after, hub.stalled = 0, threading.Event()
    with pytest.raises(DownloadError, match="broke off after 0 of 204800 bytes"):
        download.fetch(REPO, FILE)
    hub.stalled.set()


def test_nobody_listens(hub, monkeypatch):
    download.fetch(REPO, FILE)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        download.fetch(REPO, "README.md")
    assert "HF_ENDPOINT" in caught.value.remedy
    cached = download.fetch(REPO, FILE)
    assert cached.sha256 == DIGEST
    assert "cannot be reached" in cached.notices[0]


def test_the_token_is_sent(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(DownloadError, match="may not be read"):
        download.fetch(REPO, FILE)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download.fetch(REPO, FILE).sha256 == DIGEST


def test_a_full_disk_is_seen_before_a_byte_is_written(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ResourceLimitError, match="needs 204800 bytes, and the disk has 1000"):
        download.fetch(REPO, FILE)
    assert kept(tmp_path) == []


def test_files_are_listed(hub):
    assert download.list_files(REPO) == ("README.md", FILE)
    hub.status = 404
    hub.error_code = "RepoNotFound"
    with pytest.raises(DownloadError, match="no repository"):
        download.list_files(REPO)


def test_two_at_once_fetch_once(hub):
    hub.break_after, hub.breaks = 100_000, 1
    found = []
    threads = [threading.Thread(target=lambda: found.append(download.fetch(REPO, FILE))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.sha256 for entry in found] == [DIGEST] * 3
    assert sum(entry.transferred for entry in found) == len(CONTENT)


@pytest.mark.parametrize("pin", ["abc", "g" * 64, DIGEST + "0"])
def test_a_pin_that_is_no_digest_is_a_usage_error(pin, hub):
    with pytest.raises(UsageError, match="is not a sha256"):
        download.fetch(REPO, FILE, sha256=pin)
