"""`bitnet convert`: one model from one form to another."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

_TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that a signal ended


def convert(
    source: Annotated[Path, typer.Argument(help="GGUF file, or folder of a Hugging Face checkpoint.")],
    target: Annotated[Path, typer.Argument(help="File to write; a folder for --to hf.")],
    to: Annotated[str, typer.Option(help="i2_s, tq1_0, tq2_0, f16, f32 (GGUF), or hf (packed safetensors).")],
    arch: Annotated[str | None, typer.Option(help="Another architecture name in the GGUF, of the same graph.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the target if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no notes.")] = False,
) -> None:
    """Convert a model; every weight is compared with its source before the target appears.

    Example: python -m bitnet convert fixtures/models/tiny-relu2.i2_s.gguf tiny-relu2 --to hf
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from bitnet.convert import convert as run

    signal.signal(signal.SIGTERM, _leave)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<6}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[tensor]}"), console=console, disable=quiet) as bar:
        tasks = {stage: bar.add_task(stage, total=None, tensor="") for stage in ("write", "verify")}

        def show(stage: str, done: int, total: int, name: str) -> None:
            bar.update(tasks[stage], completed=done, total=total, tensor=name)

        result = run(source, target, to, arch=arch, force=force, progress=show)
        for task in tasks.values():
            bar.update(task, completed=result.n_tensors, total=result.n_tensors, tensor="")
    print(
        f"{result.target}: {result.arch}, {result.n_tensors} tensors, {result.n_bytes / 1e6:.1f} MB, "
        f"{result.n_verified} weights read back and equal, {'lossless' if result.lossless else 'not lossless'}"
    )
    if not quiet:
        for loss in _shortened(result.losses):
            print(f"loss: {loss}", file=sys.stderr)
        for notice in result.notices:
            print(f"note: {notice}", file=sys.stderr)


def _shortened(losses: tuple[str, ...]) -> tuple[str, ...]:
    """The first few; a model has hundreds of matrices."""
    return losses if len(losses) <= 3 else (*losses[:2], f"… and {len(losses) - 2} more tensors likewise")


def _leave(_number: int, _frame: FrameType | None) -> None:
    """A polite kill unwinds, so that what is half made is removed."""
    sys.exit(_TERMINATED)
