"""`bitnet model verify`: is this file whole, and is it what it says it is?"""

from __future__ import annotations

import typer

from bitnet.cli.options import Format, ModelArgument, Output, model_named
from bitnet.errors import ModelFileError


def verify(model: ModelArgument = None, output: Output = Format.human) -> None:
    """Examine a model: header, tokenizer, every weight. Leaves with 3 if it cannot be used."""
    from bitnet.cli.output import document
    from bitnet.validate import verify as examine

    report = examine(model_named(model))
    print(document("model-verify-1", report.to_dict()) if output is Format.json else report)
    if not report.ok:
        raise typer.Exit(ModelFileError.exit_code)
