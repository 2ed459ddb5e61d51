"""A history: oldest first, series by machine, changes with their direction; the page and its pictures."""

from __future__ import annotations

import sys

import history_sample
import numpy as np
import pandas as pd
import pytest
import reports_sample as sample
from test_reports_page import Reader

import reports.__main__
from reports.build import ReportError
from reports.figures.trend import trend
from reports.history import CHANGE_COLUMNS, RECEIPT_COLUMNS, VALUE_COLUMNS, history, points, read
from reports.history_page import history_page, panels, write_history


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return read([history_sample.write(tmp_path_factory.mktemp("history"))])


def test_receipts_are_sorted_and_the_unreadable_lead(found):
    assert tuple(found.receipts.columns) == RECEIPT_COLUMNS
    assert [bool(problem) for problem in found.receipts["problem"]] == [True] * 2 + [False] * history_sample.N
    assert found.receipts["timestamp"].dropna().is_monotonic_increasing
    assert tuple(found.values.columns) == VALUE_COLUMNS
    assert found.values["timestamp"].is_monotonic_increasing
    assert set(found.values["kind"]) == {"drift", "speed", "memory"}


def test_the_order_of_places_does_not_matter(tmp_path):
    lines = list(history_sample.lines(12))
    (tmp_path / "a.jsonl").write_text("\n".join(reversed(lines)))
    again = read([tmp_path / "a.jsonl"])
    assert again.receipts["timestamp"].is_monotonic_increasing
    assert len(again.values) == 12 * len(again.values[again.values["receipt"] == 0])
    commits = again.values.groupby("receipt")["commit"].first()
    assert list(commits.astype(str)) == [f"{i // 2:04x}00000000" for i in range(12)]


def test_the_known_changes_are_marked_with_their_direction(found):
    assert tuple(found.changes.columns) == CHANGE_COLUMNS
    speed = found.changes[found.changes["unit"] == "tokens/s"]
    memory = found.changes[found.changes["kind"] == "memory"]
    assert len(speed) == len(memory) == 6  # three models, prefill and decode
    assert found.changes["worse"].all()
    assert set(found.changes["kind"]) == {"speed", "memory"}
    when = pd.Timestamp("2026-01-01") + pd.Timedelta(hours=6 * history_sample.CHANGED)
    assert (speed["timestamp"] == when).all()
    assert np.allclose(memory["factor"], 1.3)


def test_a_receipt_without_a_time_is_not_read(tmp_path):
    [line] = history_sample.lines(1)
    (tmp_path / "a.jsonl").write_text(line.replace("2026-01-01T00:00:00Z", "yesterday"))
    found = read([tmp_path / "a.jsonl"])
    assert list(found.receipts["problem"]) == ["its timestamp is no time"]
    assert found.values.empty


def test_points_sum_up_without_losing_any():
    values = pd.DataFrame(
        {"timestamp": pd.date_range("2026-01-01", periods=10), "commit": list("aabbccddee"), "value": np.arange(10.0)}
    )
    made = points(values, most=4)
    assert list(made["value"]) == [1, 4, 7, 9]
    assert (list(made["low"]), list(made["high"])) == ([0, 3, 6, 9], [2, 5, 8, 9])
    assert list(made["n"]) == [3, 3, 3, 1]
    assert list(made["commit"]) == ["a", "b", "d", "e"]


def test_the_page_says_it_in_words(found):
    page = Reader(history_page(found))
    text = " ".join("".join(page.text).split())
    assert "100 receipts" in text
    assert "for the worse" in text
    assert "2 files could not be read" in text
    assert "▼ worse" in text
    assert page.inside["script", "data"].count('"points"') == len(panels(found))


def test_a_page_and_pictures_are_written(found, tmp_path):
    page, pictures = write_history(found, tmp_path / "deep" / "out")
    assert page.name == "history.html"
    assert {picture.name for picture in pictures} == {
        f"{k}.{f}" for k in ("drift", "speed", "memory") for f in ("png", "svg")
    }
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == {page.name, *(p.name for p in pictures)}
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError):
        write_history(found, tmp_path / "file")


def test_nothing_makes_a_page_and_a_picture_too():
    nothing = history([])
    assert "0 receipts" in history_page(nothing)
    assert trend("drift", panels(nothing, "drift")).axes


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_receipt_has_a_trend(tmp_path, n):
    (tmp_path / "a.jsonl").write_text("\n".join(history_sample.lines(n)))
    found = read([tmp_path / "a.jsonl"])
    assert len(trend("speed", panels(found, "speed")).axes) > 1
    assert f"{n} receipt" in history_page(found)


def test_hostile_texts_are_text_here_too(tmp_path):
    [line] = history_sample.lines(1)
    for word, nasty in sample.NASTY.items():
        line = line.replace(word, nasty.replace('"', "'"))
    (tmp_path / "a.jsonl").write_text(line)
    page = Reader(history_page(read([tmp_path / "a.jsonl"])))
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert not [tag for tag, attributes in page.elements if any(name.startswith("on") for name in attributes)]


def test_the_command(tmp_path, monkeypatch, capsys):
    path = history_sample.write(tmp_path, 12)
    monkeypatch.setattr(
        sys, "argv", ["reports", "history", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]
    )
    with pytest.raises(SystemExit) as ended:
        reports.__main__.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "12 receipts, 2 not read" in out
    assert out.splitlines()[-1] == f"history: {tmp_path / 'out' / 'history.html'}"
    (tmp_path / "none.jsonl").write_text("{}")
    for place, code in ((tmp_path / "none.jsonl", 5), (tmp_path / "absent", 2)):
        monkeypatch.setattr(sys, "argv", ["reports", "history", str(place), "--out", str(tmp_path / "o")])
        with pytest.raises(SystemExit) as ended:
            reports.__main__.main()
        assert ended.value.code == code
