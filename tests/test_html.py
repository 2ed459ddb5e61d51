"""Tables hold what they are given, escaped."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from bitnet import html

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


class Reader(HTMLParser):
    """Tags, attributes and texts as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.depth = [], [], [], 0
        self.feed(page)
        self.close()
        assert self.depth == 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.texts.append("")
        self.depth += 1

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.texts[-1] += data


NASTY = '<script>alert("1")</script> & \'"'


@given(st.dictionaries(TEXT, TEXT, max_size=3), TEXT)
def test_a_table(rows, caption):
    rows = rows | {NASTY: NASTY}
    page = Reader(html.table(caption, rows))
    assert set(page.tags) <= {"table", "caption", "tr", "th", "td"}
    assert [t for t in page.texts if t] == [t for t in (caption, *(x for row in rows.items() for x in row)) if t]


def test_a_grid_and_a_text():
    page = Reader(html.grid(NASTY, ["a", NASTY], [["1", "2"], [NASTY, "4"]]))
    assert [t for t in page.texts if t] == [NASTY, "a", NASTY, "1", "2", NASTY, "4"]
    page = Reader(html.text(NASTY, "one\n" + NASTY))
    assert [t for t in page.texts if t] == [NASTY, "one\n" + NASTY]
    assert set(page.tags) == {"p", "b", "pre"}
    assert not any(name in ("src", "href") for name, _ in page.attributes)
