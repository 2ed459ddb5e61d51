"""A real Chromium without a window, driven by its own driver: what the tests of the pages look through."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager

CHROMIUM = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-device-scale-factor=1"
)
WIDE, NARROW = (1280, 1000), (360, 800)

#: Every text on the page whose contrast with what lies behind it is below WCAG AA.
_CONTRAST = """
const lumen = ([r, g, b]) => {
  const f = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
};
const parts = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const [r, g, b, a = 1] = parts(getComputedStyle(e).backgroundColor);
    if (a === 1) return [r, g, b];
  }
  return [255, 255, 255];
};
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || ["SCRIPT", "OPTION", "TITLE", "title"].includes(element.tagName)) continue;
  if (!element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const [a, b] = [lumen(parts(element instanceof SVGElement ? style.fill : style.color)), lumen(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const name = element.className.baseVal ?? element.className;
  const text = walker.currentNode.data.trim().slice(0, 40);
  if (ratio < (large ? 3 : 4.5)) bad.push(`${element.tagName}.${name} ${ratio.toFixed(2)}: ${text}`);
}
return [...new Set(bad)];
"""


class Browser:
    """One window. Nothing that its pages ask of the network is answered."""

    def __init__(self, profile):
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def open(self, path, size=WIDE, *, dark=False):
        """A page in a window of a size, in light or dark."""
        scheme = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # a click would miss what still moves
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": scheme})
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(path.resolve().as_uri())
        self.errors()  # of the page before

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def errors(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def press(self, *names):
        """Keys, to whatever has the focus."""
        from selenium.webdriver.common.keys import Keys

        for name in names:
            self.driver.switch_to.active_element.send_keys(getattr(Keys, name.upper()))

    def focused(self):
        """Attributes of what has the focus."""
        return self.run(
            "return Object.fromEntries([...document.activeElement.attributes].map((a) => [a.name, a.value]))"
        )

    def select(self, selector, index):
        """The option at a place, as if chosen by hand."""
        self.run(
            "const s = document.querySelector(arguments[0]);"
            "s.selectedIndex = arguments[1]; s.dispatchEvent(new Event('change'))",
            selector,
            index,
        )

    def unreadable(self):
        return self.run(_CONTRAST)

    def overflow(self):
        """How many pixels the page is wider than its window."""
        return self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def picture(self, path):
        """What is in the window, as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(os.fspath(path))

    def wait(self, condition, seconds=5.0):
        """Until a script returns something true; what it returned last."""
        ends = time.monotonic() + seconds
        while not (found := self.run(f"return {condition}")) and time.monotonic() < ends:
            time.sleep(0.02)
        return found

    def close(self):
        self.driver.quit()


def missing():
    """Why no browser can be started here, or ""."""
    if CHROMIUM is None or DRIVER is None:
        absent = "chromium" if CHROMIUM is None else "chromedriver"
        return f"{absent} is not installed (Debian: apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401  # whether it is there
    except ImportError:
        return "selenium is not installed (`nox -s browser` installs it)"
    return ""


@contextmanager
def opened(profile):
    """A browser for as long as it is needed."""
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
