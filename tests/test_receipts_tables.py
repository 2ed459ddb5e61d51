"""Rows of side tables have exactly their columns; a missing measurement is null and never a number."""

from __future__ import annotations

import numpy as np
import pytest

from fixtures.receipts.sample import operations, positions, profiles, tokens
from receipts.errors import ReceiptError
from receipts.tables import rows_of

ROW = operations("a lane")[0]


@pytest.mark.parametrize("rows", [operations, positions, profiles, tokens])
def test_round_trip(rows):
    assert rows_of(rows.__name__, rows("l")) == rows("l")


def test_arrays_are_checked_element_by_element():
    row = profiles("l")[0]
    [checked] = rows_of("profiles", [row | {"errors": (np.float32(0.5), None), "ours": (np.int64(3),)}])
    assert (checked["errors"], checked["ours"]) == ([0.5, None], [3])
    for column, value, path in (("errors", [0.1, "x"], "errors[1]"), ("ours", [0.5], "ours[0]"), ("ours", 3, "ours")):
        with pytest.raises(ReceiptError) as caught:
            rows_of("profiles", [row | {column: value}])
        assert caught.value.path == f"profiles[0].{path}"


def test_numpy_scalars_become_pythons_own():
    row = ROW | {"layer": np.int32(1), "ratio": np.float32(0.5), "compared": np.int64(7)}
    [checked] = rows_of("operations", [row])
    assert [type(checked[name]) for name in ("layer", "ratio", "compared")] == [int, float, int]


def test_columns_keep_their_order():
    [checked] = rows_of("operations", [dict(reversed(ROW.items()))])
    assert list(checked) == list(ROW)


def test_null_stands_for_not_finite():
    assert rows_of("operations", [ROW | {"ratio": None, "worst_token": None}])[0]["ratio"] is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ratio", float("nan")),
        ("ratio", float("inf")),
        ("ratio", "small"),
        ("ratio", True),
        ("lane", 3),
        ("layer", None),
        ("layer", 0.5),
        ("layer", float("nan")),
        ("layer", float("inf")),
        ("layer", 2**60),
        ("compared", "many"),
        ("worst_index", 0.5),
    ],
)
def test_each_misfit_is_refused_with_its_place(column, value):
    with pytest.raises(ReceiptError) as caught:
        rows_of("operations", [ROW, ROW | {column: value}])
    assert caught.value.path == f"operations[1].{column}"


@pytest.mark.parametrize("row", [{}, ROW | {"mood": 1}, [], 3])
def test_missing_and_unknown_columns_are_refused(row):
    with pytest.raises(ReceiptError) as caught:
        rows_of("operations", [row])
    assert caught.value.path == "operations[0]"


def test_unknown_table_is_refused():
    with pytest.raises(ReceiptError, match="unknown table 'moods'"):
        rows_of("moods", [])
