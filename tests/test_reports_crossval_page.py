"""The page of one run says in words what the receipt says."""

from __future__ import annotations

import json
import re

import pytest
import reports_sample as sample
from test_reports_page import Reader

from reports.crossval_page import crossval_page, ranges
from reports.frames import frames, load
from reports.sentences import SYMBOLS


def texts(page):
    return re.sub(r"\s+", " ", " ".join(Reader(page).text))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return crossval_page(
        *load(sample.write(tmp_path_factory.mktemp("page"))),
        {"tiny-relu2 · llama.cpp TQ2_0 (as bitnet)": "../repro/silu/"},
    )


@pytest.fixture(scope="module")
def said(page):
    return texts(page)


@pytest.mark.parametrize(
    "words",
    [
        "Not passed",
        "The gate refuses:",
        "The reference is wrong: computes SiLU where the file declares relu²",
        "operations (fail): ffn_act of layer 0 differs",
        "blk.0 ffn_act",
        "position 3 (token “ word43”), column 411",
        "activation=silu",
        "99.9%",
        "rms_eps=1e-6",
        "3.1%",
        "the odd one is llama.cpp",
        "../repro/silu/",
        'bitnet validate minimise --only "my own 2B-4T model',
        "llama.cpp-silu, proven",
        "unexplained: no known defect reproduces it",
        "the declaration is stale",
        "The engine computes what the file declares, operation by operation.",
        "Speed on another machine.",
        "nox -s crossval",
        "Determinism, threads",
    ],
)
def test_it_says(said, words):
    assert words in said


def test_every_outcome_has_a_word_and_a_symbol(page):
    cells = [a for t, a in Reader(page).elements if "rung" in a.get("class", "").split()]
    assert len(cells) == 8 * len(sample.lanes())
    rungs = [rung for lane in sample.lanes() for rung in lane.rungs]
    for rung, cell in zip(rungs, cells, strict=True):
        assert cell["aria-label"].startswith(f"{rung.name}: {rung.outcome}")
    for symbol in SYMBOLS.values():
        assert symbol in texts(page)


def test_the_data_are_the_tables(page):
    lanes = json.loads(Reader(page).inside["script", "data"])["lanes"]
    rows = sample.operation_rows()
    assert sum(len(found) for lane in lanes for found in lane["operations"].values()) == len(rows)
    wrong = next(lane for lane in lanes if lane["located"])
    assert wrong["located"] == ["ffn_act", 0]
    [cell] = [row for row in wrong["operations"]["story"] if row[:2] == ["ffn_act", 0]]
    assert cell[4] == "fail"
    assert len(cell[9]) == 5
    assert sum(len(found) for lane in lanes for found in lane["tokens"].values()) == len(sample.token_rows())


def test_near_ties_are_listed_with_their_tokens(said):
    assert "tiny-silu · llama.cpp TQ2_0 story 9 0.004 0.011" in said.replace("4e-3", "0.004")


def test_a_receipt_without_tables_or_lanes_makes_a_page(tmp_path):
    bare = crossval_page(sample.receipt(), frames(sample.receipt()))
    assert "The reference is wrong" in texts(bare)
    assert "No lane was run" in texts(crossval_page(sample.empty(), frames(sample.empty())))


@pytest.mark.parametrize(
    ("positions", "written"),
    [((), ""), ((3,), "3"), ((0, 1), "0, 1"), ((0, 1, 2, 3), "0–3"), ((9, 0, 1, 2, 7, 7), "0–2, 7, 9")],
)
def test_ranges(positions, written):
    assert ranges(positions) == written
