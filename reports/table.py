"""The table a person reads on the console: lanes down, rungs across, then a sentence for whatever did not simply pass.

Fits 80 columns, a pipe and an encoding without symbols: a symbol never stands alone in colour only, and every
symbol is spelled out below the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from receipts.gate import gate
from receipts.lanes import OUTCOMES, RUNGS, Lane
from receipts.record import Receipt
from receipts.visible import visible
from reports import sentences
from reports.frames import frames, worst
from reports.sentences import ASCII_SYMBOLS, SYMBOLS, counts, number

_COLOUR = {"pass": "green", "fail": "bold red", "error": "bold magenta", "unsupported": "dim", "inconclusive": "yellow"}
_SHORT = {
    "identity": "id",
    "tokens": "tok",
    "weights": "wgt",
    "operations": "ops",
    "logits": "log",
    "decode": "dec",
    "greedy": "grd",
    "quality": "qlt",
}
_LETTERS = str.maketrans(
    {"×": "x", "÷": "/", "−": "-", "–": "-", "—": "-", "·": "-", "…": "...", "²": "^2", "≤": "<=", "≥": ">=", "’": "'"}
)
#: From this width on the rungs' names fit above their columns.
_WIDE = 130


def console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """A console that colours only for a terminal, and takes 80 columns where there is none to ask."""
    made = Console(file=file, highlight=False, markup=False, emoji=False, width=width)
    if width is None and not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 80
    return made


def show(receipt: Receipt, on: Console | None = None) -> None:
    """Prints the table and the sentences of a receipt.

    Args:
        receipt: What to show.
        on: Where; standard output otherwise.
    """
    on = on or console()
    printer = _Printer(on)
    if not receipt.lanes:
        on.print(printer.text("No lane was run, so nothing is shown."))
        return
    on.print(printer.table(receipt))
    printer.paragraph(printer.legend())
    loud = [lane for lane in receipt.lanes if not sentences.simply_passed(lane)]
    if loud:
        on.print()
    for lane in loud:
        printer.paragraph(printer.sentence(lane, sentences.sentence(lane)))
    if remarks := _remarks(receipt):
        on.print()
    for remark in remarks:
        printer.paragraph(printer.text(remark, style="dim"))
    on.print()
    for line in conclusion(receipt):
        printer.paragraph(printer.text(line, style="bold"))


def conclusion(receipt: Receipt) -> list[str]:
    """What the receipt comes to: lanes counted, and what the gate refuses."""
    refused = [result for result in gate(receipt) if result.outcome != "pass"]
    if not refused:
        return [f"Passed: {sentences.tally(receipt)}."]
    reasons = [f"  {result.name.removeprefix('gate.lane.').removeprefix('gate.')}: {result.why}" for result in refused]
    return [f"Not passed: {sentences.tally(receipt)}. The gate refuses:", *reasons]


def _remarks(receipt: Receipt) -> list[str]:
    """What the lanes that passed do not show: near-ties, and rungs that could not be compared."""
    said, missing = [], dict[str, list[str]]()
    for lane in receipt.lanes:
        if ties := sentences.near_ties(lane):
            said.append(f"{lane.name}: {ties} near-tie{'s' if ties > 1 else ''}: other tokens that noise explains.")
        if lane.outcome == "pass":
            for what in sentences.missing_rungs(lane):
                missing.setdefault(what, []).append(lane.name)
    return said + [f"Not compared: {what}, in {', '.join(names)}." for what, names in missing.items()]


class _Printer:
    """Puts texts on one console, in its width and its letters."""

    def __init__(self, on: Console) -> None:
        self.on = on
        self.wide = on.width >= _WIDE
        self.symbols = SYMBOLS if _can_print("".join(SYMBOLS.values()), on.encoding) else ASCII_SYMBOLS

    def text(self, text: str, style: str = "") -> Text:
        """Text in letters that the console's encoding has, without control characters."""
        text = visible(text)
        if not _can_print(text, self.on.encoding):
            text = text.translate(_LETTERS).encode(self.on.encoding, errors="replace").decode(self.on.encoding)
        return Text(text, style=style)

    def paragraph(self, text: Text) -> None:
        """Wrapped, its further lines indented."""
        for i, line in enumerate(text.wrap(self.on, max(self.on.width - 2, 20))):
            line.rstrip()
            self.on.print(Text("  ").append_text(line) if i else line, no_wrap=True, overflow="ignore", crop=False)

    def sentence(self, lane: Lane, sentence: str) -> Text:
        """The symbol of the lane's outcome, its name in bold, and the rest."""
        said = self.text(sentence.removeprefix(f"{lane.name}:"))
        return Text.assemble(
            (self.symbols[lane.outcome], _COLOUR[lane.outcome]), " ", (self.text(lane.name).plain + ":", "bold"), said
        )

    def legend(self) -> Text:
        """Every symbol, and every short name of a rung, in words."""
        said = Text()
        for outcome in OUTCOMES:
            said.append(f"{self.symbols[outcome]} {outcome}", style=_COLOUR[outcome]).append("   ")
        if not self.wide:
            names = ", ".join(f"{_SHORT[rung]} {rung}" for rung in RUNGS)
            said.append(f"\nrungs: {names}", style="dim")
        return said

    def table(self, receipt: Receipt) -> Table:
        """One row per lane."""
        edges = box.SIMPLE_HEAD if _can_print("─", self.on.encoding) else box.ASCII2
        table = Table(box=edges, pad_edge=False, padding=(0, 1 if self.wide else 0, 0, 0), show_edge=False)
        table.add_column("lane", ratio=1, overflow="fold")
        for rung in RUNGS:
            table.add_column(rung if self.wide else _SHORT[rung], justify="left", no_wrap=True, min_width=3)
        table.add_column("climbed", no_wrap=True)
        table.add_column("worst / limit", justify="right", no_wrap=True)
        table.add_column("gate", justify="right", no_wrap=True)
        rungs = frames(receipt).rungs
        for lane in receipt.lanes:
            found = {rung.name: rung.outcome for rung in lane.rungs}
            cells = [self._outcome(found.get(name, "inconclusive")) for name in RUNGS]
            nearest = worst(rungs[rungs["lane"] == lane.name])
            far = "" if nearest is None else f"{number(nearest['measured'])} / {number(nearest['limit'])}"
            table.add_row(
                self.text(lane.name),
                *cells,
                lane.climbed or self.text("–"),
                self.text(far),
                self._gate(lane),
            )
        return table

    def _outcome(self, outcome: str) -> Text:
        return Text(self.symbols[outcome], style=_COLOUR[outcome])

    def _gate(self, lane: Lane) -> Text:
        if not counts(lane):
            return Text("no", style=_COLOUR["fail"])
        return Text("yes", style=_COLOUR["pass"]) if lane.required else self.text("–", style="dim")


def _can_print(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def lines(receipt: Receipt, *, width: int = 80) -> Sequence[str]:
    """The table as plain lines, for a log or a test."""
    with (on := console(width=width)).capture() as captured:
        show(receipt, on)
    return captured.get().splitlines()
