"""Throughput: tokens per second of the engine and its peers, every timed run and the median."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.figures.canvas import (
    BLUE,
    BODY,
    FAINT,
    INK,
    RULE,
    SKY,
    SMALL,
    WIDTH,
    axes_at,
    empty,
    picture,
    sheet,
    shorten,
    width_of,
    write,
)
from reports.sentences import times

_TITLE = "How fast: tokens per second"
_SUBTITLE = (
    "Bar: median; dots: every timed run. The factor is this engine's median over the peer's on as many threads: "
    "above 1× this engine is the faster."
)
_ENGINE, _PEER = BLUE, "#b9c4cc"
_ROW, _HEADING, _GAP, _HEAD, _FOOT = 0.3, 0.34, 0.12, 1.15, 0.6
_NAMES, _LEFT, _BETWEEN, _RIGHT = 0.35, 3.45, 0.3, 0.2
_PHASES = ("prefill", "decode")


@picture
def throughput(rows: pd.DataFrame, *, engine: str = "bitnet") -> Figure:
    """Draws prefill and decode side by side, grouped by model.

    Args:
        rows: `frames.PERFORMANCE_COLUMNS`; other phases than prefill and decode are not drawn.
        engine: Whose bars are marked and compared with the others.
    """
    rows = rows[rows["what"].isin(_PHASES) & (rows["median"] > 0)]
    if rows.empty:
        return empty(_TITLE, _SUBTITLE, "The receipt holds no timed prefill or decode.")
    places, headings, depth = _layout(rows)
    height = _HEAD + depth + _FOOT
    figure, page = sheet(height, _TITLE, _SUBTITLE)
    top = height - _HEAD
    for y, model in headings:
        write(page, _NAMES - 0.15, top - y, shorten(model, WIDTH - 0.4), weight="bold")
        page.plot((_NAMES - 0.15, WIDTH - _RIGHT), (top - y - 0.15, top - y - 0.15), color=RULE, lw=0.8)
    for (model, name, threads), y in places.items():
        suffix = f" · {threads} thread" + ("s" if threads != 1 else "")
        room = _LEFT - _NAMES - 0.15 - width_of(suffix)
        label = shorten(name.removesuffix(f" · {model}"), room, BODY) + suffix
        write(page, _NAMES, top - y, label, weight="bold" if name == engine else "normal")
    width = (WIDTH - _LEFT - _RIGHT - _BETWEEN) / len(_PHASES)
    for column, phase in enumerate(_PHASES):
        left = _LEFT + column * (width + _BETWEEN)
        axes = axes_at(figure, left, _FOOT, width, depth)
        axes.set_ylim(depth, 0)
        _phase(axes, rows[rows["what"] == phase], places, engine)
        write(page, left, top + 0.14, phase, size=BODY + 1, weight="bold")
        axes.set_xlabel("tokens per second", fontsize=SMALL)
    return figure


def _layout(rows: pd.DataFrame) -> tuple[dict[tuple[str, str, int], float], list[tuple[float, str]], float]:
    """Distance from the top, in inches, of every bar and every model's heading; and the whole depth."""
    places: dict[tuple[str, str, int], float] = {}
    headings: list[tuple[float, str]] = []
    y = 0.05
    for model, mine in rows.groupby("model", sort=False):
        headings.append((y + _HEADING / 2, str(model)))
        y += _HEADING
        for key in dict.fromkeys(zip(mine["engine"], mine["threads"], strict=True)):
            places[(str(model), str(key[0]), int(key[1]))] = y + _ROW / 2
            y += _ROW
        y += _GAP
    return places, headings, y


def _phase(axes: Axes, rows: pd.DataFrame, places: dict[tuple[str, str, int], float], engine: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.patch.set_alpha(0)
    axes.set_yticks([])
    axes.tick_params(labelsize=SMALL, length=3)
    furthest = 1.0 if rows.empty else float(max(rows["median"].max(), rows["tokens_per_second"].max()))
    axes.set_xlim(0, furthest * 1.52)  # the figures stand behind the bars
    axes.xaxis.set_major_locator(MaxNLocator(5))
    own = {(row["model"], row["threads"]): row["median"] for _, row in rows[rows["engine"] == engine].iterrows()}
    for (model, name, threads), y in places.items():
        mine = rows[(rows["model"] == model) & (rows["engine"] == name) & (rows["threads"] == threads)]
        if mine.empty:
            write(axes, furthest * 0.01, y, "not measured", size=SMALL, colour=FAINT)
            continue
        median = float(mine["median"].iloc[0])
        axes.barh(y, median, height=_ROW * 0.66, color=_ENGINE if name == engine else _PEER)
        runs = mine["tokens_per_second"].dropna().to_numpy(dtype=float)
        spread = y + np.linspace(-0.05, 0.05, len(runs)) if len(runs) > 1 else np.full(len(runs), y)
        dots = SKY if name == engine else "#56646e"
        axes.plot(runs, spread, marker="o", ms=3.6, ls="none", color=dots, mec="white", mew=0.5)
        reach = float(max(median, runs.max())) if len(runs) else median
        ratio = own.get((model, threads))
        factor = "" if name == engine or ratio is None else f"  ({times(ratio / median)})"
        write(axes, reach + furthest * 0.03, y, f"{_rate(median)}{factor}", size=SMALL, colour=INK)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
