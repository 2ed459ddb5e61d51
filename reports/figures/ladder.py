"""The ladder: one row per lane, one step per rung, and a line as far as the lane climbed."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from receipts.record import OUTCOMES, RUNGS
from reports.figures.canvas import (
    BODY,
    FAINT,
    INK,
    OUTCOME_COLOUR,
    OUTCOME_INK,
    RULE,
    SMALL,
    WIDTH,
    empty,
    picture,
    sheet,
    wrap,
    write,
)
from reports.sentences import SYMBOLS, number

_TITLE = "How far each lane climbs the ladder"
_SUBTITLE = (
    "Each step: its outcome and the worst value measured. The dark line ends at the last rung passed in order; "
    "a dot alone: not even the first."
)
_NAMES, _LEFT, _RIGHT = 0.2, 4.05, 0.25  # inches: start of the names, of the steps, margin behind them
_ROW, _STEP = 0.66, (WIDTH - _LEFT - _RIGHT) / len(RUNGS)


@picture
def ladder(lanes: pd.DataFrame, rungs: pd.DataFrame, remarks: Mapping[str, str] | None = None) -> Figure:
    """Draws the ladder.

    Args:
        lanes: One row per lane (`frames.LANE_COLUMNS`).
        rungs: One row per lane and rung (`frames.RUNG_COLUMNS`).
        remarks: Lane → a few words under its name.
    """
    if lanes.empty:
        return empty(_TITLE, _SUBTITLE, "The receipt holds no lanes.")
    steps = len(lanes) * _ROW
    figure, page = sheet(steps + 2.2, _TITLE, _SUBTITLE)
    top = steps + 0.6
    for column, rung in enumerate(RUNGS):
        x = _LEFT + (column + 0.35) * _STEP
        write(page, x, top + 0.1, f"{column + 1} {rung}", rotation=32, ha="left", va="bottom", rotation_mode="anchor")
    found = {(row["lane"], row["rung"]): row for _, row in rungs.iterrows()}
    for row, (_, lane) in enumerate(lanes.iterrows()):
        y = top - (row + 0.5) * _ROW
        page.plot((_NAMES, WIDTH - _RIGHT), (y - _ROW / 2, y - _ROW / 2), color=RULE, lw=0.8)
        _name(page, y, str(lane["lane"]), (remarks or {}).get(str(lane["lane"]), str(lane["outcome"])))
        for column, rung in enumerate(RUNGS):
            if (step := found.get((lane["lane"], rung))) is not None:
                _step(page, _LEFT + column * _STEP, y, step)
        _line(page, y - 0.26, str(lane["climbed"]))
    _legend(page)
    return figure


def _name(page: Axes, y: float, name: str, remark: str) -> None:
    width = _LEFT - _NAMES - 0.2
    lines = wrap(name, width, BODY, 2, "bold")
    below = wrap(remark, width, SMALL, 1 if len(lines) == 2 else 2)
    pitch = 0.175
    first = y + pitch * (len(lines) + len(below) - 1) / 2
    for i, line in enumerate(lines):
        write(page, _NAMES, first - i * pitch, line, weight="bold")
    for i, line in enumerate(below, start=len(lines)):
        write(page, _NAMES, first - i * pitch, line, size=SMALL, colour=FAINT)


def _step(page: Axes, left: float, y: float, step: pd.Series) -> None:
    outcome = str(step["outcome"])
    colour = OUTCOME_INK[outcome]
    _tile(page, left + 0.03, y - 0.2, _STEP - 0.06, 0.44, outcome)
    measured = number(step["measured"]) if pd.notna(step["measured"]) else ""
    write(
        page, left + _STEP / 2, y + (0.11 if measured else 0.02), SYMBOLS[outcome], size=13, colour=colour, ha="center"
    )
    write(page, left + _STEP / 2, y - 0.095, measured, size=SMALL, colour=colour, ha="center")


def _tile(page: Axes, left: float, bottom: float, width: float, height: float, outcome: str) -> None:
    box = FancyBboxPatch(
        (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.05", fc=OUTCOME_COLOUR[outcome], ec="none"
    )
    page.add_patch(box)


def _line(page: Axes, y: float, climbed: str) -> None:
    reached = RUNGS.index(climbed) + 1 if climbed in RUNGS else 0
    end = _LEFT + reached * _STEP - (0.06 if reached else -0.06)
    page.plot((_LEFT + 0.06, end), (y, y), color=INK, lw=2.6, solid_capstyle="round")
    page.plot((end,), (y,), color=INK, marker="o", ms=6)


def _legend(page: Axes) -> None:
    x = _NAMES
    for outcome in OUTCOMES:
        _tile(page, x, 0.2, 0.3, 0.26, outcome)
        write(page, x + 0.15, 0.33, SYMBOLS[outcome], size=BODY, colour=OUTCOME_INK[outcome], ha="center")
        write(page, x + 0.38, 0.33, outcome)
        x += 1.55
    page.plot((x, x + 0.4), (0.33, 0.33), color=INK, lw=2.6)
    page.plot((x + 0.4,), (0.33,), color=INK, marker="o", ms=6)
    write(page, x + 0.52, 0.33, "climbed")
