"""`python -m crossval run`, `record`, `quality` and `drift`, and the same under `bitnet validate`: parse, call, print.

Importing this module imports the parser alone; each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.options import Format, Output, Quiet
from bitnet.errors import UsageError

if TYPE_CHECKING:
    from crossval.run import Options
    from receipts.record import Lane, Receipt
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
ONLY = Annotated[str, typer.Option(help="Only lanes whose name contains this.")]
WORK = Annotated[Path, typer.Option(help="Folder for transcoded copies.")]
THREADS = Annotated[int | None, typer.Option(min=1, help="Threads of the engine. Default: BITNET_NUM_THREADS.")]
COPIES = Path("build/crossval")

_MARKS = {"pass": "ok", "fail": "FAIL", "error": "ERROR", "unsupported": "unsupported", "inconclusive": "inconclusive"}


def models_of(given: list[Path] | None) -> tuple[Path, ...]:
    """Those named, else BITNET_GGUF, else none."""
    declared = os.environ.get("BITNET_GGUF")
    return tuple(given or ([Path(declared)] if declared else []))


def hf_wanted(asked: bool | None) -> bool:
    """Whether transformers is asked: as told, else where it is installed."""
    from reference.hf import installed

    return installed() if asked is None else asked


def options_of(
    model: list[Path] | None,
    only: str,
    work: Path,
    *,
    threads: int | None = None,
    hf: bool | None = None,
    bitnet_cpp: Path | None = None,
    recording: list[Path] | None = None,
    **more: Any,  # further fields
) -> Options:
    """What to run, from what the commands share.

    Raises:
        UsageError: The place for the result cannot have it: known before minutes of work for it.
    """
    from crossval.live import Live
    from crossval.run import Options

    if "receipt" in more:
        _check_place(more["receipt"])
    live = Live(hf=hf_wanted(hf), bitnet_cpp=bitnet_cpp, recordings=tuple(recording or ()))
    return Options(
        fixtures=FIXTURES, models=models_of(model), only=only, work=work, n_threads=threads, live=live, **more
    )


def _check_place(place: Path) -> None:
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if place.exists() and not place.is_file():
        raise UsageError("is no file that could be replaced", where=place, remedy="name another place")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder} cannot be written to", where=place, remedy="check its rights, or name another place"
        )


def mark(lane: Lane) -> str:
    """How a lane ended, in a word."""
    return "as declared" if lane.deviates_as_declared else _MARKS[lane.outcome]


def run(
    model: MODELS = None,
    only: ONLY = "",
    receipt: Annotated[Path, typer.Option(help="Where the receipt goes.")] = Path("ci/inference.json"),
    work: WORK = COPIES,
    threads: THREADS = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Whether to measure speed and determinism too.")
    ] = True,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    recording: RECORDINGS = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Climb every lane and write the receipt.

    Exit codes: 0 passed; 1 parity failed; 2 wrong usage; 3 bad model file; 4 a reference is missing or died, or nothing
    could be concluded; 6 a limit was hit; 130 interrupted.
    """
    from bitnet.cli.output import document, progress
    from crossval.run import run as climb
    from crossval.verdict import exit_code
    from receipts.visible import visible

    options = options_of(
        model,
        only,
        work,
        threads=threads,
        hf=hf,
        bitnet_cpp=bitnet_cpp,
        recording=recording,
        receipt=receipt,
        measure=measure,
    )
    with progress("what", quiet=quiet) as bar:
        task = bar.add_task("lanes", total=None, what="reading the models")

        def done(lane: Lane, number: int, total: int) -> None:
            bar.update(task, completed=number, total=total)
            if not quiet:
                bar.console.print(
                    f"{number:>3}/{total} {mark(lane):<14} {visible(lane.name)}", markup=False, highlight=False
                )

        written = climb(options, lambda what: bar.update(task, what=what), done)
    if output is Format.json:
        print(document("validate-crossval-1", _receipt_fields(options.receipt, written)))
    else:
        print(f"wrote {options.receipt}: {written.parity.lanes} lanes, {written.parity.status}")
    raise typer.Exit(exit_code(written))


def _receipt_fields(path: Path, written: Receipt) -> dict[str, Any]:
    from crossval.answer import lane_fields

    return {
        "receipt": str(path),
        "digest": written.digest,
        "status": written.parity.status,
        "lanes": [lane_fields(lane) for lane in written.lanes],
    }


def record(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    only: Annotated[str, typer.Option(help="The lane: its name, or a part that no other has.")],
    model: MODELS = None,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    work: WORK = COPIES,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Climb one lane and keep everything its reference answers, to be replayed where that reference is not installed.

    Exit codes: 0 recorded; 2 wrong usage; 4 the reference is missing or answered nothing.
    """
    from bitnet.cli.output import document, progress
    from crossval.record import record as keep

    options = options_of(model, only, work, hf=hf, bitnet_cpp=bitnet_cpp, receipt=out, measure=False)
    with progress("what", quiet=quiet) as bar:
        task = bar.add_task("record", total=None, what="")
        done = keep(options, out, lambda what: bar.update(task, what=what))
    if output is Format.json:
        fields = {
            "file": str(out),
            "lane": done.lane.name,
            "outcome": done.lane.outcome,
            "computations": done.n_requests,
            "bytes": done.n_bytes,
        }
        print(document("validate-record-1", fields))
    else:
        size = f"{done.n_requests} computations, {done.n_bytes / 1e6:.1f} MB"
        print(f"wrote {out}: {size}; {done.lane.name}: {done.lane.outcome}")


def drift(
    evidence: Annotated[
        str, typer.Option(help="What the engines show: operations, logits alone, or greedy ids alone.")
    ] = "operations",
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many trials, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="First seed: the same seed makes the same trials.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each single defect, on each model.")] = 3,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of defects on each model.")] = 40,
    clean: Annotated[int, typer.Option(min=0, help="Honest engines on each model, for false alarms.")] = 60,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("build/drift.json"),
    work: Annotated[Path, typer.Option(help="Folder for models that are made.")] = COPIES / "models",
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Make engines with known defects and measure how often they are detected, located and named.

    Exit codes: 0 every promised figure is met; 1 one is not.
    """
    import json
    import time

    from rich.console import Console

    from bitnet.cli.output import progress
    from crossval.drift import Trial, plan, study, subjects
    from crossval.drift_outputs import JUDGES
    from crossval.drift_table import EVIDENCE, rates, report, table, write

    shown = next((one for one in EVIDENCE if one == evidence), None)
    if shown is None:
        raise UsageError(f"{evidence!r} is no evidence", where="--evidence", remedy=", ".join(EVIDENCE))
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    with progress("what", quiet=quiet) as bar:
        task = bar.add_task("trials", total=None, what="making the models")

        def done(trial: Trial, number: int, total: int) -> None:
            bar.update(task, completed=number, total=total, what=f"{trial.model} {' + '.join(trial.defects)}")

        trials = study(
            subjects(FIXTURES, work),
            list(plan(seeds, pairs, clean, seed)),
            sample=sample,
            seed=seed,
            judge=JUDGES[shown],
            done=done,
        )
    made = report(trials, first_seed=seed, seconds=time.monotonic() - began, evidence=shown)
    write(made, out)
    if output is Format.json:
        print(json.dumps(made, indent=2))
    else:
        Console(highlight=False).print(table(trials, shown))
    raise typer.Exit(0 if all(rate.met for rate in rates(trials, shown)) else 1)


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
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

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
        "bitnet.cpp": "reference.bitnet_cpp_way:open_bitnet_cpp",
        "transformers": "reference.hf:Transformers",
    }
    if name == "bitnet":
        return engine
    if name not in factories:
        raise UsageError(f"{name!r} is no reference", where="--reference", remedy=f"bitnet, {', '.join(factories)}")
    return ProcessRunner(factories[name], {"model": str(model)}, timeout=TIMEOUT)
