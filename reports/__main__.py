"""`python -m reports`: a receipt as a report folder, a table, or the summary of a CI step; many receipts as a history.

What a command needs is imported by it: the processes that read a history import this module again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import receipts
from receipts import program
from reports.errors import ReportError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A receipt as pictures, pages and tables.",
)
ReceiptPath = Annotated[Path, typer.Argument(help="The receipt.", metavar="RECEIPT")]


@app.command()
def build(
    receipt: ReceiptPath = Path("ci/inference.json"),
    out: Annotated[Path, typer.Option(help="The report folder.")] = Path("build/crossval"),
    repro: Annotated[Path, typer.Option(help="Folder of the reproductions that are linked.")] = Path("build/repro"),
) -> None:
    """Write report.html (one file, no network), report.md and the four pictures (PNG and SVG)."""
    from reports.build import write_report

    made = write_report(receipt, out, repro=repro)
    print(f"wrote {made.page} and {len(made.pictures)} pictures")
    print(f"report: {made.html}")


@app.command(name="table")
def table_command(receipt: ReceiptPath = Path("ci/inference.json")) -> None:
    """Print the table and a sentence for each finding."""
    from reports.table import console, show

    show(receipts.read(receipt), console())


@app.command(name="summary")
def summary_command(receipt: ReceiptPath = Path("ci/inference.json")) -> None:
    """Print the summary for a CI step, as Markdown."""
    from reports.markdown import summary

    sys.stdout.buffer.write(summary(receipts.read(receipt)).encode())


@app.command(name="history")
def history_command(
    places: Annotated[
        list[Path], typer.Argument(metavar="PLACE...", help="Receipts, folders, archives (zip, tar), JSON Lines.")
    ],
    out: Annotated[Path, typer.Option(help="The folder of the page and its pictures.")] = Path("build/history"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0 for as many as there are cores.")] = 0,
    verified: Annotated[bool, typer.Option("--verified", help="Recompute each digest; twenty times slower.")] = False,
) -> None:
    """Show drift, speed and memory of many receipts over time, with the places where they changed.

    Writes history.html (one file, no network) and a picture of each kind. Exit codes: 0 written; 2 wrong usage or no
    such place; 5 none of them is a receipt.

    Example: python -m reports history receipts-of-ci.zip
    """
    from reports.history import read
    from reports.history_page import default_workers, write_history

    found = read(places, workers=workers or default_workers(), verified=verified)
    good = int((found.receipts["problem"] == "").sum())
    page, pictures = write_history(found, out)
    print(f"{good} receipts, {len(found.receipts) - good} not read, {len(found.changes)} changes")
    print(f"wrote {len(pictures)} pictures")
    print(f"history: {page}")
    raise typer.Exit(0 if good else 5)


@app.command(name="roofline")
def roofline_command(
    document: Annotated[Path, typer.Argument(help="What `bitnet benchmark … --out` wrote.")],
    out: Annotated[Path, typer.Option(help="The picture, PNG or SVG.")] = Path("build/benchmark/roofline.png"),
) -> None:
    """Draw decode speed against what memory allows."""
    from reports import roofline

    roofline.draw(roofline.read(document), out)
    print(f"wrote {out}")


def main(name: str = "reports") -> None:
    """The command line; a user's mistake is one sentence on standard error, never a traceback.

    Args:
        name: Whom the user called.
    """
    try:
        program.run(name, lambda: app(prog_name="python -m reports"))
    except (receipts.ReceiptError, ReportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
