"""`python -m reports`."""

from __future__ import annotations

import sys

import pytest
import reports_sample as sample

from reports.__main__ import main


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["reports", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_build_writes_the_folder(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "build", sample.write(tmp_path, sample.lanes()[:1]), "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "report.md").is_file()
    out = capsys.readouterr().out
    assert "report.md and 4 pictures" in out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"


def test_table_and_summary_print(tmp_path, monkeypatch, capsysbinary):
    path = sample.write(tmp_path)
    assert run(monkeypatch, "table", path) == 0
    assert b"Not passed: 9 of 12 required lanes passed" in capsysbinary.readouterr().out
    assert run(monkeypatch, "summary", path) == 0
    assert capsysbinary.readouterr().out.startswith(b"## Cross-validation")


def test_wrong_usage_is_2(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "build", "--no-such-option") == 2
    assert run(monkeypatch, "build", tmp_path / "absent.json") == 2
    assert "hint" in capsys.readouterr().err
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run(monkeypatch, "build", sample.write(tmp_path), "--out", tmp_path / "file") == 2
    assert "hint: name a folder" in capsys.readouterr().err


def test_a_bad_receipt_is_5_and_one_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.json").write_text("[]", encoding="utf-8")
    assert run(monkeypatch, "table", tmp_path / "bad.json") == 5
    error = capsys.readouterr().err
    assert "a receipt is a JSON object" in error
    assert "Traceback" not in error
