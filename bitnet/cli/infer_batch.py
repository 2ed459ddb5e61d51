"""`bitnet infer batch`: a file of prompts, answered line by line."""

from __future__ import annotations

import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from bitnet.cli.options import (
    ContextOption,
    Device,
    Format,
    MaxNewTokens,
    ModelOption,
    Output,
    PackedCache,
    Penalty,
    PresetOption,
    Quiet,
    Seed,
    Stop,
    Temperature,
    Threads,
    TokenizerOption,
    TopK,
    TopP,
)
from bitnet.errors import UsageError

_STANDARD_INPUT, _STANDARD_OUTPUT = 0, 1

if TYPE_CHECKING:
    from bitnet.batch_file import Identity, Line
    from bitnet.bitnet_model import BitNetModel


def batch(
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="JSON Lines, a file or a pipe; `-` reads standard input.")
    ],
    answers: Annotated[
        str, typer.Option("--output", "-o", metavar="ANSWERS", help="JSON Lines; `-` writes standard output.")
    ],
    model: ModelOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever the file has.")] = False,
    n_batch: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Prompts evaluated together. Default: BITNET_BATCH_SIZE, else 8."),
    ] = None,
    stop_on_error: Annotated[bool, typer.Option("--stop-on-error", help="Stop before the first bad line.")] = False,
    preset: PresetOption = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop: Stop = None,
    context: ContextOption = None,
    threads: Threads = None,
    device: Device = None,
    tokenizer: TokenizerOption = None,
    packed_cache: PackedCache = True,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Answer a file of prompts, and go on after a kill.

    A line asks {"prompt": TEXT}, {"messages": [...]} or {"ids": [...]}, with an "id" of yours and settings of its own
    if you like. Answers come in the same order, each on the disk before the next is begun. A bad line gets an error for
    an answer, and the command then leaves with 1. Where memory is short it leaves with 6 and goes on there next time.
    """
    from bitnet.batch_file import read_lines
    from bitnet.batch_run import Run
    from bitnet.cli import loading
    from bitnet.cli import output as out
    from bitnet.limits import batch_size

    config = loading.configure(
        preset,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        context=context,
    )
    _check_apart(prompts, answers)
    with ExitStack() as stack:
        source = stack.enter_context(_open(prompts))
        total = sum(1 for _ in read_lines(source))
        source.seek(0)
        loaded = loading.load(
            model, device=device, threads=threads, tokenizer=tokenizer, packed_cache=packed_cache, quiet=quiet
        )
        _check_not_read(answers, loaded)
        run = Run(loaded, config, prompts, n_batch=batch_size(n_batch), stop_on_error=stop_on_error)
        lines = read_lines(source)
        resumed, errors, write = _prepare(stack, answers, lines, run.identity, overwrite=overwrite, quiet=quiet)
        told = loading.tell(loaded, chat=False, quiet=quiet)
        bar = stack.enter_context(out.progress(quiet=quiet, rate="line"))
        task = bar.add_task("answers", total=total, completed=resumed)
        started = time.perf_counter()
        for record in run.answers(lines):
            write(record)
            bar.advance(task)
        loading.tell(loaded, chat=False, quiet=quiet, told=told)
    values = {
        "prompts": total,
        "resumed": resumed,
        "written": run.written,
        "errors": errors + run.errors,
        "tokens": run.tokens,
        "seconds": time.perf_counter() - started,
    }
    if output is Format.json and answers != "-":
        print(out.document("infer-batch-summary-1", values))
    elif not quiet:
        kept = f", {resumed} were there" if resumed else ""
        rate = run.tokens / values["seconds"] if values["seconds"] else 0.0
        wrong = f", {values['errors']} errors" if values["errors"] else ""
        print(f"{run.written} answers written{kept}{wrong}; {run.tokens} tokens ({rate:.1f}/s)", file=sys.stderr)
    if values["errors"]:
        raise typer.Exit(1)


def _open(prompts: str) -> BinaryIO:
    if prompts == "-":
        return io.BytesIO(sys.stdin.buffer.read())
    path = Path(prompts)
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(what, where=path, remedy="give a file of JSON Lines, or `-`")
    if path.is_file():
        return path.open("rb")
    with path.open("rb") as pipe:  # which is read once, and the lines are gone through twice
        return io.BytesIO(pipe.read())


def _check_apart(prompts: str, answers: str) -> None:
    """Refuse answers that would go into the file of prompts, by another name or through a redirection too."""
    if _same(_STANDARD_INPUT if prompts == "-" else prompts, answers):
        raise UsageError("prompts and answers are the same file", where=answers, remedy="name another for the answers")


def _check_not_read(answers: str, model: BitNetModel) -> None:
    """Refuse answers that would go into a file the model is read from: it is mapped while they are written."""
    for path in (*model.gguf.paths, model.discovery.path):
        for file in path.iterdir() if path.is_dir() else (path,):
            if _same(file, answers):
                raise UsageError("the model is read from it", where=answers, remedy="name another for the answers")


def _same(source: str | Path | int, answers: str) -> bool:
    """Whether two names, or numbers of open files, are of one regular file."""
    try:
        target = _STANDARD_OUTPUT if answers == "-" else answers
        found, there = os.stat(source), os.stat(target)  # noqa: PTH116  # of numbers, too
    except (OSError, ValueError):  # one is not there, or no path; who opens it says so
        return False
    return os.path.samestat(found, there) and stat.S_ISREG(there.st_mode)


def _prepare(
    stack: ExitStack, answers: str, lines: Iterator[Line], identity: Identity, *, overwrite: bool, quiet: bool
) -> tuple[int, int, Callable[[dict[str, Any]], None]]:
    """Answers that are there already, errors among them, and what writes the next."""
    from bitnet.batch_file import Journal, encode
    from bitnet.cli.output import note

    if answers == "-":

        def write(record: dict[str, Any]) -> None:
            sys.stdout.buffer.write(encode(record))  # the bytes that a file would have, whatever the terminal's are
            sys.stdout.buffer.flush()

        return 0, 0, write
    journal = stack.enter_context(Journal(Path(answers), overwrite=overwrite))
    journal.resume(lines, identity)
    if journal.cut and not quiet:
        note(f"{answers}: the last line was half written; its {journal.cut} bytes are cut off")
    if journal.done and not quiet:
        note(f"{answers}: {journal.done} answers are there; going on after them")
    return journal.done, journal.failed, journal.append
