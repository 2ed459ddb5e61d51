"""`bitnet model list`: the models that are here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitnet.cli.options import Format, Output, Quiet


def list_models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Default: the current folder, the Hub's cache, and BITNET_GGUF."),
    ] = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """List the model files that are on this machine."""
    from bitnet.cli import output as out
    from bitnet.errors import UsageError
    from bitnet.inventory import find_models

    for folder in folders or ():
        if not folder.exists():
            raise UsageError("there is no such folder", where=folder, remedy="check the path")
    found = find_models(folders or ())
    if output is Format.json:
        print(out.document("model-list-1", {"models": [f.to_dict() for f in found]}))
        return
    rows = [
        (
            f.path if f.repo is None else f"{f.repo}: {Path(f.path).name}",
            f.arch or "?",
            f.weight_type or "?",
            out.megabytes(f.n_bytes),
            f.tokenizer or "?",
            "yes" if f.loadable else "no",
        )
        for f in found
    ]
    if rows:
        out.table(("model", "arch", "weights", "size", "tokenizer", "loads"), rows, right=(3,))
    elif not quiet:
        out.note("no model was found; `bitnet model download` fetches one")
    for f in found:
        if f.fault is not None and not quiet:
            out.note(f"{f.path}: {f.fault}")
