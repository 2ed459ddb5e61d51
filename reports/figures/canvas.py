"""The sheet every picture is drawn on: inches for coordinates, one set of colours, text that is measured.

A picture is laid out by hand in inches, because automatic layouts move things when a name is long. Text is
measured before it is placed, so that it is wrapped or shortened instead of running over its neighbour.
Nothing global is left changed: drawing happens under matplotlib's own defaults, whatever the user's settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

#: Width of every picture. 1800 pixels at `DPI`; shown at 900 in a README, a 9 pt letter is 11 pixels tall.
WIDTH = 10.0
DPI = 180
BODY, SMALL, TITLE = 10.0, 9.0, 13.0
INK, FAINT, RULE = "#1c1c1c", "#5a5a5a", "#d4d4d4"

#: Okabe and Ito's palette (told apart with any colour vision); the symbol says the same again.
OUTCOME_COLOUR = {
    "pass": "#009e73",
    "fail": "#d55e00",
    "error": "#4b2e5e",
    "unsupported": "#e4e4e4",
    "inconclusive": "#f0e442",
}
OUTCOME_INK = {"pass": "white", "fail": "white", "error": "white", "unsupported": INK, "inconclusive": INK}
BLUE, ORANGE, SKY, RED = "#0072b2", "#e69f00", "#56b4e9", "#c1121f"

_MOST_LETTERS = 300  # more than fit on any line, so that an absurdly long name stays quick
_EM = 100.0
_FAMILY = "DejaVu Sans"  # shipped with matplotlib, so a picture is the same everywhere
_SETTINGS: dict[Any, Any] = {
    "font.family": _FAMILY,
    "font.size": BODY,
    "svg.hashsalt": "reports",
    "axes.linewidth": 0.8,
}

P = ParamSpec("P")


@contextmanager
def settings() -> Iterator[None]:
    """Matplotlib's defaults and ours, and nothing of the user's; put back afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def picture(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function that draws, so that it runs under `settings`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with settings():
            return draw(*args, **kwargs)

    return drawn


def sheet(height: float, title: str, subtitle: str) -> tuple[Figure, Axes]:
    """An empty figure with a title and one explaining line.

    Args:
        height: Inches.
        title: What one sees.
        subtitle: How to read it; wrapped to the width.

    Returns:
        The figure and axes over all of it, whose coordinates are inches from the lower left corner.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    page = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    page.set(xlim=(0, WIDTH), ylim=(0, height))
    page.set_axis_off()
    write(page, 0.2, height - 0.2, title, size=TITLE, weight="bold", va="top")
    lines = wrap(subtitle, WIDTH - 0.4, SMALL, 2)
    write(page, 0.2, height - 0.5, "\n".join(lines), size=SMALL, colour=FAINT, va="top")
    return figure, page


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes placed in inches."""
    total = figure.get_figheight()
    return figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))


def empty(title: str, subtitle: str, why: str) -> Figure:
    """A picture that says that there is nothing to show, and why."""
    figure, page = sheet(2.2, title, subtitle)
    write(page, WIDTH / 2, 0.75, "nothing compared", size=TITLE, colour=FAINT, ha="center", va="bottom")
    write(page, WIDTH / 2, 0.6, "\n".join(wrap(why, WIDTH - 1.0, BODY, 2)), colour=FAINT, ha="center", va="top")
    return figure


def write(axes: Axes, x: float, y: float, text: str, *, size: float = BODY, colour: str = INK, **kwargs: Any) -> None:
    """Text at a point, left-aligned and centred vertically unless told otherwise."""
    kwargs.setdefault("va", "center")
    axes.text(x, y, plain(text), fontsize=size, color=colour, parse_math=False, **kwargs)


def width_of(text: str, size: float = BODY, weight: str = "normal") -> float:
    """Width in inches that a line of text takes, kerning left out."""
    return sum(_advance(letter, weight) for letter in plain(text)) * size / 72


@functools.cache
def _advance(letter: str, weight: str) -> float:
    """Width of a letter relative to the size of its font."""
    font = get_font(findfont(FontProperties(family=_FAMILY, weight=weight)))
    font.set_size(_EM, 72)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / _EM  # 16.16 fixed point


def shorten(text: str, width: float, size: float = BODY, weight: str = "normal", *, middle: bool = False) -> str:
    """The text, or as much of it as fits and an ellipsis: at its end, or in the middle of a name."""
    if len(text) <= _MOST_LETTERS and width_of(text, size, weight) <= width:
        return text
    for keep in range(min(len(text), _MOST_LETTERS), 0, -1):
        tail = text[len(text) - keep // 2 :].lstrip() if middle else ""
        shorter = text[: keep - len(tail)].rstrip() + "…" + tail
        if width_of(shorter, size, weight) <= width:
            return shorter
    return "…"


def wrap(text: str, width: float, size: float = BODY, lines: int = 2, weight: str = "normal") -> list[str]:
    """At most `lines` lines that fit the width; what does not fit ends in an ellipsis."""
    done: list[str] = []
    words = text[: _MOST_LETTERS * lines].split()
    while words and len(done) < lines - 1:
        take = len(words)
        while take > 1 and width_of(" ".join(words[:take]), size, weight) > width:
            take -= 1
        done.append(shorten(" ".join(words[:take]), width, size, weight))
        words = words[take:]
    if words:
        done.append(shorten(" ".join(words), width, size, weight))
    return done or [""]


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=_FAMILY))).get_charmap())


def plain(text: str) -> str:
    """The text with control characters, and letters that the font does not have, replaced.

    A missing glyph would be a warning and an empty box; U+FFFD at least says that something stood there.
    """
    return "".join(c if c == "\n" or (c.isprintable() and ord(c) in _glyphs()) else "\ufffd" for c in text)


def columns_of(names: Sequence[str]) -> int:
    """Panels side by side: one alone takes the whole width."""
    return 1 if len(names) == 1 else 2


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes a figure as PNG and SVG; equal data gives equal bytes.

    Args:
        figure: What was drawn.
        stem: Path without a suffix.

    Returns:
        The two files.
    """
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with settings():
        figure.savefig(files[0], metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    return files
