"""The application, and the arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from receipts.formats import Format

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Check the receipts of cross-validated inference runs. Needs no compiler and no network; only `replay` needs "
    "an engine.",
)

DEFAULT = Path("ci/inference.json")
ReceiptPath = Annotated[
    Path, typer.Argument(metavar="RECEIPT", help="The receipt; its side files lie in rows/ beside it.")
]
FormatOption = Annotated[
    Format, typer.Option("--format", help="A table for people; JSON, JUnit XML, GitHub annotations or SARIF for CI.")
]
PolicyOption = Annotated[str, typer.Option(help="A policy file, or the name of a shipped one: strict, release.")]
EveryOption = Annotated[bool, typer.Option("--all", help="Show the checks that passed, too.")]
ModelOption = Annotated[
    list[Path] | None,
    typer.Option(help="A model file, or a folder of some; may be repeated. A checkout's own are found anyway."),
]
CasesOption = Annotated[int, typer.Option(min=0, help="How many cases to compute again; 0 for all.")]
NonceOption = Annotated[
    str, typer.Option(help="What decides which cases, together with the digest; drawn afresh unless given.")
]
