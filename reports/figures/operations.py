"""Locked operations: error of every operation in every layer on the reference's own inputs, as heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import FuncNorm, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from reports.figures.canvas import (
    BODY,
    FAINT,
    INK,
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
from reports.frames import tap_order
from reports.sentences import number, place

Floats = NDArray[np.float64]

_TITLE = "Where operations differ, each on the reference's own inputs"
_SUBTITLE = (
    "One cell is one operation of one layer: the worst error of all cases ÷ the largest value of the reference. "
    "Blue is inside the limit, orange to red beyond it."
)
_BELOW = ("#eaf2fa", "#9cc4e4", "#3f83bf", "#0b3c6f")
_ABOVE = ("#f5b041", "#e2711d", "#b0160f", "#5a0505")
_ABSENT, _DOT = "#ededed", "#3f83bf"
_KEY = 0.22  # inches: side of a cell in the legend
_HEAD, _FOOT, _LABELS, _TAPS = 0.85, 1.2, 0.5, 0.95  # inches: title, legend, layer labels, tap labels
_PANEL_TITLE, _GAP = 0.45, 0.22


@picture
def operations(rows: pd.DataFrame, lanes: Sequence[str] | None = None) -> Figure:
    """Draws one heat map per lane: layers down, operations along the graph.

    Args:
        rows: `frames.OPERATION_COLUMNS`; several cases of one cell are drawn as their worst.
        lanes: Which lanes, in this order; all that have rows otherwise.
    """
    if lanes is not None:
        rows = rows[rows["lane"].isin(list(lanes))]
    rows = rows[rows["outcome"].isin(("pass", "fail"))]
    if rows.empty:
        return empty(_TITLE, _SUBTITLE, "No lane reached the operations rung, so no operation was compared.")
    names = [name for name in (lanes or dict.fromkeys(rows["lane"])) if (rows["lane"] == name).any()]
    taps = tap_order(rows)
    inner = _inner(rows, taps)
    cells = {name: _cells(rows[rows["lane"] == name]) for name in names}
    scale = _Scale(rows)
    across = columns_of(names)
    lines = [names[i : i + across] for i in range(0, len(names), across)]
    heights = [max(_map_height(cells[name]) for name in line) for line in lines]
    height = _HEAD + sum(heights) + len(lines) * (_PANEL_TITLE + _GAP) + _TAPS - _GAP + _FOOT
    figure, page = sheet(height, _TITLE, _SUBTITLE)
    width = (WIDTH - 0.45) / across - _LABELS
    y = height - _HEAD
    for number_of_line, (line, tall) in enumerate(zip(lines, heights, strict=True)):
        y -= _PANEL_TITLE + (_GAP if number_of_line else 0.0)
        for column, name in enumerate(line):
            left = 0.2 + _LABELS + column * (width + _LABELS)
            low = _map_height(cells[name])
            axes = axes_at(figure, left, y - low, width - 0.05, low)
            last = number_of_line == len(lines) - 1 or (number_of_line == len(lines) - 2 and column >= len(lines[-1]))
            _panel(axes, cells[name], taps, inner, scale, labelled=last)
            write(page, left, y + 0.31, shorten(name, width - 0.1, BODY, "bold", middle=True), weight="bold")
            write(page, left, y + 0.12, shorten(_summary(cells[name]), width, SMALL), size=SMALL, colour=FAINT)
        y -= tall
    _legend(figure, page, scale)
    return figure


class _Scale:
    """Value of a cell, its colour, and where on the logarithmic scale the limit lies.

    With one limit everywhere the value is the relative error itself; with several it is error ÷ limit.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        limits = sorted({float(limit) for limit in rows["limit"].dropna() if limit > 0})
        self.relative = len(limits) > 1
        self.limit = 1.0 if self.relative or not limits else limits[0]
        self.has_limit = bool(limits)
        values = self.values(rows)
        seen = values[np.isfinite(values) & (values > 0)]
        self.low = min(10 ** np.floor(np.log10(seen.min())) if seen.size else np.inf, self.limit / 100)
        self.high = max(10 ** np.ceil(np.log10(seen.max())) if seen.size else 0.0, self.limit * 100)
        self._decades = tuple(float(np.log10(x)) for x in (self.low, self.limit, self.high))
        self.map = LinearSegmentedColormap.from_list("limit", [*_stops(_BELOW, 0.0, 0.5), *_stops(_ABOVE, 0.5, 1.0)])
        self.norm: Normalize = FuncNorm((self._forward, self._inverse), vmin=self.low, vmax=self.high)

    def values(self, rows: pd.DataFrame) -> Floats:
        ratio = rows["ratio"].to_numpy(dtype=float)
        if not self.relative:
            return ratio
        limit = rows["limit"].to_numpy(dtype=float)
        return np.where(ratio == 0, 0.0, ratio / np.where(limit > 0, limit, np.nan))

    def colour(self, value: float, outcome: str) -> tuple[float, ...]:
        if not np.isfinite(value):
            value = self.high  # not a number, or beyond an exact limit: as far beyond as it gets
        if outcome == "fail":
            value = max(value, self.limit * 1.0001)
        red, green, blue, alpha = self.map(float(self._forward(np.float64(min(max(value, self.low), self.high)))))
        return (red, green, blue, alpha)

    def _forward(self, value: ArrayLike) -> Floats:
        # each side of the limit takes half of the colours, so that the border is always at the limit
        log = np.log10(np.maximum(np.asarray(value, dtype=float), np.finfo(float).tiny))
        share: Floats = np.interp(log, self._decades, (0.0, 0.5, 1.0))
        return share

    def _inverse(self, share: ArrayLike) -> Floats:
        value: Floats = np.power(10.0, np.interp(np.asarray(share, dtype=float), (0.0, 0.5, 1.0), self._decades))
        return value


def _stops(colours: Sequence[str], start: float, end: float) -> list[tuple[float, str]]:
    return list(zip(np.linspace(start, end, len(colours)).tolist(), colours, strict=True))


def _cells(rows: pd.DataFrame) -> pd.DataFrame:
    """The worst row of each tap and layer: one that failed before one that did not, then the largest ratio."""
    ranked = rows.assign(bad=rows["outcome"] == "fail", size=rows["ratio"].fillna(np.inf))
    ranked = ranked.sort_values(["bad", "size"], ascending=False, kind="stable")
    return ranked.drop_duplicates(["tap", "layer"])


def _inner(rows: pd.DataFrame, taps: Sequence[str]) -> list[str]:
    return [tap for tap in taps if (rows.loc[rows["tap"] == tap, "layer"] >= 0).any()]


def _layers(cells: pd.DataFrame) -> int:
    return max(int(cells["layer"].max()) + 1, 1)


def _map_height(cells: pd.DataFrame) -> float:
    n_layer = _layers(cells)
    return min(max(0.75, n_layer * (0.2 if n_layer <= 8 else 0.11)), 2.4)


def _panel(
    axes: Axes, cells: pd.DataFrame, taps: Sequence[str], inner: Sequence[str], scale: _Scale, *, labelled: bool
) -> None:
    n_layer = _layers(cells)
    axes.set(xlim=(-0.5, len(taps) - 0.5), ylim=(n_layer - 0.5, -0.5))
    keys = list(zip(cells["tap"], cells["layer"], strict=True))
    found = dict(zip(keys, zip(scale.values(cells), cells["outcome"], strict=True), strict=True))
    drawn = _Drawn()
    for x, tap in enumerate(taps):
        # what is computed once for the model takes the whole height of its column
        spans = [(il, il - 0.5, 1.0) for il in range(n_layer)] if tap in inner else [(-1, -0.5, float(n_layer))]
        for layer, top, height in spans:
            drawn.add(x, top, height, *found.get((tap, layer), (np.nan, "unsupported")), scale)
    drawn.put(axes)
    every = 1 if n_layer <= 8 else 5
    axes.set_yticks(range(0, n_layer, every), [str(layer) for layer in range(0, n_layer, every)], fontsize=SMALL)
    axes.set_ylabel("layer", fontsize=SMALL, labelpad=2)
    axes.set_xticks(range(len(taps)) if labelled else (), taps if labelled else (), fontsize=SMALL, rotation=90)
    axes.tick_params(length=2, pad=2)


class _Drawn:
    """Cells gathered by how they look, so that a panel of hundreds is drawn in five strokes."""

    def __init__(self) -> None:
        self.filled: list[Rectangle] = []
        self.colours: list[tuple[float, ...]] = []
        self.exact: list[Rectangle] = []
        self.absent: list[Rectangle] = []
        self.dots: list[tuple[float, float]] = []
        self.crosses: list[tuple[float, float]] = []

    def add(self, x: float, top: float, height: float, value: float, outcome: str, scale: _Scale) -> None:
        """One cell, `x` at its middle."""
        box, middle = Rectangle((x - 0.5, top), 1, height), (x, top + height / 2)
        if outcome not in ("pass", "fail"):
            self.absent.append(box)
        elif value == 0 and outcome == "pass":
            self.exact.append(box)
            self.dots.append(middle)
        else:
            self.filled.append(box)
            self.colours.append(scale.colour(value, outcome))
            if outcome == "fail":
                self.crosses.append(middle)

    def put(self, axes: Axes) -> None:
        """Draws what was gathered."""
        axes.add_collection(PatchCollection(self.absent, fc=_ABSENT, ec="#bdbdbd", lw=0.3, hatch="////"))
        axes.add_collection(PatchCollection(self.exact, fc="white", ec="#c9d6e2", lw=0.5))
        axes.add_collection(PatchCollection(self.filled, fc=self.colours, ec="white", lw=0.5))
        for points, marker, size, colour in ((self.dots, "o", 2.2, _DOT), (self.crosses, "x", 4.2, "white")):
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(xs, ys, marker=marker, ms=size, mew=1.2 if marker == "x" else 0, color=colour, ls="none")


def _summary(cells: pd.DataFrame) -> str:
    failed = cells[cells["outcome"] == "fail"]
    worst = cells.iloc[0]  # `_cells` sorts the worst to the front
    size = number(worst["ratio"]) if pd.notna(worst["ratio"]) else "not a number"
    where = f"{size} at {place(str(worst['tap']), int(worst['layer']))}"
    if failed.empty:
        exact = int((cells["ratio"] == 0).sum())
        return f"{len(cells)} inside, {exact} exact; worst {where}"
    return f"{len(failed)} of {len(cells)} beyond the limit; worst {where}"


def _legend(figure: Figure, page: Axes, scale: _Scale) -> None:
    bar = axes_at(figure, 0.4, 0.62, 5.2, 0.16)
    figure.colorbar(ScalarMappable(norm=scale.norm, cmap=scale.map), cax=bar, orientation="horizontal")
    low, high = round(np.log10(scale.low)), round(np.log10(scale.high))
    every = max(1, -(-(high - low) // 8))
    ticks = [10.0**power for power in range(low, high + 1, every)]
    bar.set_xticks(ticks, [number(tick) for tick in ticks], fontsize=SMALL)
    bar.minorticks_off()
    what = "error ÷ its limit (limits differ)" if scale.relative else "error ÷ largest value of the reference"
    write(page, 0.4, 0.14, what, size=SMALL)
    if scale.has_limit:
        bar.axvline(scale.limit, color=INK, lw=2)
        limit = "limit" if scale.relative else f"limit {number(scale.limit)}"
        write(page, 3.0, 0.9, limit, size=SMALL, ha="center", weight="bold")
    keys = axes_at(figure, 5.9, 0.3, 3.9, 0.5)
    keys.set(xlim=(0, 3.9 / _KEY), ylim=(0.5 / _KEY, 0))
    keys.set_axis_off()
    drawn = _Drawn()
    for x, label, value, outcome in (
        (0.0, "exactly equal", 0.0, "pass"),
        (1.35, "not compared", np.nan, "unsupported"),
        (2.7, "beyond limit", (scale.limit * scale.high**2) ** (1 / 3), "fail"),
    ):
        drawn.add(x / _KEY + 0.5, 0.1 / _KEY, 1.0, value, outcome, scale)
        write(keys, x / _KEY + 1.3, 0.1 / _KEY + 0.5, label, size=SMALL)
    drawn.put(keys)
