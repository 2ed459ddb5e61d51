"""Tables of a receipt."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import reports_sample as sample

import receipts
from receipts.lanes import RUNGS
from reports.frames import LANE_COLUMNS, OPERATION_COLUMNS, POSITION_COLUMNS, frames, load, tap_order, worst


def test_every_lane_has_all_its_rungs_in_order():
    tables = frames(sample.receipt())
    assert list(tables.lanes["lane"]) == [lane.name for lane in sample.lanes()]
    for _, rungs in tables.rungs.groupby("lane", sort=False):
        assert list(rungs["rung"]) == list(RUNGS)


def test_what_was_not_measured_is_nan():
    rungs = frames(sample.receipt()).rungs
    row = rungs[(rungs["lane"] == "tiny-relu2 · transformers") & (rungs["rung"] == "logits")].iloc[0]
    assert math.isnan(row["measured"])
    assert row["why"].startswith("transformers is not installed")


def test_side_files_are_read_with_the_receipt(tmp_path):
    receipt, tables = load(sample.write(tmp_path))
    assert len(tables.operations) == len(sample.operation_rows())
    assert tuple(tables.operations.columns) == OPERATION_COLUMNS
    assert [file.table for file in receipt.side_files] == ["operations", "positions", "profiles", "tokens"]
    assert len(tables.profiles) == len(tables.operations)
    assert len(tables.tokens) == len(sample.token_rows())


def test_a_near_tie_marks_exactly_its_position(tmp_path):
    positions = load(sample.write(tmp_path))[1].positions
    ties = positions[positions["near_tie"]]
    assert sorted(zip(ties["lane"], ties["case"], ties["position"], strict=True)) == [
        ("tiny-silu · llama.cpp TQ2_0", "story", 9),
        ("tiny-silu · llama.cpp TQ2_0", "story", 16),
    ]


def test_a_tampered_side_file_is_refused(tmp_path):
    path = sample.write(tmp_path)
    side_file = path.parent / receipts.read(path).side_files[0].file
    side_file.write_bytes(side_file.read_bytes().replace(b'"layer":0', b'"layer":1', 1))
    with pytest.raises(receipts.ReceiptError, match="sha256"):
        load(path)


def test_rates_of_runs_are_derived_from_raw_times():
    runs = frames(sample.receipt()).performance
    decode = runs[(runs["what"] == "decode") & (runs["engine"] == "bitnet") & (runs["model"] == "tiny-silu")]
    assert (decode["tokens"] / decode["seconds"]).tolist() == decode["tokens_per_second"].tolist()
    assert decode["tokens_per_second"].median() == pytest.approx(decode["median"].iloc[0], rel=1e-12)  # one rounding


def test_an_empty_receipt_has_tables_without_rows():
    tables = frames(sample.empty())
    assert tables.rungs.empty
    assert tuple(tables.lanes.columns) == LANE_COLUMNS
    assert tuple(tables.positions.columns) == POSITION_COLUMNS
    assert worst(tables.rungs) is None


def test_the_worst_is_nearest_to_its_limit_and_an_exact_limit_is_passed_by_any_difference():
    rows = pd.DataFrame({"rung": ["a", "b", "c"], "measured": [0.0, 5.0, 3e-7], "limit": [0.0, 100.0, 1e-6]})
    assert worst(rows)["rung"] == "c"
    rows.loc[0, "measured"] = 1.0
    assert worst(rows)["rung"] == "a"


def test_taps_keep_graph_order_though_each_lane_lacks_some():
    rows = [("full", tap) for tap in ("embd", "q", "k", "v", "l_out")]
    rows += [("other", tap) for tap in ("q", "q_rope", "l_out")]
    assert tap_order(pd.DataFrame(rows, columns=["lane", "tap"])) == ["embd", "q", "q_rope", "k", "v", "l_out"]
    assert tap_order(pd.DataFrame(columns=["lane", "tap"])) == []
