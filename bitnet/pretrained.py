"""From the name of a repository, or of a folder, to a path that can be loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from bitnet import hub_cache
from bitnet.arguments import instance_of, path_of
from bitnet.download import fetch, list_files
from bitnet.errors import DownloadError, ModelFileError, UsageError

#: What a checkpoint consists of, beside its weights.
_COMPANIONS = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_SHOWN = 20


def resolve(
    name: str | os.PathLike[str],
    *,
    file: str | None = None,
    revision: str = "main",
    sha256: str | None = None,
    offline: bool | None = None,
    progress: bool = False,
) -> Path:
    """The file or folder to load; from the network only what is not here.

    A path that exists is taken as it is; of a folder with GGUF files, the one there is. Anything else is a repository
    of the Hugging Face Hub: its one GGUF (all parts, if it is split), or, if it has none, its safetensors checkpoint.

    Args:
        name: A file, a folder, or `owner/name`.
        file: Which file of it.
        revision: Branch, tag or commit of a repository.
        sha256: Refuse any other content of that one file.
        offline: Use the cache alone; default BITNET_OFFLINE.
        progress: Show a bar on standard error.

    Raises:
        UsageError: Several files could be meant, or none.
        DownloadError: It is neither here nor to be had.
        ModelFileError: What came is not what was announced.
    """
    path = Path(path_of(name, "name"))
    if file is not None:
        instance_of(file, str, "file", "the name of a file, with / between folders")
    if path.exists() or isinstance(name, os.PathLike) or _looks_local(name):
        return _local(path, file)
    repo = hub_cache.checked_repo(name)
    if offline or (offline is None and hub_cache.offline()):
        names = _cached(repo, revision)
        if file is None and not _holds_model(names):
            raise DownloadError(
                "has no model in the cache, and the network is forbidden",
                where=f"{repo}@{revision}",
                remedy="download it on a machine with a network, or unset BITNET_OFFLINE",
            )
    else:
        try:
            names = list_files(repo, revision=revision)
        except DownloadError:
            names = _cached(repo, revision) if file is None else ()
            if file is None and not _holds_model(names):
                raise
    wanted = _with_shards(file or _chosen(repo, names), names) if file or _ggufs(names) else _checkpoint(repo, names)
    if sha256 is not None and len(wanted) > 1:
        raise UsageError("one digest cannot be that of several files", where="sha256", remedy="name one file")
    fetched = [
        fetch(repo, each, revision=revision, sha256=sha256, offline=offline, progress=progress) for each in wanted
    ]
    return fetched[0].path if file or _ggufs(wanted) else fetched[0].path.parent


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf") or (os.sep != "/" and os.sep in name)


def _local(path: Path, file: str | None) -> Path:
    path = path.expanduser()
    if file is not None:
        path = path / file
    if not path.is_dir():
        return path  # the reader says it best if it is not there
    names = tuple(sorted(entry.name for entry in path.iterdir()))
    if not _ggufs(names):
        if any(name.endswith(".safetensors") for name in names):
            return path
        raise ModelFileError(
            "holds neither a GGUF file nor a safetensors checkpoint", where=path, remedy="name a folder that does"
        )
    return path / _chosen(str(path), names)


def _ggufs(names: Sequence[str]) -> list[str]:
    """The GGUF models among names: the first part of each that is split."""
    found = [name for name in names if PurePosixPath(name).suffix == ".gguf"]
    return [name for name in found if (shard := _SHARD.fullmatch(name)) is None or int(shard[2]) == 1]


def _chosen(where: str, names: Sequence[str]) -> str:
    models = _ggufs(names)
    if len(models) == 1:
        return models[0]
    shown = ", ".join(models[:_SHOWN]) + (", …" if len(models) > _SHOWN else "")
    raise UsageError(
        f"has {len(models) or 'no'} GGUF files",
        where=where,
        remedy=f"name one with file=: {shown}" if models else "check the name and the revision",
    )


def _with_shards(file: str, names: Sequence[str]) -> list[str]:
    """The file, followed by the other parts of its model."""
    shard = _SHARD.fullmatch(file)
    if shard is None:
        return [file]
    others = [name for name in names if (part := _SHARD.fullmatch(name)) and part.group(1, 3) == shard.group(1, 3)]
    return [file, *(name for name in others if name != file)]


def _holds_model(names: Sequence[str]) -> bool:
    """Whether there is anything among names that can be loaded."""
    return bool(_ggufs(names) or _safetensors(names))


def _safetensors(names: Sequence[str]) -> list[str]:
    """The weights of a checkpoint at the top of a repository, if they have a configuration."""
    weights = [name for name in names if fnmatch(name, "*.safetensors") and "/" not in name]
    return weights if "config.json" in names else []


def _checkpoint(repo: str, names: Sequence[str]) -> list[str]:
    """The files of a safetensors checkpoint at the top of a repository."""
    weights = _safetensors(names)
    if not weights:
        raise UsageError(
            "has neither a GGUF file nor a safetensors checkpoint", where=repo, remedy="check the name and the revision"
        )
    beside = [name for name in names if "/" not in name and any(fnmatch(name, kind) for kind in _COMPANIONS)]
    return ["config.json", *(name for name in (*beside, *weights) if name != "config.json")]


def _cached(repo: str, revision: str) -> tuple[str, ...]:
    """Names of a repository's files in the caches."""
    found: set[str] = set()
    for cache in hub_cache.caches():
        folder = hub_cache.folder_of(cache, repo)
        commit = revision
        if not hub_cache.COMMIT.fullmatch(revision):
            try:
                commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                continue
        snapshot = folder / "snapshots" / commit
        if hub_cache.COMMIT.fullmatch(commit) and snapshot.is_dir():
            found.update(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    return tuple(sorted(found))
