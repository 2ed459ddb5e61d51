"""What a run leaves: places that cannot be written are refused first, and numbers that are none become null."""

from __future__ import annotations

import pytest

from bitnet.errors import UsageError
from crossval.write import _finite, usable


def test_a_place_is_made_and_left_empty(tmp_path):
    usable(tmp_path / "a" / "b", "--work")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_place_below_a_file_is_refused_with_the_flag_that_names_another(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written") as caught:
        usable(tmp_path / "file" / "below", "--receipt")
    assert "--receipt" in caught.value.remedy


def test_what_is_not_a_number_has_no_canonical_form():
    inf = float("inf")
    row = {"lane": "a", "ratio": float("nan"), "most": inf, "least": -inf, "error": 0.5, "layer": 3}
    assert _finite(row) == {"lane": "a", "ratio": None, "most": None, "least": None, "error": 0.5, "layer": 3}
