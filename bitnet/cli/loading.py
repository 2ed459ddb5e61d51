"""A model for the commands that run one, and what is told about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.cli.options import Preset, model_named
from bitnet.cli.output import note, progress

if TYPE_CHECKING:
    from bitnet.bitnet_model import BitNetModel
    from bitnet.generate import Generation
    from bitnet.generation_config import GenerationConfig

_COMPILED_ANEW = (
    "so kernels are compiled at every start, which takes seconds; "
    "XDG_CACHE_HOME or NUMBA_CACHE_DIR can name one that can"
)
#: Seconds of packing before there is a bar.
_PATIENCE = 0.7


def load(
    model: str | None,
    *,
    device: str | None,
    threads: int | None,
    tokenizer: Path | None,
    packed_cache: bool,
    quiet: bool,
) -> BitNetModel:
    """The model that is meant, loaded: a file, a folder, or what a repository of the Hub holds."""
    import bitnet
    from bitnet.bitnet_model import LoadOptions

    name = str(model_named(model))
    with _Packing(quiet=quiet) as packing:
        options: LoadOptions = {
            "device": device,
            "n_threads": threads,
            "tokenizer": tokenizer,
            "packed_cache": packed_cache,
            "on_packing": packing.tell,
            "compile_ahead": True,
        }
        if Path(name).exists():
            return bitnet.load(name, **options)
        return bitnet.BitNetModel.from_pretrained(name, progress=sys.stderr.isatty(), **options)


class _Packing:
    """A bar for repacking weights, which appears only once that has taken a while."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._stack = ExitStack()
        self._began: float | None = None
        self._set: Callable[[int, int], None] | None = None

    def __enter__(self) -> _Packing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, done: int, total: int) -> None:
        """So many matrices of all are packed."""
        self._began = self._began or time.monotonic()
        if self._set is None and not self._quiet and done < total and time.monotonic() - self._began > _PATIENCE:
            bar = self._stack.enter_context(progress(quiet=False))
            task = bar.add_task("packing weights", total=total)
            self._set = lambda done, total: bar.update(task, completed=done, total=total)
        if self._set is not None:
            self._set(done, total)


def notices(model: BitNetModel, *, chat: bool) -> tuple[str, ...]:
    """What the user should know about the model, its tokenizer and its chat template, and about this machine."""
    from bitnet.kernels.compile import cache_fault, cache_folder

    found = model.discovery
    told = (*model.notices, *found.notices, found.summary)
    if model.network.backend.device == "cpu":
        folder, fault = cache_folder(), cache_fault()
        if folder is None:
            told = (*told, f"no cache folder can be written, {_COMPILED_ANEW}")
        elif fault is not None:
            told = (*told, f"the cache folder {folder} cannot keep kernels ({fault.strerror}), {_COMPILED_ANEW}")
    if chat and model.chat_template.source != "declared":
        told = (*told, f"the chat template is {model.chat_template.source}")
    return told


def tell(model: BitNetModel, *, chat: bool, quiet: bool, told: Collection[str] = ()) -> tuple[str, ...]:
    """Say what of it was not told before; all of it. Some is known only once the model has run."""
    every = notices(model, chat=chat)
    for text in every:
        if not quiet and text not in told:
            note(text)
    return every


def configure(preset: Preset | None, **settings: Any) -> GenerationConfig:
    """The settings of the sampler: a preset, and over it what was named beside it."""
    from bitnet.generation_config import GenerationConfig

    given = {name: value for name, value in settings.items() if value is not None}
    if "context" in given:
        given["context"] = str(given["context"])
    if preset is Preset.balanced:
        return GenerationConfig.balanced(**given)
    return GenerationConfig.creative(**given) if preset is Preset.creative else GenerationConfig.greedy(**given)


def summary(result: Generation) -> str:
    """One line about a generation, for people."""
    m = result.metrics
    cached = f", {m.cached_tokens} of them cached" if m.cached_tokens else ""
    return (
        f"{m.prompt_tokens} prompt tokens ({m.prefill_rate:.0f}/s{cached}), {len(result.ids)} new "
        f"({m.decode_rate:.1f}/s), ended by {result.stop_reason.replace('_', ' ')}"
    )
