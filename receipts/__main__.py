"""`python -m receipts`: thin; parse, call, print."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from receipts.errors import ReceiptError
from receipts.verify import Check, Report, verify

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Check the receipts of cross-validated inference runs. Needs no engine, no compiler, no network.",
)
_SIGN = {"pass": "[green]✓[/]", "fail": "[bold red]✗[/]", "inconclusive": "[yellow]–[/]"}


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"


@app.callback()
def _commands() -> None:
    """Keeps `verify` a command of its own while it is the only one."""


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="The receipt; its side files lie in rows/ beside it.")] = Path(
        "ci/inference.json"
    ),
    output: Annotated[Format, typer.Option("--format", help="A table for people, or JSON.")] = Format.TABLE,
    gate: Annotated[
        bool, typer.Option(help="Ask whether all required lanes passed.")
    ] = True,  # typer makes a flag of it
    every: Annotated[bool, typer.Option("--all", help="Show the checks that passed, too.")] = False,  # as above
) -> None:
    """Recompute what a receipt says: its form, its consistency, and whether it passes the gate.

    Exit codes: 0 passed; 1 true, but the gate failed; 2 wrong usage or no such file; 5 the receipt is invalid.
    """
    report = verify(path, gate=gate)
    if output is Format.JSON:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        _print(report, every=every)
    raise typer.Exit(report.exit_code)


def _print(report: Report, *, every: bool) -> None:
    from rich.console import Console  # slow to import, and JSON needs none of it
    from rich.markup import escape
    from rich.table import Table

    # A pipe or a CI log has no width of its own, and 80 columns fold every path.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"Receipt {escape(report.file)}", title_justify="left", header_style="bold", expand=False)
    table.add_column("")
    table.add_column("check", no_wrap=True)
    table.add_column("where", overflow="fold")
    table.add_column("what", overflow="fold")
    for level in ("form", "consistency", "gate"):
        rows = [check for check in report.checks if check.level == level]
        shown = rows if every or level == "gate" else [check for check in rows if check.outcome == "fail"]
        if rows and not shown:
            shown = [_short(level, rows)]
        for check in shown:
            table.add_row(_SIGN[check.outcome], *(escape(text) for text in (check.name, check.path, check.message)))
        table.add_section()
    console.print(table)
    console.print(escape(_verdict(report)))


def _short(level: str, rows: list[Check]) -> Check:
    """One line for a level in which no check failed."""
    if all(check.outcome == "pass" for check in rows):
        return Check(level=rows[0].level, name=level, outcome="pass", message=f"{len(rows)} hold (--all lists them)")
    return Check(level=rows[0].level, name=level, outcome="inconclusive", message=rows[0].message)


def _verdict(report: Report) -> str:
    if not report.valid:
        findings = sum(check.level != "gate" for check in report.failures)
        return f"Invalid: {findings} finding{'s' * (findings != 1)}. Nothing in it can be relied on."
    if report.gate_passed is None:
        return "Valid. The gate was not asked."
    return "Valid, and the gate passed." if report.gate_passed else "Valid, but the gate failed."


def main() -> None:
    """The command line; a user's mistake is one sentence on standard error, never a traceback."""
    try:
        app(prog_name="python -m receipts")
    except ReceiptError as error:
        print(f"receipts: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
