"""Logit drift: how far the logits are apart at every position, over what noise alone explains."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from reports.figures.canvas import (
    BLUE,
    BODY,
    FAINT,
    ORANGE,
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
from reports.sentences import number

_TITLE = "How far the logits drift apart, position by position"
_SUBTITLE = (
    "Relative L2 difference of the logits at each position of every case (log scale). Grey: how far an engine differs "
    "from itself at that position, the most of all cases. Dashed: the lane's noise floor."
)
_HEAD, _FOOT, _LABEL, _PANEL, _PANEL_TITLE, _TICKS = 0.9, 0.5, 0.72, 1.55, 0.45, 0.55
_FLOOR = "#d9d9d9"
_PHASES = (("prefill", BLUE, "o"), ("decode", ORANGE, "^"))


@picture
def drift(rows: pd.DataFrame, lanes: pd.DataFrame) -> Figure:
    """Draws one panel per lane that has positions; all share one vertical scale.

    Args:
        rows: `frames.POSITION_COLUMNS`.
        lanes: `frames.LANE_COLUMNS`, for the noise floors and for the lanes without positions.
    """
    names = [name for name in lanes["lane"] if (rows["lane"] == name).any()]
    if not names:
        return empty(_TITLE, _SUBTITLE, "No lane reached the logits rung, so no position was compared.")
    floors = {row["lane"]: row["floor"] for _, row in lanes.iterrows() if _drawable(row)}
    shown = rows[rows["lane"].isin(names)]
    values = shown["rel_l2"].to_numpy(dtype=float)
    low, high = _range(np.concatenate([values, shown["floor"], np.asarray(list(floors.values()), dtype=float)]))
    across = columns_of(names)
    n_lines = -(-len(names) // across)
    pitch = _PANEL + _PANEL_TITLE + _TICKS
    height = _HEAD + n_lines * pitch + _FOOT
    figure, page = sheet(height, _TITLE, _SUBTITLE)
    width = (WIDTH - 0.3) / across - _LABEL
    for i, name in enumerate(names):
        left = 0.15 + _LABEL + (i % across) * (width + _LABEL)
        bottom = height - _HEAD - (i // across) * pitch - _PANEL_TITLE - _PANEL
        axes = axes_at(figure, left, bottom, width - 0.1, _PANEL)
        mine = rows[rows["lane"] == name]
        _panel(axes, mine, floors.get(name), low, high, has_zero=bool((values == 0).any()))
        write(page, left, bottom + _PANEL + 0.31, shorten(name, width - 0.1, BODY, "bold", middle=True), weight="bold")
        summary = shorten(_summary(mine, floors.get(name)), width - 0.1, SMALL)
        write(page, left, bottom + _PANEL + 0.12, summary, size=SMALL, colour=FAINT)
    _legend(figure)
    return figure


def _drawable(lane: pd.Series) -> bool:
    """Whether the lane's noise floor is one of what is drawn; a floor of another metric has no place here."""
    metric = str(lane["floor_metric"]).lower().replace("_", "").replace(" ", "")
    return pd.notna(lane["floor"]) and ("rell2" in metric or "relativel2" in metric)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Whole decades that hold every positive value, at least two of them."""
    seen = values[np.isfinite(values) & (values > 0)]
    if not seen.size:
        return 1e-9, 1e-5
    low, high = np.floor(np.log10(seen.min())), np.ceil(np.log10(seen.max()))
    return 10.0**low, 10.0 ** max(high, low + 2)


def _panel(axes: Axes, rows: pd.DataFrame, floor: float | None, low: float, high: float, *, has_zero: bool) -> None:
    zero = low / 10  # equal logits have no logarithm: they lie on a line of their own below the scale
    axes.set_yscale("log")
    axes.set_ylim(low / (30 if has_zero else 1.5), high * 1.5)
    noise = rows.groupby("position")["floor"].max().fillna(0.0)
    axes.fill_between(
        noise.index.to_numpy(dtype=float), low / 30, np.maximum(noise, low / 30), step="mid", color=_FLOOR, lw=0
    )
    if floor is not None and floor > 0:
        axes.axhline(floor, color=FAINT, lw=1, ls="--")
    size = 3.4 if len(rows) < 150 else 2.4
    for phase, colour, marker in reversed(_PHASES):
        for _, mine in rows[rows["phase"] == phase].groupby("case", sort=False):
            _points(axes, mine, colour, marker, size, zero, high)
    marks = np.clip(rows["rel_l2"].fillna(high).to_numpy(dtype=float), zero, high)
    tie = rows["near_tie"].to_numpy(dtype=bool)
    differs = ~rows["top1_equal"].to_numpy(dtype=bool) & ~tie
    position = rows["position"].to_numpy(dtype=float)
    axes.plot(position[tie], marks[tie], marker="D", ms=7.5, mec="black", mfc="none", mew=1.1, ls="none")
    axes.plot(position[differs], marks[differs], marker="x", ms=6, mec=RED, mew=1.6, ls="none")
    axes.set_xlim(-0.5, max(float(position.max()) + 0.5, 1.0))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.tick_params(labelsize=SMALL, length=3)
    axes.set_xlabel("position", fontsize=SMALL, labelpad=1)
    axes.set_ylabel("relative L2", fontsize=SMALL, labelpad=2)
    axes.yaxis.set_minor_locator(NullLocator())
    decades = round(np.log10(high / low))
    axes.yaxis.set_major_locator(LogLocator(base=10 ** max(1, -(-decades // 4))))
    ticks = [10.0**power for power in range(round(np.log10(low)), round(np.log10(high)) + 1, max(1, -(-decades // 4)))]
    axes.set_yticks([*([zero] if has_zero else []), *ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "equal" if value < low / 2 else number(value)))
    axes.grid(axis="y", color=RULE, lw=0.5)
    axes.set_axisbelow(True)


def _points(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, size: float, zero: float, high: float) -> None:
    """One phase of one case."""
    values = rows["rel_l2"].to_numpy(dtype=float)
    drawn = np.where(values == 0, zero, np.where(np.isfinite(values), values, high))
    position = rows["position"].to_numpy(dtype=float)
    again = np.flatnonzero(np.diff(position) <= 0) + 1  # a case decoded twice starts a line of its own
    axes.plot(np.insert(position, again, np.nan), np.insert(drawn, again, np.nan), color=colour, lw=0.5, alpha=0.3)
    axes.plot(position, drawn, color=colour, marker=marker, ms=size, ls="none", mec="white", mew=0.2)


def _summary(rows: pd.DataFrame, floor: float | None) -> str:
    values = rows["rel_l2"].dropna()
    other = ~rows["top1_equal"].astype(bool) & ~rows["near_tie"].astype(bool)
    ties, differs = (
        len(rows.loc[which, ["case", "position"]].drop_duplicates()) for which in (rows["near_tie"], other)
    )
    parts = [f"median {number(values.median())}, worst {number(values.max())}" if len(values) else "not a number"]
    parts.append("no noise floor" if floor is None else f"floor {number(floor)}")
    if ties:
        parts.append(f"{ties} near-tie" + ("s" if ties > 1 else ""))
    if differs:
        parts.append(f"{differs} other top token" + ("s" if differs > 1 else ""))
    return ", ".join(parts)


def _legend(figure: Figure) -> None:
    handles: list[Artist] = [
        Line2D([], [], color=colour, marker=marker, ms=5, lw=0.8, label=name) for name, colour, marker in _PHASES
    ]
    handles += [
        Patch(color=_FLOOR, label="noise at that position"),
        Line2D([], [], color=FAINT, lw=1, ls="--", label="noise floor"),
        Line2D([], [], marker="D", ms=7.5, mec="black", mfc="none", ls="none", label="near-tie"),
        Line2D([], [], marker="x", ms=6, mec=RED, mew=1.6, ls="none", label="other top token"),
    ]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.015, 0.1 / figure.get_figheight()),
        ncols=len(handles),
        frameon=False,
        fontsize=SMALL,
        borderpad=0.2,
        columnspacing=1.3,
    )
