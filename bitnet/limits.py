"""Limits that the environment sets, and those of what it sets."""

from __future__ import annotations

import os
import re

from bitnet.arguments import whole_number
from bitnet.errors import ResourceLimitError, UsageError

MEMORY = "BITNET_MEMORY_LIMIT"
BATCH = "BITNET_BATCH_SIZE"

_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMGT]?)(i?)B?", re.ASCII | re.IGNORECASE)
MOST_THREADS = 1024  # more than the cores of a machine; each takes scratch and has to be started
_MOST_TOGETHER = 1024
_TOGETHER = 8


def parse_bytes(text: str, *, where: str) -> int:
    """Bytes of `2000000000`, `2GB`, `1.5 GiB`, `512M` (powers of 1000; of 1024 with an i).

    Raises:
        UsageError: It is none of these, or 0.
    """
    match = _BYTES.fullmatch(text.strip())
    power = " KMGT".index(match[2].upper() or " ") if match else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if size < 1:
        raise UsageError(f"is {text!r}", where=where, remedy="a number of bytes, such as 2GB, 1.5GiB or 512M")
    return size


def parse_number(text: str, *, most: int, where: str, of: str) -> int:
    """A number from 1. Raises `UsageError` for anything else, however many digits it has."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise UsageError(f"is {text!r}", where=where, remedy=f"a number of {of}, 1 to {most}")
    return int(text)


def memory_limit() -> int | None:
    """BITNET_MEMORY_LIMIT in bytes, or None where it is not set. Raises `UsageError` for nonsense."""
    text = os.environ.get(MEMORY, "").strip()
    return parse_bytes(text, where=MEMORY) if text else None


def batch_size(asked: int | None = None) -> int:
    """Sequences decoded together: as asked for, else BITNET_BATCH_SIZE, else 8. Raises `UsageError` for nonsense."""
    text = os.environ.get(BATCH, "").strip()
    if asked is not None:
        return whole_number(asked, "n_batch", f"a whole number, 1 to {_MOST_TOGETHER}", most=_MOST_TOGETHER)
    if not text:
        return _TOGETHER
    return parse_number(text, most=_MOST_TOGETHER, where=BATCH, of="sequences")


def check_room(n_bytes: int, what: str = "the weights", remedy: str = "take a smaller model") -> None:
    """Refuse what takes so many bytes where it does not fit into what BITNET_MEMORY_LIMIT leaves.

    Args:
        n_bytes: How many.
        what: What takes them.
        remedy: What else than a higher limit would help.

    Raises:
        ResourceLimitError: They do not fit; nothing was allocated.
        UsageError: The variable has no meaning.
    """
    limit = memory_limit()
    if limit is None:
        return
    import psutil  # takes longer than help texts, which state limits, may take

    left = limit - psutil.Process().memory_info().rss
    if n_bytes > left:
        raise ResourceLimitError(
            f"{what} take {n_bytes / 1e6:.0f} MB; of {limit / 1e6:.0f} MB {max(left, 0) / 1e6:.0f} MB are left",
            where=MEMORY,
            remedy=f"raise the limit, or {remedy}",
        )
