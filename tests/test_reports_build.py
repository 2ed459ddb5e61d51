"""The report folder."""

from __future__ import annotations

import json

import pytest
import reports_sample as sample

import receipts
from reports import build
from reports.build import ReportError, write_report

FILES = {f"{name}.{kind}" for name in ("ladder", "operations", "drift", "throughput") for kind in ("png", "svg")}


def test_a_page_and_four_pictures_are_written(tmp_path):
    made = write_report(sample.write(tmp_path, sample.lanes()[:1]), tmp_path / "deep" / "report")
    assert {path.name for path in made.folder.iterdir()} == {"report.html", "report.md", *FILES}
    assert made.html.read_text(encoding="utf-8").startswith("<!doctype html>")
    page = made.page.read_text(encoding="utf-8")
    for name, path in made.pictures.items():
        assert path.is_file()
        assert f"({name}.png)" in page


def test_an_empty_receipt_makes_a_report_too(tmp_path):
    path = tmp_path / "inference.json"
    receipts.write(sample.empty(), path)
    assert "No lane was run" in write_report(path, tmp_path / "out").page.read_text(encoding="utf-8")


def test_a_failure_leaves_the_old_report_and_nothing_beside_it(tmp_path, monkeypatch):
    path, out = sample.write(tmp_path, sample.lanes()[:1]), tmp_path / "out"
    out.mkdir()
    (out / "report.md").write_text("the old one", encoding="utf-8")
    (out / "mine.txt").write_text("not ours", encoding="utf-8")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.markdown, "page", fails)
    with pytest.raises(ReportError, match="No space left on device"):
        write_report(path, out)
    assert {file.name: file.read_text(encoding="utf-8") for file in out.iterdir()} == {
        "report.md": "the old one",
        "mine.txt": "not ours",
    }


def test_reproductions_are_found_by_the_lane_in_their_title(tmp_path):
    receipt = sample.receipt()
    [wrong, other] = [lane.name for lane in receipt.lanes if lane.located]
    for name, content in {
        "one": json.dumps({"title": f"{wrong}: ffn_act of layer 0"}),
        "two": json.dumps({"title": "of nobody"}),
        "three": "not json",
        "four": json.dumps([1]),
        "five": json.dumps({"title": 5}),
    }.items():
        (tmp_path / "repro" / name).mkdir(parents=True)
        (tmp_path / "repro" / name / "case.json").write_text(content)
    found = build.reproductions(receipt, tmp_path / "repro", tmp_path / "build" / "crossval")
    assert found == {wrong: "../../repro/one/"}
    assert other not in found
    assert build.reproductions(receipt, tmp_path / "nothing", tmp_path) == {}


def test_a_damaged_receipt_writes_nothing(tmp_path):
    path = tmp_path / "inference.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(receipts.ReceiptError):
        write_report(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
