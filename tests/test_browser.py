"""The pages in a real Chromium: they run without an error, by mouse and by keyboard, wide and narrow, light and dark,
and nothing that a receipt holds is ever run.
"""

from __future__ import annotations

import os
from pathlib import Path

import browser as chromium
import history_sample
import pytest
import reports_sample as sample

from reports.crossval_page import crossval_page
from reports.frames import load
from reports.history import read
from reports.history_page import history_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or "there is a browser"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium leaves sockets to the collector
]

#: Where pictures of the windows go; looked at by people.
PICTURES = Path(os.environ.get("BROWSER_PICTURES", "build/browser"))
WRONG = "tiny-relu2 · llama.cpp TQ2_0 (as bitnet)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.opened(tmp_path_factory.mktemp("profile")) as window:
        yield window


def written(folder, write):
    page = folder / "report.html"
    page.write_text(crossval_page(*load(write(folder))), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), sample.write)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return written(tmp_path_factory.mktemp("hostile"), sample.hostile)


@pytest.mark.parametrize("size", [chromium.WIDE, chromium.NARROW])
@pytest.mark.parametrize("dark", [False, True])
def test_no_error_no_overflow_and_every_text_can_be_read(browser, report, size, dark):
    browser.open(report, size, dark=dark)
    for button in browser.all("details > summary"):
        browser.run("arguments[0].parentElement.open = true", button)
    browser.run("document.querySelectorAll('.why').forEach((row) => (row.hidden = false))")
    assert browser.errors() == []
    assert browser.overflow() == 0
    assert browser.unreadable() == []
    browser.run("document.querySelector('#inside').scrollIntoView({behavior: 'instant'})")
    browser.picture(PICTURES / f"crossval-{size[0]}-{'dark' if dark else 'light'}.png")


def test_it_opens_with_the_located_operation(browser, report):
    browser.open(report)
    assert WRONG in browser.run("const s = document.querySelector('#lane'); return s.options[s.selectedIndex].text")
    assert browser.text("#cell h4") == "ffn_act of layer 0"
    assert "times its limit" in browser.text("#cell .verdict-line")
    assert browser.one("#cell svg").get_attribute("aria-label").startswith("Histogram")
    assert browser.text("#positions [aria-selected=true]").startswith("+")


def test_a_click_leads_from_the_operation_to_its_positions(browser, report):
    browser.open(report)
    browser.one("#map [data-cell='q 2']").click()
    assert browser.text("#cell h4") == "q of layer 2"
    assert browser.run("return document.querySelector('#positions thead .chosen').textContent") == "2"
    assert len(browser.all("#positions tbody tr")) == 5
    browser.one("#positions [data-cell='1 2']").click()
    assert "position 1, q of layer 2" in browser.focused()["aria-label"]
    assert browser.errors() == []


def test_the_map_is_walked_by_keys(browser, report):
    browser.open(report)
    browser.run("document.querySelector('#map [tabindex=\"0\"]').focus()")
    assert browser.focused()["data-cell"] == "ffn_act 0"
    browser.press("arrow_right")
    assert browser.focused()["data-cell"] == "ffn_act 1"
    assert browser.text("#cell h4") == "ffn_act of layer 1"
    browser.press("arrow_up")
    assert browser.focused()["data-cell"] == "ffn_up 1"
    browser.press("home", "arrow_left", "arrow_down", "end")
    assert browser.focused()["data-cell"] == "ffn_act 3"
    browser.press("enter")
    assert browser.focused()["aria-label"].startswith("position 3, ffn_act of layer 3")
    browser.press("arrow_down", "arrow_up", "arrow_up")
    assert browser.focused()["data-cell"] == "2 3"
    browser.press("escape")
    assert browser.focused()["data-cell"] == "ffn_act 3"
    browser.press("escape")
    assert browser.focused()["id"] == "lane"
    assert len(browser.all("#map [tabindex='0']")) == len(browser.all("#positions [tabindex='0']")) == 1


def test_the_ladder_opens_and_closes_by_keys(browser, report):
    browser.open(report)
    browser.run("document.querySelector('#ladder-grid [tabindex=\"0\"]').focus()")
    browser.press("arrow_down", "arrow_right", "enter")
    cell = browser.focused()
    assert (cell["data-lane"], cell["data-rung"], cell["aria-expanded"]) == ("1", "1", "true")
    assert browser.one("#why-1").is_displayed()
    assert browser.text("#why-1 [aria-current] .rung-name") == "tokens"
    browser.press("arrow_right", "space")
    assert browser.text("#why-1 [aria-current] .rung-name") == "weights"
    browser.press("tab")
    assert browser.focused()["data-look"] == sample.lanes()[1].name
    browser.press("escape")
    assert not browser.one("#why-1").is_displayed()
    assert browser.focused()["data-rung"] == "2"


def test_a_finding_leads_into_its_lane(browser, report):
    browser.open(report)
    name = "my own 2B-4T model with a name that does not end · llama.cpp TQ1_0"
    [button] = [one for one in browser.all(".finding [data-look]") if one.get_attribute("data-look") == name]
    button.click()
    assert browser.focused()["id"] == "lane"
    assert browser.text("#cell h4") == "k_rope of layer 2"


def test_every_lane_and_prompt_can_be_shown(browser, report):
    browser.open(report)
    for i in range(len(sample.lanes())):
        browser.select("#lane", i)
        for j in range(browser.run("return document.querySelector('#case').length")):
            browser.select("#case", j)
        assert browser.text("#map-place")
    assert browser.errors() == []


def test_the_chart_follows_the_width(browser, report):
    browser.open(report)
    browser.select("#lane", 0)
    wide = browser.run("return document.querySelector('#drift-place svg').clientWidth")
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.wait("document.querySelector('#drift-place svg').clientWidth < 400")
    assert wide > 900
    browser.run("document.querySelector('#drift-details').open = true")
    assert browser.wait("document.querySelectorAll('#drift-table tbody tr').length > 50")
    assert browser.overflow() == 0


def test_names_are_there_for_a_screen_reader(browser, report):
    browser.open(report)
    tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]}
    assert ("grid", "The ladder") in named
    assert ("grid", "Operations, each on the reference’s own inputs") in named
    assert any(role == "gridcell" and name.startswith("ffn_act of layer 0: fails, ") for role, name in named)
    assert any(role == "meter" and "99.9%" in name for role, name in named)
    unnamed = [
        role for role, name in named if role in ("button", "combobox", "img", "image", "grid", "region") and not name
    ]
    assert unnamed == []


@pytest.mark.parametrize("size", [chromium.WIDE, chromium.NARROW])
def test_hostile_texts_are_inert(browser, hostile, size):
    browser.open(hostile, size)
    for i in range(len(sample.lanes())):
        browser.select("#lane", i)
    for element in browser.all("#map [data-cell]")[:60:7]:
        browser.run(
            "arguments[0].dispatchEvent(new MouseEvent('mouseover', {bubbles: true})); arguments[0].click()", element
        )
    assert browser.run("return window.hit") is None
    assert browser.errors() == []
    assert browser.overflow() == 0
    assert browser.all("img, iframe") == []
    assert sample.NASTY["tiny-relu2"] in browser.text("#findings")
    assert sample.NASTY[" word4"] in browser.text("#text-place")


def test_the_policy_stops_what_would_slip_through(browser, report):
    browser.open(report)
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')")
    assert browser.wait("window.hit", 0.3) is None
    assert any("Content Security Policy" in error for error in browser.errors())


def test_paper_shows_the_verdict_and_no_controls(browser, report):
    browser.open(report)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.one("h1").is_displayed()
    assert not browser.one("#lane").is_displayed()
    assert not browser.one("nav").is_displayed()
    assert browser.overflow() == 0


# ---- history -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    page = folder / "history.html"
    page.write_text(history_page(read([history_sample.write(folder)])), encoding="utf-8")
    return page


@pytest.mark.parametrize("size", [chromium.WIDE, chromium.NARROW])
@pytest.mark.parametrize("dark", [False, True])
def test_the_history_has_no_error_no_overflow_and_can_be_read(browser, history, size, dark):
    browser.open(history, size, dark=dark)
    assert browser.errors() == []
    assert browser.overflow() == 0
    assert browser.unreadable() == []
    browser.picture(PICTURES / f"history-{size[0]}-{'dark' if dark else 'light'}.png")


def test_the_history_opens_with_what_changed(browser, history):
    browser.open(history)
    assert "worse" in browser.text("#about")
    assert len(browser.all("#chart line.change")) == 1
    assert len(browser.all("#chart line.median")) == 2
    assert len(browser.all("#chart circle")) == history_sample.N


def test_the_history_is_walked_by_keys_and_by_mouse(browser, history):
    browser.open(history)
    browser.run("document.querySelector('#chart').focus()")
    assert browser.focused()["aria-valuenow"] == str(history_sample.N - 1)
    browser.press("home", "arrow_right", "arrow_right")
    assert browser.focused()["aria-valuenow"] == "2"
    assert browser.focused()["aria-valuetext"] == browser.text("#readout")
    assert browser.text("#readout").startswith("2026-01-01 12:00, commit 000100000000")
    browser.press("end", "arrow_right")
    assert browser.focused()["aria-valuenow"] == str(history_sample.N - 1)
    browser.one("#chart").click()
    assert abs(int(browser.focused()["aria-valuenow"]) - history_sample.N // 2) <= 3
    assert browser.errors() == []


def test_a_change_leads_to_its_series(browser, history):
    browser.open(history)
    [link, *_] = [one for one in browser.all("[data-series]") if "prefill" in one.get_attribute("data-series")]
    name = link.get_attribute("data-series")
    link.click()
    assert name in browser.run("const s = document.querySelector('#series'); return s.options[s.selectedIndex].text")
    for kind in range(3):
        browser.select("#kind", kind)
        for series in range(browser.run("return document.querySelector('#series').length")):
            browser.select("#series", series)
            assert browser.all("#chart circle")
    assert browser.errors() == []
