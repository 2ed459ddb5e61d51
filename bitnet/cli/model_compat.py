"""`bitnet model compat`: which engines can run a file."""

from __future__ import annotations

from bitnet.cli.options import Format, ModelArgument, Output, model_named


def compat(model: ModelArgument = None, output: Output = Format.human) -> None:
    """Show which engines can run a model, and if they do it right. What helps where they do not is said too."""
    from bitnet.architecture import read_config
    from bitnet.cli import output as out
    from bitnet.compat import compatibility
    from bitnet.hf import open_model

    gguf = open_model(model_named(model))
    config, _ = read_config(gguf)
    answers = compatibility(gguf, config)
    if output is Format.json:
        print(out.document("model-compat-1", {"path": str(gguf.path), "engines": [a.to_dict() for a in answers]}))
        return
    rows: list[tuple[str, str, str]] = []
    for answer in answers:
        head: tuple[str, str] = (answer.engine, answer.runs)
        for reason in answer.reasons:
            rows.append((*head, reason.what))
            head = ("", "")
        remedies = dict.fromkeys(reason.remedy for reason in answer.reasons if reason.remedy)
        rows += [("", "", f"→ {remedy}") for remedy in remedies]
    out.table(("engine", "runs", "why"), rows)
