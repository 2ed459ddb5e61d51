"""What callers in Python give, checked where it comes in: a mistake is told with what was given and what is wanted."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping, Set
from contextlib import suppress
from os import PathLike
from typing import Any, TypeVar

from bitnet.errors import UsageError

T = TypeVar("T")


def items_of(value: object, name: str, wanted: str) -> tuple[Any, ...]:
    """The items of a list, an array, or anything else that has them in an order.

    Raises:
        UsageError: It has none, or only by accident: bytes hold numbers that are no token ids.
    """
    remedy = f"give {wanted}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        remedy = "decode it to a text, or give a list of token ids"
    elif not isinstance(value, (str, Mapping, Set)):
        try:
            return tuple(value)  # type: ignore[arg-type]  # that is the question
        except TypeError:
            pass
    raise UsageError(f"{name} is {reprlib.repr(value)}, not {wanted}", remedy=remedy)


def instance_of(value: object, kind: type[T], name: str, wanted: str) -> T:
    """The value as it is. Raises `UsageError` if it is of another type."""
    if not isinstance(value, kind):
        raise UsageError(f"{name} is {reprlib.repr(value)}", remedy=f"give {wanted}")
    return value


def path_of(value: str | PathLike[str], name: str) -> str | PathLike[str]:
    """The path as it is. Raises `UsageError` if it is none."""
    if not isinstance(value, (str, PathLike)):
        raise UsageError(f"{name} is {value!r}", remedy="give a path as str or pathlib.Path")
    return value


def whole_number(value: object, name: str, wanted: str, *, least: int = 1, most: int | None = None) -> int:
    """Python's or numpy's whole number of a range, as Python's. Raises `UsageError` for anything else."""
    with suppress(TypeError):
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # if it is
        if least <= number and (most is None or number <= most):
            return number
    raise UsageError(f"{name} is {value!r}", remedy=wanted)
