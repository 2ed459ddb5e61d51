"""What callers give is taken in every sensible form, and refused with what was given and what is wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitnet.arguments import instance_of, items_of, path_of, whole_number
from bitnet.errors import UsageError


@pytest.mark.parametrize("value", [[1, 2], (1, 2), range(1, 3), np.array([1, 2]), iter([1, 2]), (i for i in (1, 2))])
def test_items_in_every_form(value):
    assert items_of(value, "ids", "token ids") == (1, 2)


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, np.array(3), {1, 2}, {1: 2}, "12", b"12", bytearray(2), memoryview(b"1")]
)
def test_what_has_no_items_or_only_by_accident(value):
    with pytest.raises(UsageError, match=r"ids is .*, not token ids") as caught:
        items_of(value, "ids", "token ids")
    bytelike = isinstance(value, (bytes, bytearray, memoryview))
    assert caught.value.remedy == ("decode it to a text, or give a list of token ids" if bytelike else "give token ids")


def test_a_long_value_is_shown_in_part():
    with pytest.raises(UsageError) as caught:
        items_of(b"x" * 10**6, "ids", "token ids")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value):
    assert type(whole_number(value, "n", "1 or more")) is int


@pytest.mark.parametrize("value", [1.0, "3", True, None, [3], 0, -1, 10, 10**400, np.int64(10)])
def test_no_whole_numbers(value):
    with pytest.raises(UsageError, match=r"n is .*\n  hint: 1 or more"):
        whole_number(value, "n", "1 or more", most=9)


def test_types_and_paths():
    assert instance_of(3, int, "n", "a number") == 3
    with pytest.raises(UsageError, match=r"n is '3'\n  hint: give a number"):
        instance_of("3", int, "n", "a number")
    for path in ("a", Path("a")):
        assert path_of(path, "path") is path
    for path in (b"a", 5, None):
        with pytest.raises(UsageError, match=r"path is .*\n  hint: give a path as str or pathlib.Path"):
            path_of(path, "path")
