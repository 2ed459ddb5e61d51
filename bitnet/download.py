"""Files from the Hugging Face Hub, whole and verified or not at all.

`huggingface_hub` speaks to the server: addresses, tokens, redirects, retries, and going on within one transfer. What
it leaves out is done here, because a model is a gigabyte and a server may be wrong. Since its 2.x it throws away what
an interrupted program had fetched, so a transfer is kept beside its goal as `ETAG.incomplete` and gone on with next
time. Nothing is written past the size the server announced. The digest is checked (the caller's pin, and the one in
the server's ETag) before the file takes its name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from bitnet import hub_cache
from bitnet.errors import BitNetError, DownloadError, ModelFileError, ResourceLimitError, UsageError
from bitnet.hub_cache import Location

_ETAG = re.compile("[0-9A-Za-z_-]{1,128}")
_SHA256 = re.compile("[0-9a-f]{64}")
_HUB = "https://huggingface.co"
_RERUN = "run it again; what has come is kept and the transfer goes on from there"
_PIECE = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A file that is on this machine now.

    Attributes:
        path: Where.
        location: What was asked for.
        commit: The commit it is from.
        sha256: Digest of its bytes, computed now.
        n_bytes: Its size.
        transferred: Bytes that came over the network in this call; 0 if it was in the cache.
        notices: What its user should know.
    """

    path: Path
    location: Location
    commit: str
    sha256: str
    n_bytes: int
    transferred: int
    notices: tuple[str, ...] = ()


def fetch(
    repo: str,
    file: str,
    *,
    revision: str = "main",
    sha256: str | None = None,
    offline: bool | None = None,
    progress: bool = False,
) -> Fetched:
    """One file of a repository, from the cache or the Hub.

    A commit that is in the cache needs no network. A branch or tag is looked up, and if the Hub cannot be reached,
    what it last stood for is used and said.

    Args:
        repo: `owner/name`.
        file: Path inside the repository.
        revision: Branch, tag or commit.
        sha256: Refuse any other content.
        offline: Use the cache alone; default BITNET_OFFLINE.
        progress: Show a bar on standard error.

    Raises:
        UsageError: A name, revision or digest is not one.
        DownloadError: It is not in the cache, and it cannot be fetched.
        ModelFileError: The bytes are not those that were asked for or announced; none are kept.
        ResourceLimitError: The disk is too small.
    """
    location = Location(repo=repo, file=file, revision=revision)
    if sha256 is not None:
        sha256 = sha256.lower().removeprefix("sha256:")
        if not _SHA256.fullmatch(sha256):
            raise UsageError(f"{sha256!r} is not a sha256 digest", remedy="give its 64 hexadecimal digits")
    cached = hub_cache.find(location)
    if cached is not None and hub_cache.COMMIT.fullmatch(revision):
        return _from_cache(cached, location, sha256)
    if hub_cache.offline() if offline is None else offline:
        if cached is not None:
            return _from_cache(cached, location, sha256)
        raise DownloadError(
            "is not in the cache, and the network is forbidden",
            where=str(location),
            remedy="unset BITNET_OFFLINE, or copy the file into the cache of another machine that has it",
        )
    try:
        return _fetch(location, sha256, progress=progress)
    except DownloadError as error:
        if cached is None or not isinstance(error, _UnreachableError):
            raise
        return _from_cache(cached, location, sha256, f"the Hub cannot be reached; {location} is what the cache has")


def list_files(repo: str, *, revision: str = "main") -> tuple[str, ...]:
    """Paths of all files of a repository.

    Raises:
        UsageError: A name is not one.
        DownloadError: The repository cannot be read, or the network is forbidden.
    """
    location = Location(repo=repo, file="listing", revision=revision)
    if hub_cache.offline():
        raise DownloadError(
            "cannot be listed, because the network is forbidden", where=repo, remedy="name the file, or go online"
        )
    from huggingface_hub import HfApi

    try:
        return tuple(sorted(HfApi(endpoint=_endpoint()).list_repo_files(repo, revision=revision)))
    except Exception as error:  # the library's errors share no base; _fail passes on what it cannot name
        _fail(error, location)


class _UnreachableError(DownloadError):
    """The Hub did not answer, or not now."""


def _from_cache(path: Path, location: Location, pin: str | None, *notices: str) -> Fetched:
    digest, size = _digests(path)[0], path.stat().st_size
    if pin is not None and digest != pin:
        raise ModelFileError(
            f"has sha256 {digest}, not the {pin} that was asked for",
            where=path,
            remedy="check the digest and the revision; if they are right, delete this file and fetch it again",
        )
    return Fetched(
        path=path,
        location=location,
        commit=hub_cache.commit_of(path) or location.revision,
        sha256=digest,
        n_bytes=size,
        transferred=0,
        notices=notices,
    )


def _fetch(location: Location, pin: str | None, *, progress: bool) -> Fetched:
    """Ask the Hub what the file is; transfer it unless it is here already."""
    etag, commit, size = _announced(location)
    if pin is not None and _SHA256.fullmatch(etag) and etag != pin:
        raise ModelFileError(
            f"has sha256 {etag} at this revision, not the {pin} that was asked for; nothing was transferred",
            where=str(location),
            remedy="check the digest and the revision",
        )
    at_commit = Location(repo=location.repo, file=location.file, revision=commit)
    cached = hub_cache.find(at_commit)
    if cached is not None:
        return _from_cache(cached, at_commit, pin)
    from huggingface_hub.utils import WeakFileLock

    cache = hub_cache.writable_cache()
    folder = hub_cache.folder_of(cache, location.repo)
    blob = folder / "blobs" / etag
    lock = cache / ".locks" / folder.name / f"{etag}.lock"
    for needed in (blob.parent, lock.parent):
        needed.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        transferred = 0
        if blob.exists():
            digest = _check(blob, location, etag, pin, keep=True)
        else:
            partial = blob.with_name(f"{etag}.incomplete")
            transferred = _transfer(at_commit, partial, size, progress=progress)
            if transferred < size and not _is_announced(_digests(partial), etag, pin):
                partial.unlink()  # what an earlier run left was damaged: once more from the start
                transferred += _transfer(at_commit, partial, size, progress=progress)
            digest = _check(partial, location, etag, pin)
            partial.replace(blob)
        path = hub_cache.install(blob, location, commit)
    return Fetched(path=path, location=location, commit=commit, sha256=digest, n_bytes=size, transferred=transferred)


def _announced(location: Location) -> tuple[str, str, int]:
    """The ETag, commit and size that the Hub says a file has, the first two of a form that can be trusted as a name."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    endpoint = _endpoint()
    url = hf_hub_url(location.repo, location.file, revision=location.revision, endpoint=endpoint)
    try:
        found = get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:  # as above
        _fail(error, location)
    etag, commit, size = found.etag or "", found.commit_hash or "", found.size
    if not _ETAG.fullmatch(etag) or not hub_cache.COMMIT.fullmatch(commit) or size is None or size < 0:
        raise DownloadError(
            f"the server at {endpoint} does not say which version and size the file has",
            where=str(location),
            remedy="check HF_ENDPOINT, and whether a proxy answers in its place",
        )
    return etag, commit, size


def _transfer(location: Location, partial: Path, size: int, *, progress: bool) -> int:
    """Bring a partial file to its announced size; return the bytes that came."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, silent_tqdm, tqdm

    had = partial.stat().st_size if partial.exists() else 0
    if had > size:
        partial.unlink()
        had = 0
    free = shutil.disk_usage(partial.parent).free
    if size - had > free:
        raise ResourceLimitError(
            f"needs {size - had} bytes, and the disk has {free}", where=partial.parent, remedy="set HF_HOME elsewhere"
        )
    with partial.open("ab") as file:
        try:
            http_get(
                hf_hub_url(location.repo, location.file, revision=location.revision, endpoint=_endpoint()),
                cast("BinaryIO", _Bounded(file, size, location)),
                resume_size=had,
                headers=build_hf_headers(),
                expected_size=size,
                displayed_filename=location.file,
                tqdm_class=tqdm if progress else silent_tqdm,
            )
        except Exception as error:  # as above
            file.flush()
            if isinstance(error, _TooLongError) or getattr(getattr(error, "response", None), "status_code", 0) == 416:
                file.truncate(0)  # what is there is not the beginning of what the server has
            _fail(error, location, came=file.tell(), size=size)
        file.flush()
        os.fsync(file.fileno())
    return size - had


class _TooLongError(DownloadError):
    """More bytes came than were announced."""


class _Bounded:
    """A file that takes no byte beyond an announced size, so that a server cannot fill the disk."""

    def __init__(self, file: BinaryIO, size: int, location: Location) -> None:
        self._file = file
        self._size = size
        self._location = location
        self.seek = file.seek
        self.tell = file.tell
        self.truncate = file.truncate

    def write(self, piece: bytes) -> int:
        if self._file.tell() + len(piece) > self._size:
            raise _TooLongError(
                f"the server announced {self._size} bytes and sends more; nothing was kept",
                where=str(self._location),
                remedy="try again later, or check HF_ENDPOINT and the proxy",
            )
        return self._file.write(piece)


def _check(path: Path, location: Location, etag: str, pin: str | None, *, keep: bool = False) -> str:
    """The sha256 of a file; `ModelFileError`, and no file, unless it is what was announced and asked for."""
    found = _digests(path)
    if _is_announced(found, etag, pin):
        return found[0]
    if not keep:
        path.unlink()
    wanted, by = (pin, "asked for") if pin and pin != found[0] else (etag, "announced")
    raise ModelFileError(
        f"the bytes that came have sha256 {found[0]}, not what was {by} ({wanted})",
        where=path if keep else str(location),
        remedy="delete this file and fetch it again" if keep else "nothing was kept; check the digest, or try again",
    )


def _is_announced(digests: tuple[str, str], etag: str, pin: str | None) -> bool:
    """Whether the digests are what the caller's pin and the ETag say: a sha256, or git's name of a small file."""
    sha256, git = digests
    named = {64: sha256, 40: git}.get(len(etag))
    return (pin is None or sha256 == pin) and (named is None or named == etag)


def _digests(path: Path) -> tuple[str, str]:
    """sha256 of a file, and the name that git gives its content."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
            git.update(piece)
    return sha256.hexdigest(), git.hexdigest()


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")


def _fail(error: Exception, location: Location, *, came: int = 0, size: int = 0) -> NoReturn:
    """Raise what an error of the library or of the network means to the user."""
    import httpx2
    from huggingface_hub import errors

    access = "check the name; if it is private or gated, ask for access and set HF_TOKEN"
    if isinstance(error, BitNetError):
        raise error
    failure: BitNetError
    if isinstance(error, errors.GatedRepoError):
        failure = DownloadError("is gated: its owner grants access", where=location.repo, remedy=access)
    elif isinstance(error, errors.RepositoryNotFoundError):
        failure = DownloadError("is no repository that this user can see", where=location.repo, remedy=access)
    elif isinstance(error, errors.RevisionNotFoundError):
        failure = DownloadError(
            f"has no revision {location.revision!r}", where=location.repo, remedy="give a branch, a tag or a commit"
        )
    elif isinstance(error, errors.EntryNotFoundError):
        failure = DownloadError(
            f"has no file {location.file!r} at {location.revision[:12]}",
            where=location.repo,
            remedy="check the name of the file and the revision",
        )
    elif isinstance(error, errors.HfHubHTTPError):
        failure = _http_failure(error.response.status_code, location, access)
    elif isinstance(error, httpx2.TransportError) and size:
        failure = DownloadError(f"broke off after {came} of {size} bytes", where=str(location), remedy=_RERUN)
    elif isinstance(error, httpx2.HTTPError | ConnectionError):
        failure = _UnreachableError(
            f"{_endpoint()} cannot be reached ({type(error).__name__})",
            where=str(location),
            remedy="check the network, HF_ENDPOINT and the proxy; with BITNET_OFFLINE=1 the cache alone is used",
        )
    elif isinstance(error, OSError) and error.errno is None:  # the library's check of the length
        failure = DownloadError(f"ended after {came} of {size} bytes", where=str(location), remedy=_RERUN)
    elif isinstance(error, OSError):
        failure = DownloadError(
            f"cannot be written: {error.strerror}", where=str(location), remedy="set HF_HOME to a folder with room"
        )
    elif isinstance(error, ValueError):
        failure = DownloadError(
            f"the server answers nonsense: {error}", where=str(location), remedy="check HF_ENDPOINT"
        )
    else:
        raise error
    raise failure from error


def _http_failure(status: int, location: Location, access: str) -> BitNetError:
    if status in (401, 403):
        return DownloadError(f"may not be read (the server answers {status})", where=location.repo, remedy=access)
    if status == 404:
        return DownloadError("is not found", where=str(location), remedy="check the names of repository and file")
    if status == 416:
        return DownloadError(
            "the server refuses to go on where the transfer broke off",
            where=str(location),
            remedy="run it again; it starts from the beginning",
        )
    return _UnreachableError(f"the server answers {status}", where=str(location), remedy="try again later")
