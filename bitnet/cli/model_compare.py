"""`bitnet model compare`: two models, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.options import Format, Output, Quiet

if TYPE_CHECKING:
    from bitnet.compare import Comparison

_SHOWN = 40  # tensors that differ; a model has hundreds


def compare(
    a: Annotated[Path, typer.Argument(help="A model.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    show_all: Annotated[bool, typer.Option("--all", help="List the tensors that are equal, too.")] = False,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Compare two models on decoded values, whatever their types. Leaves with 1 if they differ."""
    from bitnet.cli import output as out
    from bitnet.compare import compare as run
    from bitnet.hf import open_model

    one, other = open_model(a), open_model(b)
    with out.progress("tensor", quiet=quiet) as bar:
        task = bar.add_task("compare", total=None, tensor="")

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, tensor=name)

        result = run(one, other, show)
    if output is Format.json:
        print(out.document("model-compare-1", {"a": str(a), "b": str(b), **result.to_dict()}))
    else:
        _print(result, show_all=show_all)
    if not result.equal:
        raise typer.Exit(1)


def _print(result: Comparison, *, show_all: bool) -> None:
    from bitnet.cli import output as out

    rows = [
        (
            t.name if t.other in (t.name, None) else f"{t.name} = {t.other}",
            t.status.replace("_", " "),
            f"{t.type_a or '-'} {t.type_b or '-'}",
            f"{t.n_differ} of {t.n}" if t.status == "differs" else "",
            f"{t.max_abs:.3g}" if t.status == "differs" and t.max_abs is not None else "",
            f"{t.scale_a:.6g} {t.scale_b:.6g}" if t.scale_a != t.scale_b and t.scale_a and t.scale_b else "",
        )
        for t in result.tensors
        if show_all or t.status != "equal"
    ]
    if rows:
        out.table(("tensor", "", "types", "differ", "max |a−b|", "max |w|"), rows[: None if show_all else _SHOWN])
        if len(rows) > _SHOWN and not show_all:
            print(f"… and {len(rows) - _SHOWN} more; --all lists them")
        print()
    for title, differences in (("hyper-parameter", result.hyper_parameters), ("tokenizer", result.tokenizer)):
        if differences:
            out.table((title, "a", "b"), [(d.field, d.a, d.b) for d in differences])
            print()
    counts = Counter(t.status for t in result.tensors)
    print("tensors: " + ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts.most_common()))
    if result.equal:
        print("the models are equal: every decoded weight, to the bit")
    elif result.weights_equal:
        print("the weights are equal to the bit; hyper-parameters or tokenizer differ")
    else:
        print("the models differ")
