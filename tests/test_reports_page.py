"""Pages hold what they are given as text: nothing of it is markup, nothing of it is hidden, nothing of it runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import reports_sample as sample
from hypothesis import given
from hypothesis import strategies as st

from reports.crossval_page import crossval_page
from reports.frames import load
from reports.page import MAX_TEXT, PAGES, clean, embed, visible

RUNNING = {"script", "style", "iframe", "object", "embed", "form", "base", "img", "video", "link", "meta"}


class Reader(HTMLParser):
    """Elements with their attributes, and the content of script and style."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.inside, self.text = [], {}, []
        self._open = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs).get("id")) if tag in ("script", "style") else None

    def handle_data(self, data):
        if self._open:
            self.inside[self._open] = self.inside.get(self._open, "") + data
        else:
            self.text.append(data)

    def handle_endtag(self, tag):
        self._open = None


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return Reader(crossval_page(*load(sample.hostile(tmp_path_factory.mktemp("hostile")))))


def test_hostile_texts_make_no_element_and_no_handler(hostile):
    tags = [tag for tag, _ in hostile.elements]
    assert sorted(tag for tag in tags if tag in RUNNING) == ["link", *["meta"] * 5, "script", "script", "style"]
    for tag, attributes in hostile.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert attributes.get("href", "#").startswith(("#", "data:,"))


def test_hostile_texts_are_shown_as_they_are(hostile):
    text = "".join(hostile.text)
    assert sample.NASTY["tiny-relu2"] in text
    assert "⟨U+202E⟩computes⟨U+2066⟩ ⟨U+0007⟩" in text
    assert "{{ 7 * 7 }}" in text
    assert "\u202e" not in text


def test_hostile_texts_stay_inside_the_data(hostile):
    raw = hostile.inside["script", "data"]
    assert not re.search("[<>&\u2028\u2029]", raw)
    lanes = json.loads(raw)["lanes"]
    assert any(sample.NASTY["tiny-relu2"] in lane["name"] for lane in lanes)
    assert any(sample.NASTY["story"] in case for lane in lanes for case in lane["operations"])


def test_the_policy_allows_the_one_script_and_the_one_sheet(hostile):
    [policy] = [a["content"] for t, a in hostile.elements if a.get("http-equiv") == "Content-Security-Policy"]
    for kind, content in (("script", hostile.inside["script", None]), ("style", hostile.inside["style", None])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_nothing_is_fetched():
    for file in PAGES.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]|url\(|@import|fetch\(|XMLHttp|import\(", text.replace(" // ", "")), (
            file
        )
        assert "innerHTML" not in text
        assert "|safe" not in text.replace(" ", "")


@given(st.text(st.characters(), max_size=40))
def test_data_come_back_as_they_went_in(text):
    raw = embed({"text": text} if text.isprintable() else {"text": visible(text)})
    assert not set("<>&\u2028\u2029") & set(raw)
    assert json.loads(raw)["text"] == (text if text.isprintable() else visible(text))


@given(st.text(st.characters(), max_size=40))
def test_nothing_stays_hidden(text):
    shown = visible(text)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]", shown
    )
    assert visible(shown) == shown
    shown.encode()


def test_a_text_without_end_is_cut():
    assert len(visible("a" * 10**6)) == MAX_TEXT + 1


def test_numbers_that_json_lacks_become_null():
    assert clean({"a": [float("nan"), float("inf"), 1.5, True, None]}) == {"a": [None, None, 1.5, True, None]}
