"""The models that are on this machine: in the Hub's caches, in the current folder, or in folders that are named."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bitnet import hub_cache, tokenizer_files
from bitnet.errors import BitNetError
from bitnet.file_info import describe
from bitnet.hf import open_model

Place = Literal["folder", "cache", "BITNET_GGUF"]

_DEPTH = 3  # folders below the one that is searched; deeper ones hold other things
_MOST_FOLDERS = 10_000  # a search of somebody's home folder has an end
_CONFIG = 1 << 20  # bytes of a config.json; published ones have a few thousand
_LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that was found: a GGUF file, or the folder of a checkpoint.

    Attributes:
        path: Where.
        place: How it was found.
        repo: Its repository, where it lies in a cache.
        n_bytes: Its size.
        arch: Architecture name, or None where the file cannot be read.
        weight_type: Type of its projections, likewise.
        n_weights: All of them, likewise.
        tokenizer: "embedded", "beside" or "none"; None where the file cannot be read.
        fault: Why it cannot be loaded, or None.
    """

    path: str
    place: Place
    repo: str | None
    n_bytes: int
    arch: str | None
    weight_type: str | None
    n_weights: int | None
    tokenizer: Literal["embedded", "beside", "none"] | None
    fault: str | None

    @property
    def loadable(self) -> bool:
        """Whether the header holds nothing against it; `bitnet model verify` looks at the weights too."""
        return self.fault is None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {"loadable": self.loadable}


def find_models(folders: Iterable[Path] = ()) -> tuple[Found, ...]:
    """Every model file in some folders; without any, in the current one, in the caches, and in BITNET_GGUF.

    Each file is named once, however many links lead to it, and a model of several shards by its first.
    """
    named = [(Path(folder), "folder") for folder in folders]
    places: list[tuple[Path, str]] = list(named)
    if not named:
        variable = os.environ.get("BITNET_GGUF", "").strip()
        places = [(Path(variable), "BITNET_GGUF")] if variable else []
        places += [(Path(), "folder"), *((cache, "cache") for cache in hub_cache.caches())]
    seen: set[Path] = set()
    found = []
    for folder, place in places:
        for path in _files(folder, deep=place == "cache"):
            real = path.resolve()
            if real not in seen:
                seen.add(real)
                found.append(_look(path, place))  # type: ignore[arg-type]  # one of the three
    return tuple(found)


def _files(top: Path, *, deep: bool) -> Iterator[Path]:
    if top.is_file():
        yield top
        return
    left, depth = _MOST_FOLDERS, _DEPTH + 2 * deep  # a cache has models--…/snapshots/COMMIT in between
    base = len(top.parts)
    for folder, folders, names in os.walk(top):
        here = Path(folder)
        left -= 1
        if left <= 0:
            return
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if len(here.parts) - base < depth else []
        for name in sorted(names):
            if name.endswith(".gguf") and not _LATER_SHARD.search(name):
                yield here / name
        if "config.json" in names and any(n.endswith(".safetensors") for n in names) and _is_bitnet(here):
            yield here


def _is_bitnet(folder: Path) -> bool:
    """Whether a checkpoint says that it is one of these; a cache holds others too."""
    try:
        with (folder / "config.json").open("rb") as file:
            return b"bitnet" in file.read(_CONFIG).lower()
    except OSError:
        return False


def _look(path: Path, place: Place) -> Found:
    size = path.stat().st_size if path.is_file() else 0
    repo = hub_cache.repo_of(path)
    try:
        gguf = open_model(path)
        info = describe(gguf)
    except BitNetError as error:
        return Found(
            path=str(path),
            place=place,
            repo=repo,
            n_bytes=size,
            arch=None,
            weight_type=None,
            n_weights=None,
            tokenizer=None,
            fault=error.what,
        )
    beside = tokenizer_files.in_folder(path if path.is_dir() else path.parent)
    tokenizer: Literal["embedded", "beside", "none"] = "none" if beside is None else "beside"
    return Found(
        path=str(path),
        place=place,
        repo=repo,
        n_bytes=info.n_bytes,
        arch=info.config.arch,
        weight_type=info.main_type,
        n_weights=info.n_weights,
        tokenizer="embedded" if info.tokenizer.model is not None and not path.is_dir() else tokenizer,
        fault=info.fault,
    )
