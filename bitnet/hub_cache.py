"""Where files of the Hugging Face Hub lie on this machine, in the Hub's own documented layout.

    models--OWNER--NAME/blobs/ETAG                the bytes, named by what the server says they are
    models--OWNER--NAME/snapshots/COMMIT/FILE     a link to a blob
    models--OWNER--NAME/refs/REVISION             the commit that a branch or tag last stood for

One cache serves every program on the machine, so a model that transformers fetched is not fetched again. Where that
cache cannot be written (a container with HF_HOME mounted read-only) new files go to a cache of our own, laid out the
same way; both are read. Looking into them needs neither the network nor `huggingface_hub`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from bitnet.errors import UsageError

COMMIT = re.compile("[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?(?:/[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?)?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
_SNAPSHOT = re.compile(r"models--(.+)")
_YES, _NO = frozenset({"1", "true", "yes", "on"}), frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One file of one revision of a repository.

    Attributes:
        repo: `owner/name`.
        file: Path inside the repository.
        revision: Branch, tag or commit.

    Raises:
        UsageError: A part is not spelled as the Hub spells it, or would lead out of the cache.
    """

    repo: str
    file: str
    revision: str = "main"

    def __post_init__(self) -> None:
        checked_repo(self.repo)
        if ".." in self.revision or not _REVISION.fullmatch(self.revision):
            raise UsageError(f"{self.revision!r} is not a revision", remedy="give a branch, a tag or a commit")
        parts = self.file.split("/")
        if not all(part not in ("", ".", "..") for part in parts) or any(c in self.file for c in "\\:\0"):
            raise UsageError(f"{self.file!r} is not a path inside a repository", remedy="give it as folder/name")

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision[:12]}/{self.file}"


def checked_repo(repo: str) -> str:
    """A repository's name as it is. Raises `UsageError` if it is none."""
    if len(repo) > 96 or ".." in repo or "--" in repo or not _REPO.fullmatch(repo):
        raise UsageError(f"{repo!r} is not the name of a repository", remedy="give it as owner/name")
    return repo


def offline() -> bool:
    """Whether BITNET_OFFLINE, or the Hub's own HF_HUB_OFFLINE, forbids the network.

    Raises:
        UsageError: The variable is neither yes nor no.
    """
    for variable in ("BITNET_OFFLINE", "HF_HUB_OFFLINE"):
        value = os.environ.get(variable, "").strip().lower()
        if value in _YES:
            return True
        if value not in _NO:
            raise UsageError(f"is {value!r}", where=variable, remedy="1 forbids the network, 0 allows it")
    return False


def hub_cache() -> Path:
    """The Hub's cache: HF_HUB_CACHE, or `hub` in HF_HOME, or in the user's cache folder."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def own_cache() -> Path:
    """The cache used where the Hub's cannot be written."""
    return Path(platformdirs.user_cache_dir("bitnet-crossval")) / "hub"


def caches() -> tuple[Path, ...]:
    """The caches to read, in order."""
    return hub_cache(), own_cache()


def writable_cache() -> Path:
    """The first cache that new files can be written to.

    Raises:
        UsageError: None can be written.
    """
    for folder in caches():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise UsageError(
        f"neither {hub_cache()} nor {own_cache()} can be written", remedy="set HF_HOME to a folder that can"
    )


def folder_of(cache: Path, repo: str) -> Path:
    """A repository's folder in a cache."""
    return cache / ("models--" + checked_repo(repo).replace("/", "--"))


def repo_of(path: Path) -> str | None:
    """The repository whose snapshot a path lies in, or None for a path outside any cache."""
    parts = path.absolute().parts
    for i, part in enumerate(parts[:-2]):
        name = _SNAPSHOT.fullmatch(part)
        if name and parts[i + 1] == "snapshots":
            repo = name[1].replace("--", "/", 1)
            return repo if _REPO.fullmatch(repo) else None
    return None


def find(location: Location) -> Path | None:
    """The file in a cache, or None."""
    for cache in caches():
        path = _find_in(folder_of(cache, location.repo), location)
        if path is not None:
            return path
    return None


def commit_of(path: Path) -> str | None:
    """The commit whose snapshot a cached file lies in."""
    parts = path.absolute().parts
    at = len(parts) - 1 - parts[::-1].index("snapshots") if "snapshots" in parts else None
    return parts[at + 1] if at is not None and COMMIT.fullmatch(parts[at + 1]) else None


def _find_in(folder: Path, location: Location) -> Path | None:
    commit = location.revision
    if not COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / location.revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    if not COMMIT.fullmatch(commit):
        return None
    path = folder / "snapshots" / commit / location.file
    return path if path.is_file() else None


def install(blob: Path, location: Location, commit: str) -> Path:
    """Let a finished blob be found: link it into its snapshot and note what the revision stands for.

    Returns:
        The path in the snapshot.
    """
    folder = blob.parents[1]
    path = folder / "snapshots" / commit / location.file
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    try:
        staged.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # a file system without links
        shutil.copyfile(blob, staged)
    staged.replace(path)
    if not COMMIT.fullmatch(location.revision):
        ref = folder / "refs" / location.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        staged = ref.with_name(f".{ref.name}.{os.getpid()}")
        staged.write_text(commit, encoding="ascii")
        staged.replace(ref)
    return path
