"""`bitnet model convert`: one model from one form to another."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.options import Format, Output, Quiet

if TYPE_CHECKING:
    from bitnet.convert import Conversion

_TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that a signal ended


def convert(
    source: Annotated[Path, typer.Argument(help="GGUF file, or folder of a Hugging Face checkpoint.")],
    target: Annotated[Path, typer.Argument(help="File to write; a folder for --to hf.")],
    to: Annotated[str, typer.Option(help="i2_s, tl1, tl2, tq1_0, tq2_0, f16, f32 (GGUF), or hf (packed safetensors).")],
    arch: Annotated[str | None, typer.Option(help="Another architecture name in the GGUF, of the same graph.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the target if it exists.")] = False,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Convert a model, and compare every weight with its source. Only then does the target appear."""
    from bitnet.cli import output as out
    from bitnet.convert import convert as run

    with _polite_kills(), out.progress("tensor", quiet=quiet) as bar:
        tasks = {stage: bar.add_task(f"{stage:<6}", total=None, tensor="") for stage in ("write", "verify")}

        def show(stage: str, done: int, total: int, name: str) -> None:
            bar.update(tasks[stage], completed=done, total=total, tensor=name)

        result = run(source, target, to, arch=arch, force=force, progress=show)
        for task in tasks.values():
            bar.update(task, completed=result.n_tensors, total=result.n_tensors, tensor="")
    if output is Format.json:
        print(out.document("model-convert-1", result.to_dict()))
    else:
        _print(result, quiet=quiet)


def _print(result: Conversion, *, quiet: bool) -> None:
    from bitnet.cli.output import megabytes, note

    print(
        f"{result.target}: {result.arch}, {result.n_tensors} tensors, {megabytes(result.n_bytes)}, "
        f"{result.n_verified} weights read back and equal, {'lossless' if result.lossless else 'not lossless'}"
    )
    if not quiet:
        for loss in _shortened(result.losses):
            print(f"loss: {loss}", file=sys.stderr)
        for notice in result.notices:
            note(notice)


def _shortened(losses: tuple[str, ...]) -> tuple[str, ...]:
    """The first few; a model has hundreds of matrices."""
    return losses if len(losses) <= 3 else (*losses[:2], f"… and {len(losses) - 2} more tensors likewise")


@contextmanager
def _polite_kills() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """A polite kill unwinds, so that what is half made is removed."""
    sys.exit(_TERMINATED)
