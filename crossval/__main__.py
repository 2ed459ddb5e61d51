"""`python -m crossval`: climb the ladder, and leave a receipt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bitnet.cli.groups import examples
from bitnet.errors import BitNetError
from crossval import commands
from receipts import program
from receipts.errors import ReceiptError
from receipts.replay import CASES, draw_nonce
from reference.runner import ReferenceUnavailableError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compare the engine with llama.cpp, bitnet.cpp and the oracle on the same weights, rung by rung.",
)

INTERRUPTED = "crossval: interrupted; the old receipt is untouched"
_INTERRUPTED = 130  # the parser leaves with it, too, and says nothing


app.command(epilog=examples("python -m crossval run --model model.gguf --only oracle"))(commands.run)


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


app.command(epilog=examples('python -m crossval record relu2.recording --only "tiny-relu2 · transformers BitLinear"'))(
    commands.record
)
app.command(epilog=examples("python -m crossval drift --sample 60"))(commands.drift)
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


def main() -> None:
    """The command line; a user's mistake is one message, never a traceback."""
    try:
        program.run("crossval", lambda: app(prog_name="python -m crossval"))
    except (BitNetError, ReceiptError, ReferenceUnavailableError) as error:
        print(f"crossval: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            print(INTERRUPTED, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
