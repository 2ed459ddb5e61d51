"""Where each string of an array begins, found many at a time.

A string is its length in eight bytes, then its bytes, so the place of one follows from all before it, and a vocabulary
has some hundred thousand. Nearly all are shorter than 256 bytes: their lengths are a byte and seven zeros, which text
does not hold. Such places are searched for all at once; a run of them in which each begins where the one before
ends is what reading one by one would have given. What is not so (long or empty strings, zeros in strings) is read one
by one. A file cannot make this wrong, only slow, and that within the limit of time.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_U64 = struct.Struct("<Q")
_WINDOW = 1 << 18  # bytes searched at once
_LENGTH = 8  # bytes before each string
_ONE_BY_ONE = 256  # strings read so after a run that was too short to pay for itself
_PAYS = 32  # strings of a run that cost as much one by one as the search for it


def string_starts(
    buffer: mmap.mmap | bytes, begin: int, n: int, limit: int, tick: Callable[[], None]
) -> tuple[NDArray[np.uint64], int, int]:
    """The first byte of each string of an array.

    Args:
        buffer: The file.
        begin: First byte of the first length.
        n: Strings; the caller has compared it with the bytes that are left.
        limit: Bytes of the buffer that may be read.
        tick: Called now and then; raises when time is up.

    Returns:
        Offsets of the first bytes in the file, room for one more, [n + 1]; how many of them are right; and where
        the last of those ends, which is past `limit` where it does not fit. Fewer than `n` are right where one does
        not fit, or where the length of the next does not.
    """
    starts = np.empty(n + 1, np.uint64)
    done, position = 0, begin
    while done < n and position + _LENGTH <= limit:
        tick()
        size = min(_WINDOW, limit - position)
        window = np.frombuffer(buffer, np.uint8, size, position)
        found, position = _window(window, starts[done:n], buffer, position)
        done += found
    return starts, done, position


def _window(
    window: NDArray[np.uint8], out: NDArray[np.uint64], buffer: mmap.mmap | bytes, base: int
) -> tuple[int, int]:
    """Starts of the strings that begin in the window, which is at `base`: how many, and where the last one ends."""
    at = _short_lengths(window)
    next_at = at + _LENGTH + window[at]
    breaks = np.flatnonzero(next_at[:-1] != at[1:])  # the run that holds i ends at the first break from i on
    done, position, n, end = 0, 0, len(out), len(window)
    unpack = _U64.unpack_from
    while done < n and position + _LENGTH <= end:
        first = int(at.searchsorted(position))
        last = first
        if first < len(at) and at[first] == position:
            stop = int(breaks.searchsorted(first))
            last = int(breaks[stop]) + 1 if stop < len(breaks) else len(at)
            last = min(last, first + n - done)
            out[done : done + last - first] = at[first:last] + (base + _LENGTH)
            done += last - first
            position = int(next_at[last - 1])
        if last - first >= _PAYS:
            continue
        for _ in range(min(_ONE_BY_ONE, n - done)):
            if position + _LENGTH > end:
                break
            out[done] = base + position + _LENGTH
            done += 1
            position += _LENGTH + unpack(buffer, base + position)[0]
    return done, base + position


def _short_lengths(window: NDArray[np.uint8]) -> NDArray[Any]:
    """Every place followed by seven zeros, [n] int64; none where there are too many for all to be lengths of text."""
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    short = (four[:-3] & four[3:])[1:]
    most = len(window) // (_LENGTH + 1) + 1
    return np.flatnonzero(short) if np.count_nonzero(short) <= most else np.empty(0, np.int64)
