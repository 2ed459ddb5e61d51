"""`python -m crossval record` and `quality`: parse, call, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitnet.errors import UsageError
from reference.runner import Runner

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
MODELS = Annotated[
    list[Path] | None,
    typer.Option(help="A GGUF file of your own, instead of the shipped models; may be repeated. Default: BITNET_GGUF."),
]
HF = Annotated[
    bool | None, typer.Option("--hf/--no-hf", help="Whether to ask transformers. Default: where it is installed.")
]
BITNET_CPP = Annotated[
    Path | None, typer.Option("--bitnet-cpp", envvar="BITNET_CPP_DIR", help="Tree of bitnet.cpp with its build inside.")
]
RECORDINGS = Annotated[
    list[Path] | None, typer.Option("--recording", help="A file of `record`, to be replayed; may be repeated.")
]


def models_of(given: list[Path] | None) -> tuple[Path, ...]:
    """Those named, else BITNET_GGUF, else none."""
    declared = os.environ.get("BITNET_GGUF")
    return tuple(given or ([Path(declared)] if declared else []))


def hf_wanted(asked: bool | None) -> bool:
    """Whether transformers is asked: as told, else where it is installed."""
    from reference.hf import installed

    return installed() if asked is None else asked


def record(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    only: Annotated[str, typer.Option(help="The lane: its name, or a part that no other has.")],
    model: MODELS = None,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    work: Annotated[Path, typer.Option(help="Folder for transcoded copies.")] = Path("build/crossval"),
) -> None:
    """Climb one lane and keep everything its reference answers, to be replayed where that reference is not installed.

    Exit codes: 0 recorded; 2 wrong usage; 4 the reference is missing or answered nothing.

    Example: python -m crossval record relu2.recording --only "tiny-relu2 · transformers BitLinear"
    """
    from crossval.live import Live
    from crossval.record import record as keep
    from crossval.run import Options

    live = Live(hf=hf_wanted(hf), bitnet_cpp=bitnet_cpp)
    options = Options(
        fixtures=FIXTURES, models=models_of(model), only=only, receipt=out, work=work, measure=False, live=live
    )
    done = keep(options, out, lambda _: None)
    size = f"{done.n_requests} computations, {done.n_bytes / 1e6:.1f} MB"
    print(f"wrote {out}: {size}; {done.lane.name}: {done.lane.outcome}")


def quality(
    model: Annotated[Path, typer.Argument(help="GGUF file.")],
    text: Annotated[Path | None, typer.Option(help="UTF-8 text. Default: the shipped one, or that of --base.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="Log-probabilities to compare with, as llama-perplexity keeps.")
    ] = None,
    save_base: Annotated[Path | None, typer.Option(help="Write log-probabilities, as llama-perplexity reads.")] = None,
    reference: Annotated[
        str, typer.Option(help="Who computes: bitnet (this engine), llama.cpp, bitnet.cpp or transformers.")
    ] = "bitnet",
    n_ctx: Annotated[int, typer.Option(min=4, help="Tokens of a chunk; the second half of each is scored.")] = 128,
    chunks: Annotated[int | None, typer.Option(min=1, help="At most so many chunks.")] = None,
) -> None:
    """Measure perplexity on a text and, against a base, KL divergence, Δp and how often the likeliest token agrees.

    Exit codes: 0 measured; 2 wrong usage; 3 bad model file; 4 the reference is missing or died.

    Example: python -m crossval quality model.gguf --base base.kld
    """
    from crossval import kld_file
    from crossval.engine import EngineRunner
    from crossval.quality_run import evaluate, text_chunks

    engine = EngineRunner(model)
    tokenizer = engine.model.tokenizer
    if base is not None and text is None:
        tokens = kld_file.read_header(base).tokens
        tokens = tokens if chunks is None or save_base is None else tokens[:chunks]
    else:
        source = text or FIXTURES / "texts" / "heldout.txt"
        try:
            content = source.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot be read: {error}", where=source, remedy="name a UTF-8 text with --text"
            ) from error
        tokens = text_chunks(tokenizer.encode(content), n_ctx, chunks)
    runner = _runner(reference, model, engine)
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("evaluating", total=len(tokens))
            found = evaluate(
                runner,
                tokens,
                bos=tokenizer.bos_id if tokenizer.add_bos else None,
                base=base,
                save=save_base,
                progress=lambda done, total: progress.update(
                    task, completed=done, description=f"{done}/{total} chunks"
                ),
            )
    finally:
        runner.close()
    table = Table("measure", "value", title=f"{model.name}: {found.n} tokens scored by {runner.info.name}")
    for name, value in found.rows():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _runner(name: str, model: Path, engine: Runner) -> Runner:
    from crossval.plan import TIMEOUT
    from reference.process import ProcessRunner

    factories = {
        "llama.cpp": "reference.llama_cpp:LlamaCpp",
        "bitnet.cpp": "reference.bitnet_cpp:BitnetCpp",
        "transformers": "reference.hf:Transformers",
    }
    if name == "bitnet":
        return engine
    if name not in factories:
        raise UsageError(f"{name!r} is no reference", where="--reference", remedy=f"bitnet, {', '.join(factories)}")
    return ProcessRunner(factories[name], {"model": str(model)}, timeout=TIMEOUT)
