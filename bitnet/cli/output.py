"""What commands print: tables that stay readable at 80 columns and in a pipe, JSON documents, notes, progress.

Results go to stdout, everything else to stderr. A JSON document is one line or many, but alone on stdout, and names its
schema; a failed command prints one too (`schemas/error-1.schema.json`).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitnet.errors import BitNetError

if TYPE_CHECKING:
    from rich.progress import Progress

_UNLIMITED = 10_000  # columns of a table that no terminal cuts


def document(schema: str, values: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """A JSON document that names its schema, `schemas/<schema>.schema.json`."""
    named = {"schema": f"urn:bitnet-crossval:{schema}", **values}
    return json.dumps(named, indent=indent, ensure_ascii=False, allow_nan=False)


def error_fields(error: BitNetError, code: int | None = None) -> dict[str, Any]:
    """An error as plain values; `code` is the exit code where that is not the error's own."""
    return error.to_dict() | ({} if code is None else {"exit_code": code})


def error_document(error: BitNetError, code: int) -> str:
    """What a failed command prints where JSON was asked for, on one line."""
    return document("error-1", error_fields(error, code), indent=None)


def visible(text: str) -> str:
    """A text out of a file, its controls and direction marks as JSON escapes them: none moves the cursor or hides."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def note(text: str) -> None:
    """A line beside the result."""
    print(f"note: {visible(text)}", file=sys.stderr)


def facts(rows: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line; the values of several lines hang under the first."""
    pairs = list(rows.items() if isinstance(rows, Mapping) else rows)
    table((), pairs)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Rows under their heads, without lines around them.

    Args:
        columns: Heads; none for a table without.
        rows: Cells. Text too long for the terminal goes on below, in its column; in a pipe a row is a line.
        right: Columns that are set to the right, as numbers are.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _UNLIMITED
    made = io.StringIO()  # not stdout: rich takes a reader who has left for a failure
    console = Console(file=made, highlight=False, width=width, force_terminal=terminal)
    style = "" if os.environ.get("NO_COLOR") else "bold"
    shown = Table(box=None, pad_edge=False, show_header=bool(columns), header_style=style)
    for i in range(len(columns) or len(rows[0]) if rows else len(columns)):
        shown.add_column(
            columns[i] if columns else "",
            justify="right" if i in right else "left",
            overflow="fold",
            no_wrap=i == 0 and not columns,
        )
    for row in rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    console.print(shown)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in made.getvalue().splitlines()))


def megabytes(n: int) -> str:
    """A size for people."""
    if n < 1_000_000:
        return f"{n / 1e3:.1f} kB"
    return f"{n / 1e6:.1f} MB" if n < 1_000_000_000 else f"{n / 1e9:.2f} GB"


@contextmanager
def progress(*fields: str, quiet: bool, rate: str | None = None) -> Iterator[Progress]:
    """A bar on stderr with time spent and left; nothing is shown where that is no terminal, or `quiet`.

    Args:
        fields: Names of texts that are shown behind it.
        quiet: Show nothing.
        rate: Unit of the rate; None shows none.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} {rate}/s" if task.speed else "")

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    if rate is not None:
        columns.append(Rate())
    columns += [TextColumn("{task.fields[" + name + "]}") for name in fields]
    hidden = quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb"
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        yield bar
