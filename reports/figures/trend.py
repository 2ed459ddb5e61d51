"""Trends: one small panel for each series of a kind, with its medians and the places where it changed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.figures.canvas import (
    BLUE,
    BODY,
    FAINT,
    RED,
    RULE,
    SMALL,
    WIDTH,
    axes_at,
    columns_of,
    empty,
    picture,
    sheet,
    shorten,
    write,
)
from reports.history import points
from reports.sentences import number

_TITLES = {"drift": "Drift over time", "speed": "Speed over time", "memory": "Memory over time"}
_SUBTITLE = (
    "One panel a series on one machine, one dot a receipt, or the median of a few and their range; line: median "
    "between changes; dashed red: a change (Pettitt's test, one false mark in a thousand series)."
)
#: matplotlib counts days from here.
EPOCH, DAY = np.datetime64("1970-01-01", "D"), np.timedelta64(1, "D")
#: Panels of a picture; the page has all.
MOST = 12
_HEAD, _PANEL, _PITCH, _LABEL = 0.95, 1.1, 1.95, 0.75

Key = tuple[str, str, str, str]


@picture
def trend(kind: str, panels: Sequence[tuple[Key, pd.DataFrame, pd.DataFrame]]) -> Figure:
    """Draws the series of one kind.

    Args:
        kind: `drift`, `speed` or `memory`.
        panels: (kind, series, unit, machine), its values and its changes, as `reports.history` has them.
    """
    if not panels:
        return empty(_TITLES[kind], _SUBTITLE, "No receipt measured this.")
    panels = panels[:MOST]
    across = columns_of([key[1] for key, _, _ in panels])
    lines = -(-len(panels) // across)
    height = _HEAD + lines * _PITCH + 0.1
    figure, page = sheet(height, _TITLES[kind], _SUBTITLE)
    width = (WIDTH - 0.3) / across - _LABEL
    for i, ((_, series, unit, machine), values, marks) in enumerate(panels):
        left = 0.15 + _LABEL + (i % across) * (width + _LABEL)
        bottom = height - _HEAD - (i // across) * _PITCH - 0.4 - _PANEL
        _panel(axes_at(figure, left, bottom, width - 0.1, _PANEL), values, marks)
        title = shorten(series, width - 0.1, BODY, "bold", middle=True)
        write(page, left, bottom + _PANEL + 0.29, title, weight="bold")
        below = shorten(f"{unit} · {machine}", width - 0.1, SMALL)
        write(page, left, bottom + _PANEL + 0.11, below, size=SMALL, colour=FAINT)
    return figure


def _panel(axes: Axes, values: pd.DataFrame, marks: pd.DataFrame) -> None:
    shown = points(values)
    times, sizes = shown["timestamp"].to_numpy(), shown["value"].to_numpy(dtype=float)
    axes.vlines(times, shown["low"], shown["high"], color=BLUE, lw=0.6, alpha=0.35)
    axes.plot(times, sizes, ls="none", marker="o", ms=2.4, color=BLUE, mec="none", alpha=0.5)
    marks = marks.sort_values("timestamp")
    since = marks["timestamp"].to_numpy()
    ends = [times[0], *since, times[-1]]
    medians = [*marks["before"].head(1), *marks["after"]] or [float(values["value"].median())]
    for (start, end), median in zip(pairwise(ends), medians, strict=True):
        axes.plot((start, end), (median, median), color=BLUE, lw=1.8)
    for start in since:
        axes.axvline(start, color=RED, lw=1, ls="--")
    positive = sizes[sizes > 0]
    if len(positive) == len(sizes) and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
        axes.minorticks_off()
    else:
        top = float(shown["high"].max())
        axes.set_ylim(0, top * 1.15 if top > 0 else 1)
    if len(times) < 2 or times[0] == times[-1]:
        axes.set_xlim(times[0] - DAY, times[0] + DAY)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: str(EPOCH + round(value) * DAY)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.tick_params(labelsize=SMALL, length=3)
    axes.grid(axis="y", color=RULE, lw=0.5)
    axes.set_axisbelow(True)
