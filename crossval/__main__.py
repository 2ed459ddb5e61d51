"""`python -m crossval`: climb the ladder, and leave a receipt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bitnet.errors import BitNetError
from crossval import commands
from crossval.commands import BITNET_CPP, FIXTURES, HF, MODELS, RECORDINGS, hf_wanted, models_of
from receipts.errors import ReceiptError
from receipts.record import Lane
from receipts.replay import CASES, draw_nonce
from reference.runner import ReferenceUnavailableError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compare the engine with llama.cpp, bitnet.cpp and the oracle on the same weights, rung by rung.",
)

INTERRUPTED = "crossval: interrupted; the old receipt is untouched"
_MARKS = {"pass": "ok", "fail": "FAIL", "error": "ERROR", "unsupported": "unsupported", "inconclusive": "inconclusive"}


@app.command()
def run(
    model: MODELS = None,
    only: Annotated[str, typer.Option(help="Only lanes whose name contains this.")] = "",
    receipt: Annotated[Path, typer.Option(help="Where the receipt goes.")] = Path("ci/inference.json"),
    work: Annotated[Path, typer.Option(help="Folder for transcoded copies.")] = Path("build/crossval"),
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the engine. Default: BITNET_NUM_THREADS.")
    ] = None,
    measure: Annotated[bool, typer.Option(help="Whether to measure speed and determinism too.")] = True,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    recording: RECORDINGS = None,
) -> None:
    """Climb every lane and write the receipt.

    Exit codes: 0 passed; 1 parity failed; 2 wrong usage; 3 bad model file; 4 a reference is missing or died, or nothing
    could be concluded; 6 a limit was hit; 130 interrupted.

    Example: python -m crossval run --model model.gguf --only oracle
    """
    from crossval.live import Live
    from crossval.run import Options
    from crossval.run import run as climb
    from crossval.verdict import exit_code

    options = Options(
        fixtures=FIXTURES,
        models=models_of(model),
        only=only,
        receipt=receipt,
        work=work,
        n_threads=threads,
        measure=measure,
        live=Live(hf=hf_wanted(hf), bitnet_cpp=bitnet_cpp, recordings=tuple(recording or ())),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(
        SpinnerColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("reading the models", total=None)

        def say(what: str) -> None:
            progress.update(task, description=what)

        def done(lane: Lane, number: int, total: int) -> None:
            progress.update(task, completed=number, total=total)
            console.print(f"{number:>3}/{total} {_mark(lane):<14} {lane.name}", markup=False)

        try:
            written = climb(options, say, done)
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            raise typer.Exit(130) from None
    print(f"wrote {options.receipt}: {written.parity.lanes} lanes, {written.parity.status}")
    raise typer.Exit(exit_code(written))


@app.command()
def accuracy(
    device: Annotated[str, typer.Option(help="Kernels to measure: cpu (compiled) or plain (numpy).")] = "cpu",
) -> None:
    """Measure what each ternary format costs, on dense and on ternary weights, against the oracle; print the parts.

    Exit codes: 0 every format is within its envelope; 1 one is not.

    Example: python -m crossval accuracy
    """
    from crossval.accuracy import accuracy_table, all_accuracies

    rows = all_accuracies(device)
    Console(highlight=False).print(accuracy_table(rows))
    raise typer.Exit(0 if all(r.passed for r in rows) else 1)


app.command()(commands.record)
app.command()(commands.quality)


@app.command()
def replay(
    receipt: Annotated[Path, typer.Argument(metavar="RECEIPT", help="The receipt.")] = Path("ci/inference.json"),
    model: Annotated[
        list[Path] | None, typer.Option(help="A model file, or a folder of some; may be repeated.")
    ] = None,
    cases: Annotated[int, typer.Option(min=0, help="How many cases to compute again; 0 for all.")] = CASES,
    nonce: Annotated[str, typer.Option(help="What decides which cases; drawn afresh unless given.")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the engine; results do not depend on them.")] = None,
) -> None:
    """Compute cases of a receipt again and compare every digest; `python -m receipts replay` does the same.

    Exit codes: 0 equal; 2 wrong usage or no such file; 4 no such model here; 5 invalid, or computed to something else.

    Example: python -m crossval replay ci/inference.json --cases 0
    """
    from crossval.witness import EngineReplayer
    from receipts.formats.table import show
    from receipts.verify import ReplayRequest, verify

    runner = EngineReplayer(tuple(model or ()), n_threads=threads)
    request = ReplayRequest(runner=runner, nonce=nonce or draw_nonce(), k=cases or None)
    report = verify(receipt, gate=False, replay=request)
    show(report)
    raise typer.Exit(report.exit_code)


@app.command()
def drift(
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many trials, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="First seed: the same seed makes the same trials.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each single defect, on each model.")] = 3,
    pairs: Annotated[int, typer.Option(min=0, help="Pairs of defects on each model.")] = 40,
    clean: Annotated[int, typer.Option(min=0, help="Honest engines on each model, for false alarms.")] = 60,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("build/drift.json"),
    work: Annotated[Path, typer.Option(help="Folder for models that are made.")] = Path("build/crossval/models"),
) -> None:
    """Make engines with known defects and measure how often they are detected, located and named.

    Exit codes: 0 every promised figure is met; 1 one is not.

    Example: python -m crossval drift --sample 60
    """
    import time

    from crossval.drift import Trial, plan, study, subjects
    from crossval.drift_table import rates, report, table, write

    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    with Progress(
        SpinnerColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
    ) as progress:
        task = progress.add_task("making the models", total=None)

        def done(trial: Trial, number: int, total: int) -> None:
            progress.update(
                task, completed=number, total=total, description=f"{trial.model} {' + '.join(trial.defects)}"
            )

        trials = study(
            subjects(FIXTURES, work), list(plan(seeds, pairs, clean, seed)), sample=sample, seed=seed, done=done
        )
    write(report(trials, first_seed=seed, seconds=time.monotonic() - began), out)
    Console(highlight=False).print(table(trials))
    raise typer.Exit(0 if all(rate.met for rate in rates(trials)) else 1)


def _mark(lane: Lane) -> str:
    return "as declared" if lane.deviates_as_declared else _MARKS[lane.outcome]


def main() -> None:
    """The command line; a user's mistake is one message, never a traceback."""
    try:
        app(prog_name="python -m crossval")
    except (BitNetError, ReceiptError, ReferenceUnavailableError) as error:
        print(f"crossval: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
