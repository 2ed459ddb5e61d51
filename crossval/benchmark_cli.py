"""`bitnet benchmark`: make a model of any shape, measure this engine, compare it with llama.cpp, draw the roofline."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.groups import examples, group
from bitnet.cli.options import Format, Output, Quiet

if TYPE_CHECKING:
    from crossval.benchmark import Row, Task

app = group(
    "Measure speed: decode and prefill, against llama.cpp on the same weights, and against the machine's memory.",
    examples("bitnet benchmark run --model fixtures/models/tiny-relu2.i2_s.gguf --decode 8 --prefill 32 --repeats 2"),
)

HISTORY = Path("build/benchmark/history.jsonl")
_SLOWER = 1  # the exit code of a regression
_UNJUDGED = 4  # and of too few earlier runs to tell one

_LIST = "N[,N…]"


class HeadChoice(StrEnum):
    """How our output head is read."""

    screened = "screened"
    full = "full"


ModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", help="GGUF file, I2_S. Default: --shape.", envvar="BITNET_GGUF")
]
ShapeOption = Annotated[str | None, typer.Option(help="Make (once) and measure a model of this shape: see `make`.")]
Threads = Annotated[list[str] | None, typer.Option(metavar=_LIST, help="Such as 1,2. Default: the physical cores.")]
Decode = Annotated[int, typer.Option(min=1, help="Tokens decoded one at a time.")]
Prefill = Annotated[list[str] | None, typer.Option(metavar=_LIST, help="Tokens of a prompt, such as 32,512.")]
Position = Annotated[list[str] | None, typer.Option(metavar=_LIST, help="Decode after so many tokens: 0,1000.")]
Batch = Annotated[list[str] | None, typer.Option(metavar=_LIST, help="Sequences decoded together, such as 4,8.")]
HeadOption = Annotated[
    HeadChoice,
    typer.Option("--head", help="Our output head: by its bounds, as users do, or all of it, as others do."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed rounds, after one to warm up.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Also write the JSON document here.")]
Folder = Annotated[Path, typer.Option(help="For models that are made and copies in other types.")]


@app.command(epilog=examples("bitnet benchmark make --shape tiny build/benchmark/tiny.gguf --force"))
def make(
    target: Annotated[Path, typer.Argument(help="The GGUF to write.")],
    shape: Annotated[str, typer.Option(help="tiny, 0.7b, 2b-4t, falcon3-7b or llama3-8b.")] = "2b-4t",
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same file.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model of a shape, with made-up weights, to measure."""
    from bitnet.errors import UsageError

    if target.exists() and not force:
        raise UsageError("exists already", where=target, remedy="choose another name, or replace it with --force")
    _make(target, shape, seed, quiet=quiet)
    print(f"{target}: {shape}, {target.stat().st_size / 1e6:.1f} MB")


@app.command(
    epilog=examples("bitnet benchmark run --shape tiny --decode 8 --prefill 32 --repeats 2 --threads 1 --threads 2")
)
def run(
    model: ModelOption = None,
    shape: ShapeOption = None,
    threads: Threads = None,
    decode: Decode = 128,
    prefill: Prefill = None,
    position: Position = None,
    batch: Batch = None,
    head: HeadOption = HeadChoice.screened,
    repeats: Repeats = 5,
    folder: Folder = Path("build/benchmark"),
    out: OutOption = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Measure this engine alone."""
    file = _model(model, shape, folder, quiet=quiet)
    tasks = _tasks(threads, decode, prefill, position, batch)
    _measure(file, tasks, repeats, head, None, out, quiet=quiet, output=output)


@app.command(epilog=examples("bitnet benchmark compare --shape tiny --decode 8 --prefill 32 --repeats 2"))
def compare(
    model: ModelOption = None,
    shape: ShapeOption = None,
    threads: Threads = None,
    decode: Decode = 128,
    prefill: Prefill = None,
    position: Position = None,
    head: HeadOption = HeadChoice.screened,
    repeats: Repeats = 5,
    folder: Folder = Path("build/benchmark"),
    out: OutOption = None,
    history: Annotated[Path, typer.Option(help="Ratios are appended here.")] = HISTORY,
    gate: Annotated[
        float | None,
        typer.Option(help="Fail if a ratio is this share below its median on this machine: 0.1."),
    ] = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Measure this engine and llama.cpp (TQ2_0 and TQ1_0 copies of the same weights) in turn.

    A ratio that --gate finds slower is entered as such, and later medians leave it out; one that was made without
    --gate counts as it is, so a few such runs make another speed the usual one. A gate needs 3 earlier runs.

    Exit codes: 1 slower than the gate allows; 4 llama.cpp cannot run here, or a gate has too few earlier runs.
    """
    from bitnet.errors import UsageError
    from crossval.benchmark_history import History

    if gate is not None and not 0 <= gate < 1:  # NaN is neither
        raise UsageError(f"is {gate}", where="--gate", remedy="a share from 0 up, below 1, such as 0.1")
    earlier = History(history)
    file = _model(model, shape, folder, quiet=quiet)
    tasks = _tasks(threads, decode, prefill, position, None)
    found = _measure(file, tasks, repeats, head, folder, out, quiet=quiet, output=output)
    verdict = earlier.enter(file.name, found, gate, head.value)
    for line in verdict.slower:
        print(f"slower: {line}", file=sys.stderr)
    for line in verdict.unjudged:
        print(f"gate: {line}", file=sys.stderr)
    if verdict.slower or verdict.unjudged:
        raise typer.Exit(_SLOWER if verdict.slower else _UNJUDGED)


@app.command(
    epilog=examples("bitnet benchmark roofline build/benchmark/example.json --out build/benchmark/roofline.png")
)
def roofline(
    document: Annotated[Path, typer.Argument(help="What `run` or `compare` wrote with --out.")],
    out: Annotated[Path, typer.Option(help="The picture, PNG or SVG.")] = Path("build/benchmark/roofline.png"),
) -> None:
    """Draw decode speed against what memory allows."""
    import subprocess

    # Pictures are made by `reports`, which sees documents and nothing else.
    program = "from reports.__main__ import main; main('bitnet')"
    command = [sys.executable, "-c", program, "roofline", "--out", os.fspath(out), "--", os.fspath(document)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603  # our own module


def _model(model: Path | None, shape: str | None, folder: Path, *, quiet: bool) -> Path:
    from bitnet.errors import UsageError

    if shape is None:
        if model is None:
            raise UsageError("no model is named", remedy="give --model, --shape, or set BITNET_GGUF")
        return model
    target = folder / f"{shape}.gguf"
    if not target.exists():
        _make(target, shape, 0, quiet=quiet)
    return target


def _make(target: Path, name: str, seed: int, *, quiet: bool) -> None:
    from bitnet.cli.output import progress
    from bitnet.errors import UsageError
    from bitnet.synthetic import SHAPES
    from bitnet.synthetic import make as write

    if name not in SHAPES:
        raise UsageError(f"no shape {name!r}", remedy=f"one of {', '.join(SHAPES)}")
    with progress(quiet=quiet) as bar:
        task = bar.add_task(f"making {name}", total=None)
        write(target, SHAPES[name], seed=seed, done=lambda done, total: bar.update(task, completed=done, total=total))


def _numbers(given: list[str] | None, option: str, least: int, default: list[int]) -> list[int]:
    """The numbers of an option that takes several: after commas, repeated, or both."""
    from bitnet.errors import UsageError

    texts = [text.strip() for many in given or () for text in many.split(",")]
    for text in texts:
        if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < least:
            raise UsageError(
                f"is {text!r}", where=option, remedy=f"numbers from {least} up, such as {least},{least + 1}"
            )
    return list(dict.fromkeys(map(int, texts))) or default


def _tasks(
    threads: list[str] | None,
    decode: int,
    prefill: list[str] | None,
    position: list[str] | None,
    batch: list[str] | None,
) -> list[Task]:
    from bitnet.api import default_threads
    from crossval.benchmark import Task

    positions = _numbers(position, "--position", 0, [0])
    prompts, batches = _numbers(prefill, "--prefill", 1, [512]), _numbers(batch, "--batch", 1, [])
    tasks = []
    for n in _numbers(threads, "--threads", 1, [default_threads()]):
        tasks += [Task(what="decode", tokens=decode, position=at, threads=n) for at in positions]
        tasks += [Task(what="decode", tokens=decode, threads=n, batch=b) for b in batches if b > 1]
        tasks += [Task(what="prefill", tokens=tokens, threads=n) for tokens in prompts]
    return tasks


def _measure(
    file: Path,
    tasks: list[Task],
    repeats: int,
    head: HeadChoice,
    copies: Path | None,
    out: Path | None,
    *,
    quiet: bool,
    output: Format,
) -> list[Row]:
    """Time, print, write; against llama.cpp where there is a folder for copies."""
    import json

    from bitnet.cli.output import progress
    from bitnet.kernels.bandwidth import measure
    from crossval.benchmark import Engine, alternate
    from crossval.benchmark_document import document, show
    from crossval.benchmark_engines import LlamaCpp, Ours, check, peers

    check(file, tasks)
    engines: list[Engine] = [Ours(file, tasks, head.value), *(peers(file, copies) if copies is not None else [])]
    with progress(quiet=quiet) as bar:
        task = bar.add_task("", total=None)
        try:
            rows = alternate(
                engines,
                tasks,
                repeats,
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
                memory=lambda n: measure(n, trials=2),
            )
        finally:
            for engine in engines:
                if isinstance(engine, LlamaCpp):
                    engine.close()
    made = document(file, rows, head.value)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    if output is Format.json:
        print(json.dumps(made, indent=2))
    else:
        show(rows, head.value)
    return rows
