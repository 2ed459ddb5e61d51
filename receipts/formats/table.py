"""A report on a console: what failed, what the gate asked, the verdict."""

from __future__ import annotations

import sys
from typing import Any

from receipts.formats.verdict import verdict
from receipts.verify import LEVELS, Check, Report
from receipts.visible import visible

_SIGN = {"pass": "[green]✓[/]", "fail": "[bold red]✗[/]", "inconclusive": "[yellow]–[/]"}
#: Levels of which every check is shown; of the others those that did not pass.
_WHOLE = ("signature", "replay", "gate")


def console() -> Any:  # noqa: ANN401  # rich's Console; rich is slow to import, and the other forms need none of it
    """Standard output. A pipe or a CI log has no width of its own, and 80 columns fold every path."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def plain(text: str) -> str:
    """Text of a receipt for a console: no markup, no controls."""
    from rich.markup import escape

    return escape(visible(text))


def show(report: Report, *, every: bool = False) -> None:
    """Print it.

    Args:
        report: What was found.
        every: Show the checks that passed, too.
    """
    from rich.table import Table

    out = console()
    table = Table(title=f"Receipt {plain(report.file)}", title_justify="left", header_style="bold", expand=False)
    table.add_column("")
    table.add_column("check", no_wrap=True)
    table.add_column("where", overflow="fold")
    table.add_column("what", overflow="fold")
    for level in LEVELS:
        rows = [check for check in report.checks if check.level == level]
        shown = rows if every or level in _WHOLE else [check for check in rows if check.outcome == "fail"]
        if rows and not shown:
            shown = [_short(level, rows)]
        for check in shown:
            table.add_row(_SIGN[check.outcome], *(plain(text) for text in (check.name, check.path, check.message)))
        table.add_section()
    out.print(table)
    if report.nonce:
        out.print(f"nonce {plain(report.nonce)}")
    out.print(plain(verdict(report)))


def _short(level: str, rows: list[Check]) -> Check:
    """One line for a level in which no check failed."""
    if all(check.outcome == "pass" for check in rows):
        return Check(level=rows[0].level, name=level, outcome="pass", message=f"{len(rows)} hold (--all lists them)")
    return Check(level=rows[0].level, name=level, outcome="inconclusive", message=rows[0].message)
