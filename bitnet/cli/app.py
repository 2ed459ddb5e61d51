"""The commands. Importing them imports the parser alone; each imports what it needs when it runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from bitnet.cli import infer, model, streams, system
from bitnet.cli.groups import Group, examples, group

#: Entry points of other packages that are commands here: this package imports none of them.
PLUGINS = "bitnet.commands"


class Root(Group):
    """All commands, those of other packages too; a reader of our text who has left, as `| head` does, is no failure."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401  # as below
        """Names, our own first."""
        return [*super().list_commands(ctx), *sorted(plugins())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401  # as below
        """Ours, or another package's."""
        found = super().get_command(ctx, cmd_name)
        plugin = plugins().get(cmd_name) if found is None else None
        return typer.main.get_command(plugin.load()) if plugin is not None else found

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # the parser's classes, whose home differs between versions
        """Run the command that is asked for."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            streams.give_up(sys.stdout)
            return 0
        return result


def plugins() -> dict[str, Any]:
    """Entry points by the name of their command; none where this package is not installed."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=PLUGINS)}


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
