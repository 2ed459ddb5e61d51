"""Results that appear whole or not at all: made in a hidden folder beside their place, then renamed.

What takes the place of something else is of its kind: a file replaces a regular file, a checkpoint a folder that holds
a checkpoint and nothing beside it. A device, a pipe, and a folder with anything of somebody's own in it are refused,
before anything is made and once more before the names change.

A fault, an interrupt or a polite kill removes the folder. A process that is killed outright cannot clean up after
itself: its folder is named by its number, and the next conversion to the same place removes what dead ones left. A
folder that was being replaced when its process was killed is put back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil

from bitnet.errors import BitNetError, ResourceLimitError, UsageError

_MADE = "made"  # what is made: a short name, because the final one may be as long as names can be
_OLD = "replaced"  # where a folder waits while another takes its name
_LONG = 200  # bytes of a name that leave room for what is put around it
_WEIGHTS = "*.safetensors"
#: What makes up a checkpoint, and may go with it when it is replaced.
_OF_A_CHECKPOINT = (
    "config.json",
    "generation_config.json",
    _WEIGHTS,
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_NAMED = 3  # strange entries of a folder that are spelled out


@contextmanager
def staged(target: Path, *, folder: bool, n_bytes: int = 0, force: bool = False) -> Iterator[Path]:
    """A place to make a file or a folder that is to become `target`.

    Args:
        target: The final name.
        folder: Whether a folder is made, a checkpoint; else a file.
        n_bytes: About how much will be written.
        force: Replace what is there.

    Raises:
        UsageError: `target` is in the way (see `check_free`), or its folder cannot be written to.
        ResourceLimitError: The disk has less room than that.
    """
    place = _resolved(target, folder=folder)
    _sweep(place)
    check_free(target, folder=folder, force=force)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.parent).free
        if free < n_bytes:
            raise ResourceLimitError(
                f"needs {n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
                where=target,
                remedy="free some room, or choose another disk",
            )
        hidden = place.with_name(f".{_stem(place)}.{os.getpid()}.partial")
        hidden.mkdir()
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", where=target, remedy="check the folder and its rights"
        ) from error
    made = hidden / _MADE
    try:
        yield made
        check_free(target, folder=folder, force=force)  # minutes may have passed
        try:
            if folder and place.exists():
                place.replace(hidden / _OLD)
            made.replace(place)
            _sync(place.parent)
        except OSError as error:
            raise UsageError(
                f"cannot be replaced: {error.strerror}", where=target, remedy="check its rights"
            ) from error
    except BitNetError as error:
        if error.where is not None:  # nobody finds a name that is gone when the message is read
            error.where = error.where.replace(str(made), str(target))
        raise
    finally:
        _put_back(hidden, place)
        shutil.rmtree(hidden, ignore_errors=True)


def check_free(target: Path, *, folder: bool, force: bool) -> None:
    """Refuse a name that cannot be given to what is made, because of what has it.

    Args:
        target: The name.
        folder: Whether a folder is to get it; else a file.
        force: Whether what is there may be replaced, if it is of that kind.

    Raises:
        UsageError: What is there is of another kind, holds more than a checkpoint, or is not to be replaced.
    """
    place = _resolved(target, folder=folder)
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        if not place.is_symlink():
            return
        mode = stat.S_IFREG  # a link to nothing
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=target, remedy="choose another name") from error
    if stat.S_ISDIR(mode) and not folder:
        raise UsageError(
            "is a folder, and what is made is a file", where=target, remedy="name the file, such as FOLDER/model.gguf"
        )
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UsageError("is a device, a pipe or a socket", where=target, remedy="choose another name")
    if stat.S_ISREG(mode) and folder:
        raise UsageError("is a file, and what is made is a folder", where=target, remedy="choose another name")
    if folder:
        _check_folder(target, place)
    if not force:
        raise UsageError("exists already", where=target, remedy="choose another name, or replace it with --force")


def _check_folder(target: Path, place: Path) -> None:
    """Refuse a folder that holds anything but one checkpoint; one that holds nothing is free."""
    try:
        entries = sorted(place.iterdir())
        strange = [e.name for e in entries if not (e.is_file() and any(fnmatch(e.name, p) for p in _OF_A_CHECKPOINT))]
    except OSError as error:
        raise UsageError(
            f"cannot be looked into: {error.strerror}", where=target, remedy="choose another name"
        ) from error
    names = {e.name for e in entries}
    if entries and not ("config.json" in names and any(fnmatch(name, _WEIGHTS) for name in names)):
        raise UsageError(
            "is a folder that holds no checkpoint, so it is not replaced", where=target, remedy="choose another name"
        )
    if strange:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        raise UsageError(
            f"holds more than a checkpoint, so it is not replaced: {', '.join(strange[:_NAMED])}{more}",
            where=target,
            remedy="move that elsewhere, or choose another name",
        )
    if Path.cwd().is_relative_to(place):
        raise UsageError(
            "is the folder that this program was started in, or holds it, so it is not replaced",
            where=target,
            remedy="start it elsewhere, or choose another name",
        )


def _resolved(target: Path, *, folder: bool) -> Path:
    """A path with a name: a link to a folder stands for the folder, one to a file (a cache's, say) for itself."""
    try:
        if folder or target.name in ("", ".."):  # `.`, `..` and what ends in it
            return target.resolve()
        return target.parent.resolve() / target.name
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UsageError("is no path that can be followed", where=target, remedy="choose another name") from error


def _put_back(folder: Path, target: Path) -> None:
    """What was moved out of the way for nothing."""
    if (folder / _OLD).exists() and not target.exists():
        (folder / _OLD).replace(target)


def _sync(folder: Path) -> None:
    """Make a new name durable, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(target: Path) -> None:
    """Remove what processes that are gone left for this target."""
    if not target.parent.is_dir():
        return
    for left in target.parent.glob(f".{_literal(_stem(target))}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        if number.isdigit() and (int(number) == os.getpid() or not psutil.pid_exists(int(number))):
            with suppress(OSError):
                _put_back(left, target)
                shutil.rmtree(left)


def _stem(target: Path) -> str:
    """What a hidden folder is named by: the name, or what stands for one that is too long to have something added."""
    raw = os.fsencode(target.name)
    return target.name if len(raw) <= _LONG else hashlib.sha256(raw).hexdigest()[:32]


def _literal(name: str) -> str:
    """A name in a pattern, with nothing in it a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
