"""A model for the commands that run one, and what is told about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.cli.options import Preset, model_named
from bitnet.cli.output import note

if TYPE_CHECKING:
    from bitnet.api import Model
    from bitnet.config import GenerationConfig
    from bitnet.generate import Generation


def load(model: Path | None, *, device: str | None, threads: int | None, tokenizer: Path | None) -> Model:
    """The model that is meant, loaded."""
    import bitnet

    return bitnet.load(model_named(model), device=device, n_threads=threads, tokenizer=tokenizer)


def notices(model: Model, *, chat: bool) -> tuple[str, ...]:
    """What the user should know about the model, its tokenizer and its chat template."""
    found = model.discovery
    told = (*model.notices, *found.notices, found.summary)
    if chat and model.chat_template.source != "declared":
        told = (*told, f"the chat template is {model.chat_template.source}")
    return told


def tell(model: Model, *, chat: bool, quiet: bool) -> None:
    """Say it."""
    for text in () if quiet else notices(model, chat=chat):
        note(text)


def configure(preset: Preset | None, **settings: Any) -> GenerationConfig:
    """The settings of the sampler: a preset, and over it what was named beside it."""
    from bitnet.cli.options import chosen_settings
    from bitnet.config import GenerationConfig

    return GenerationConfig(**chosen_settings(preset, **settings))


def metrics(result: Generation) -> dict[str, Any]:
    """What a generation cost, as plain values."""
    t = result.timing
    return {
        "prompt_tokens": len(result.prompt_ids),
        "prefill_tokens": t.prefill_tokens,
        "prefill_seconds": t.prefill_seconds,
        "prefill_rate": t.prefill_tokens / t.prefill_seconds if t.prefill_tokens else 0.0,
        "decode_tokens": t.decode_tokens,
        "decode_seconds": t.decode_seconds,
        "decode_rate": t.decode_rate,
    }


def summary(result: Generation) -> str:
    """One line about a generation, for people."""
    m = metrics(result)
    return (
        f"{m['prompt_tokens']} prompt tokens ({m['prefill_rate']:.0f}/s), {len(result.ids)} new "
        f"({m['decode_rate']:.1f}/s), ended by {result.stop_reason.replace('_', ' ')}"
    )
