"""The commands. Importing them imports the parser alone; each imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from bitnet.cli import infer, model, system
from bitnet.cli.groups import Group, examples, group


class Root(Group):
    """All commands; when the reader of our text has left, as `| head` does, that is no failure."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # the parser's classes, whose home differs between versions
        """Run the command that is asked for."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return result


app = group(
    "BitNet b1.58 inference: ternary weights, int8 activations, the same bits on every thread count.",
    examples(
        'bitnet infer run --model fixtures/models/tiny-relu2.i2_s.gguf --prompt "One day Anna"',
        "bitnet model info fixtures/models/tiny-relu2.i2_s.gguf",
    ),
    cls=Root,
    add_completion=True,
)
app.add_typer(model.app, name="model")
app.add_typer(infer.app, name="infer")
app.add_typer(system.app, name="system")


def _show_version(asked: bool) -> None:
    if asked:
        import bitnet

        print(f"bitnet {bitnet.__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """See the help of the group."""
