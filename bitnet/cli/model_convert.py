"""`bitnet model convert`: one model from one form to another."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.options import Format, Output, Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from bitnet.convert import Conversion, Progress

_POLITE = (signal.SIGTERM, signal.SIGHUP)  # somebody asks, or the terminal goes away
_SHOWN = 3  # losses that people are shown; the JSON document has them all


class Type(StrEnum):
    """What a model can be converted to."""

    i2_s = "i2_s"
    tl1 = "tl1"
    tl2 = "tl2"
    tq1_0 = "tq1_0"
    tq2_0 = "tq2_0"
    f16 = "f16"
    f32 = "f32"
    hf = "hf"
    hf_bitlinear = "hf-bitlinear"
    hf_bf16 = "hf-bf16"


class EmbeddingType(StrEnum):
    """What an embedding and a head can be."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


def convert(
    source: Annotated[Path, typer.Argument(help="GGUF file, or folder of a Hugging Face checkpoint.")],
    target: Annotated[Path, typer.Argument(help="File to write; a folder for hf, hf-bitlinear and hf-bf16.")],
    type: Annotated[  # noqa: A002  # the flag
        Type,
        typer.Option(
            "--type",
            "-t",
            help="Of the projections in a GGUF; or a checkpoint: hf keeps every scale, others may round.",
        ),
    ],
    embedding_type: Annotated[
        EmbeddingType | None, typer.Option(help="Of the embedding and the head in a GGUF. Default: as they are.")
    ] = None,
    kernel_config: Annotated[
        Path | None, typer.Option(help="kernel_config.ini of the bitnet.cpp build that will read a tl1 or tl2 file.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Another architecture name in the GGUF, of the same graph.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file, or a folder that holds a checkpoint alone.")
    ] = False,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Convert a model, and compare every weight with its source. Only then does the target appear."""
    from bitnet.cli.output import document, note
    from bitnet.convert import convert as run

    with _polite_kills(), _shown(quiet=quiet) as progress:
        done = run(
            source,
            target,
            type=type.value,
            embedding_type=embedding_type.value if embedding_type else None,
            kernel_config=kernel_config,
            arch=arch,
            force=force,
            progress=progress,
        )
    if output is Format.json:
        print(document("model-convert-1", done.to_dict()))
        return
    print(_summary(done))
    if not quiet:
        for notice in done.notices:
            note(notice)


def _summary(done: Conversion) -> str:
    """What people read: what it became, whether every weight is the same, and which are not."""
    megabytes = done.n_bytes / 1e6
    lines = [
        f"{done.target}: {done.arch}, {done.type}, {len(done.tensors)} tensors, {megabytes:.1f} MB",
        f"{done.n_verified} weights read back and compared, {done.seconds:.1f} s, {megabytes / done.seconds:.0f} MB/s",
        "lossless: every weight is the source's, to the bit" if done.lossless else "not lossless:",
        *(f"  {loss}" for loss in done.losses[:_SHOWN]),
    ]
    if len(done.losses) > _SHOWN:
        lines.append(f"  … and {len(done.losses) - _SHOWN} more tensors (--format json lists them)")
    return "\n".join(lines)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress]:
    """Two bars on stderr, with rate and time left; none where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description:<6}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[tensor]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        tasks = {stage: bar.add_task(stage, total=None, start=False, tensor="") for stage in ("write", "verify")}

        def progress(stage: str, n_done: int, total: int, name: str) -> None:
            if stage == "verify":
                bar.update(tasks["write"], completed=total, total=total, tensor="")
            bar.start_task(tasks[stage])
            bar.update(tasks[stage], completed=n_done, total=total, tensor=name)

        yield progress


@contextmanager
def _polite_kills() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in _POLITE}
    taken = [s for s in _POLITE if before[s] != signal.SIG_IGN]  # a run under nohup outlives its terminal
    try:
        for s in taken:
            signal.signal(s, _leave)
        yield
    finally:
        for s in taken:
            signal.signal(s, before[s])


def _leave(number: int, _frame: FrameType | None) -> None:
    """A polite kill unwinds, so that what is half made is removed."""
    sys.exit(128 + number)
