"""The commands that show: explain, badge, diff, history."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from receipts.cli.app import DEFAULT, PolicyOption, ReceiptPath, app


class Form(StrEnum):
    """How to print what is no verdict."""

    TABLE = "table"
    JSON = "json"


FormOption = Annotated[Form, typer.Option("--format", help="For people, or JSON.")]
#: Rows of a table on a console; JSON has all of them.
MAX_SHOWN = 200


@app.command("explain")
def explain_command(
    path: ReceiptPath = DEFAULT, policy: PolicyOption = "strict", output: FormOption = Form.TABLE
) -> None:
    """Say in sentences what a receipt proves, and what it does not.

    Exit codes: 0 explained; 1 the gate failed; 2 wrong usage or no such file; 5 the receipt is invalid.

    Example: python -m receipts explain ci/inference.json
    """
    from receipts.explain import explain
    from receipts.formats.table import console, plain
    from receipts.policy import read_policy
    from receipts.verify import verify

    report = verify(path, policy=read_policy(policy))
    sections = explain(report)
    if output is Form.JSON:
        _json([asdict(section) for section in sections])
    else:
        for section in sections:
            console().print(section.title, style="bold", markup=False)
            for sentence in section.sentences:
                console().print(f"  · {plain(sentence)}")
    raise typer.Exit(report.exit_code)


@app.command("badge")
def badge_command(
    path: ReceiptPath = DEFAULT,
    out: Annotated[Path, typer.Option(help="The picture, SVG.")] = Path("build/badge.svg"),
    policy: PolicyOption = "strict",
    label: Annotated[str, typer.Option(help="What stands on its left.")] = "cross-validation",
) -> None:
    """Draw a badge of a receipt that is verified and gated now; an invalid or failed one has a badge that says so.

    Exit codes: 0 passed; 1 the gate failed; 2 wrong usage or no such file; 5 the receipt is invalid. The badge is
    written in each case.

    Example: python -m receipts badge ci/inference.json --out badge.svg
    """
    from receipts.badge import badge
    from receipts.errors import SettingError
    from receipts.policy import read_policy
    from receipts.verify import verify
    from receipts.write import replace_file

    report = verify(path, policy=read_policy(policy))
    try:
        replace_file(out, badge(report, label=label).encode())
    except OSError as error:
        raise SettingError(f"cannot be written ({error.strerror})", file=str(out)) from None
    print(f"wrote {out}")
    raise typer.Exit(report.exit_code)


@app.command("diff")
def diff_command(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A receipt.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another.")],
    output: FormOption = Form.TABLE,
) -> None:
    """Show what changed between two receipts: outcomes, measured values, digests, models, speed beside the peer.

    Exit codes: 0 they found the same, if on another day or elsewhere; 1 they did not; 2 wrong usage or no
    such file; 5 one of them is invalid.

    Example: python -m receipts diff baseline.json ci/inference.json
    """
    from rich.table import Table

    from receipts.diff import diff
    from receipts.errors import ReceiptError
    from receipts.formats.table import console, plain
    from receipts.verify import verify

    read = []
    for path in (before, after):
        report = verify(path, gate=False)
        if report.receipt is None or not report.valid:
            first = report.failures[0]
            raise ReceiptError(f"is invalid: {first.message}", path=first.path, file=str(path))
        read.append(report.receipt)
    changes = diff(*read)
    if output is Form.JSON:
        _json([asdict(change) for change in changes])
    else:
        table = Table(header_style="bold")
        for name in ("part", "what", "before", "after"):
            table.add_column(name, overflow="fold")
        for change in changes[:MAX_SHOWN]:
            table.add_row(*map(plain, (change.part, change.what, change.before, change.after)))
        console().print(table if changes else "No difference.")
        if len(changes) > MAX_SHOWN:
            console().print(f"{len(changes) - MAX_SHOWN} more (--format json lists them)")
    raise typer.Exit(1 if any(change.decides for change in changes) else 0)


@app.command("history")
def history_command(
    places: Annotated[list[Path], typer.Argument(metavar="PLACE...", help="Receipts, folders, archives, JSON Lines.")],
    output: FormOption = Form.TABLE,
) -> None:
    """List many receipts, oldest first: commit, machine, what passed, decoding speed beside the peer.

    Exit codes: 0 listed; 2 wrong usage or no such place; 5 none of them is a receipt.

    Example: python -m receipts history receipts-of-ci/
    """
    from rich.table import Table

    from receipts.formats.table import console, plain
    from receipts.history import history, to_json

    entries = history(places)
    if output is Form.JSON:
        sys.stdout.buffer.write(to_json(entries).encode("utf-8", "replace"))
    else:
        table = Table(header_style="bold")
        for name in ("time", "commit", "parity", "lanes", "decode ×", "machine", "file"):
            table.add_column(name, overflow="fold")
        for entry in entries:
            lanes = f"{entry.passed}+{entry.deviations}/{entry.required}"
            speed = "" if entry.decode is None else f"{entry.decode:.2f}"
            cells = (entry.timestamp, entry.commit, entry.parity, lanes, speed, entry.machine, entry.file)
            if entry.problem:
                cells = ("", "", "unreadable", "", "", entry.problem, entry.file)
            table.add_row(*map(plain, cells))
        console().print(table)
    raise typer.Exit(0 if any(not entry.problem for entry in entries) else 5)


def _json(data: object) -> None:
    sys.stdout.buffer.write((json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "replace"))
