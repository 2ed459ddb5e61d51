"""`bitnet verify`: is this file whole, and is it what it says it is?"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bitnet.errors import ModelFileError


class Format(StrEnum):
    """How the report is printed."""

    human = "human"
    json = "json"


def verify(
    model: Annotated[Path | None, typer.Argument(help="GGUF file, or any shard of one.", envvar="BITNET_GGUF")] = None,
    format: Annotated[Format, typer.Option(help="For people, or for programs.")] = Format.human,  # noqa: A002  # the flag
) -> None:
    """Examine a model file: container, hyper-parameters, tokenizer, every weight. Leaves with 3 if it cannot be used.

    Example: python -m bitnet verify fixtures/models/tiny-relu2.i2_s.gguf
    """
    from bitnet.errors import UsageError
    from bitnet.validate import verify as examine

    if model is None:
        raise UsageError("no model is named", remedy="give a path, or set BITNET_GGUF")
    report = examine(model)
    print(json.dumps(report.to_dict(), indent=2) if format is Format.json else report)
    if not report.ok:
        sys.exit(ModelFileError.exit_code)
