"""A badge says what was verified, to the eye and to a screen reader, and takes texts as texts."""

from __future__ import annotations

import sys
from xml.etree import ElementTree as ET

import pytest

from fixtures.receipts.build import HERE
from receipts.__main__ import main
from receipts.badge import badge
from receipts.verify import verify

SVG = "{http://www.w3.org/2000/svg}"


def said(path, **options):
    picture = ET.fromstring(badge(verify(path), **options))
    [title] = picture.iter(f"{SVG}title")
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == title.text == f"{texts[0]}: {texts[1][2:]}"
    return texts[1]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("valid/minimal.json", "✓ 1 of 1 lanes passed"),
        ("valid/full.json", "✓ 2 of 3 lanes passed, 1 as declared"),
        ("valid/gate-failed.json", "✗ failed, 0 of 1 lanes passed"),
        ("invalid/digest-stale.json", "✗ invalid receipt"),
        ("invalid/not-json.json", "✗ invalid receipt"),
    ],
)
def test_it_says_what_was_verified(path, words):
    assert said(HERE / path) == words


def test_without_a_gate_it_promises_nothing():
    assert "not gated" in badge(verify(HERE / "valid" / "minimal.json", gate=False))


def test_a_label_is_text():
    nasty = "</title><script>\"&'<"
    picture = badge(verify(HERE / "valid" / "minimal.json"), label=nasty)
    assert ET.fromstring(picture).get("aria-label").startswith(nasty)
    assert "<script" not in picture


def test_text_stays_inside_its_half():
    picture = ET.fromstring(badge(verify(HERE / "valid" / "full.json")))
    left, right = picture.iter(f"{SVG}text")
    total = float(picture.get("width"))
    assert float(left.get("x")) + float(left.get("textLength")) / 2 < float(right.get("x")) < total
    assert float(right.get("x")) + float(right.get("textLength")) / 2 < total


@pytest.mark.parametrize(
    ("path", "code"), [("valid/full.json", 0), ("valid/gate-failed.json", 1), ("invalid/empty.json", 5)]
)
def test_the_command(path, code, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "badge.svg"
    monkeypatch.setattr(sys, "argv", ["receipts", "badge", str(HERE / path), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert ET.parse(out).getroot().tag == f"{SVG}svg"
    assert str(out) in capsys.readouterr().out
