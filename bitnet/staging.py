"""Results that appear whole or not at all: made in a hidden folder beside their place, then renamed.

A fault, an interrupt or a polite kill removes the folder. A process that is killed outright cannot clean up after
itself: its folder is named by its number, and the next conversion to the same place removes what dead ones left. A
folder that was being replaced when its process was killed is put back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from bitnet.errors import ResourceLimitError, UsageError

_OLD = "replaced"  # where a folder waits while another takes its name


@contextmanager
def staged(target: Path, *, n_bytes: int = 0, force: bool = False) -> Iterator[Path]:
    """A place to make a file or a folder that is to become `target`.

    Args:
        target: The final name.
        n_bytes: About how much will be written.
        force: Replace what is there.

    Raises:
        UsageError: `target` exists and `force` was not given, or its folder cannot be written to.
        ResourceLimitError: The disk has less room than that.
    """
    _sweep(target)
    if not force and (target.exists() or target.is_symlink()):
        raise UsageError("exists already", where=target, remedy="choose another name, or replace it with --force")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").exists():
        raise UsageError("is a folder that holds no checkpoint, so it is not replaced", where=target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < n_bytes:
            raise ResourceLimitError(
                f"needs {n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
                where=target,
                remedy="free some room, or choose another disk",
            )
        folder = target.with_name(f".{target.name}.{os.getpid()}.partial")
        folder.mkdir()
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}", where=target, remedy="check the folder and its rights"
        ) from error
    try:
        made = folder / target.name
        yield made
        try:
            if target.is_dir() and not target.is_symlink():
                target.replace(folder / _OLD)
            made.replace(target)
            _sync(target.parent)
        except OSError as error:
            raise UsageError(
                f"cannot be replaced: {error.strerror}", where=target, remedy="check its rights"
            ) from error
    finally:
        _put_back(folder, target)
        shutil.rmtree(folder, ignore_errors=True)


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
    for left in target.parent.glob(f".{_literal(target.name)}.*.partial"):
        number = left.name.removesuffix(".partial").rpartition(".")[2]
        if number.isdigit() and (int(number) == os.getpid() or not psutil.pid_exists(int(number))):
            with suppress(OSError):
                _put_back(left, target)
                shutil.rmtree(left)


def _literal(name: str) -> str:
    """A name in a pattern, with nothing in it a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
