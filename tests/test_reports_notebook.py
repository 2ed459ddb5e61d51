"""In a notebook: frames, pictures that show themselves, and texts that stay texts."""

from __future__ import annotations

from html.parser import HTMLParser

import history_sample
import pytest
import reports_sample as sample

from reports import notebook

PNG = b"\x89PNG\r\n"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return notebook.run(sample.write(tmp_path_factory.mktemp("notebook"), sample.lanes()[3:8]))


def test_a_run_shows_its_verdict(run):
    shown = Tags(run._repr_html_())
    assert "Passed: 4 of 5 required lanes passed" in shown.text
    assert "tiny-silu · llama.cpp F32" in shown.text
    assert "replaying with silu explains 99.9%" in shown.text
    assert sum(tag == "td" for tag, _ in shown.tags) == 5 * 10


def test_a_run_has_frames_and_figures(run, tmp_path):
    assert len(run.tables.operations)
    assert run.figure("ladder")._repr_png_().startswith(PNG)
    with pytest.raises(KeyError, match="ladder, operations, drift, throughput"):
        run.figure("mood")
    assert run.page(tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_hostile_texts_are_text(tmp_path):
    shown = Tags(notebook.run(sample.hostile(tmp_path))._repr_html_())
    assert {tag for tag, _ in shown.tags} == {"p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]
    assert sample.NASTY["tiny-relu2"] in shown.text


def test_a_history_shows_what_changed(tmp_path):
    trends = notebook.history(history_sample.write(tmp_path))
    shown = Tags(trends._repr_html_())
    assert "100 receipts, 2 not read" in shown.text
    assert "▼ worse" in shown.text
    assert len(trends.values) > len(trends.receipts) > len(trends.changes) > 0
    assert trends.figure("memory")._repr_png_().startswith(PNG)
    with pytest.raises(KeyError, match="drift, speed, memory"):
        trends.figure("mood")
