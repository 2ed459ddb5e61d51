"""Options that several commands share, spelled once, and what they stand for."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bitnet.errors import UsageError
from bitnet.limits import MOST_THREADS


class Format(StrEnum):
    """How a report is printed."""

    human = "human"
    json = "json"


class Context(StrEnum):
    """What happens when the model's context is full."""

    stop = "stop"
    slide = "slide"


class Preset(StrEnum):
    """Settings of the sampler under one name."""

    greedy = "greedy"
    balanced = "balanced"
    creative = "creative"


Output = Annotated[Format, typer.Option("--format", help="For people, or one JSON document for programs.")]
LookaheadOption = Annotated[
    bool | None,
    typer.Option("--lookahead/--no-lookahead", help="Guess tokens from what was said; the text is the same."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
ModelArgument = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="GGUF file, any shard of one, or checkpoint folder.", envvar="BITNET_GGUF"),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="GGUF file, checkpoint folder, or owner/name.", envvar="BITNET_GGUF"
    ),
]
TokenizerOption = Annotated[
    Path | None,  # the variable is read by the search itself, which says so
    typer.Option("--tokenizer", help="tokenizer.json, tokenizer.model or GGUF. Default: BITNET_TOKENIZER, else found."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_THREADS, help="Default: BITNET_NUM_THREADS, else the physical cores. Results do not change."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu (compiled kernels) or plain (numpy). Default: BITNET_DEVICE.")]
PackedCache = Annotated[
    bool,
    typer.Option("--packed-cache/--no-packed-cache", help="Keep packed weights for the next start, and use them."),
]
PresetOption = Annotated[Preset | None, typer.Option("--preset", help="Settings of the sampler that go together.")]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", min=0, help="At most this many tokens. Default: 128.")
]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 always takes the most likely token.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Keep the k most likely tokens; 0 keeps all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the smallest set of tokens with this probability.")]
Penalty = Annotated[float | None, typer.Option(help="Above 1 discourages tokens already seen.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the sampler.", envvar="BITNET_SEED")]
ContextOption = Annotated[
    Context | None, typer.Option("--context", help="Where it is full: stop, or slide on, forgetting the oldest tokens.")
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")]


def model_named(model: Path | str | None) -> Path:
    """The model that is meant. Raises `UsageError` if none is."""
    if model is None or not str(model):
        raise UsageError("no model is named", remedy="give a path, or set BITNET_GGUF")
    return Path(model)
