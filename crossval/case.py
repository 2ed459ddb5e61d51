"""What is run: token ids to evaluate, tokens to generate, and the text whose likelihood is compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reference.runner import ReferenceUnavailableError, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text to continue.

    Attributes:
        name: Unique for a model.
        text: The text.
    """

    name: str
    text: str


#: Prompts of a sentence.
SHORT_PROMPTS = (
    Prompt(name="short", text="The capital of France is"),
    Prompt(
        name="medium",
        text="Once upon a time there was a small village by the sea. Every morning the people went down to the harbour",
    ),
    Prompt(name="code", text="def fibonacci(n):\n    if n < 2:\n        return n\n    return"),
)
#: Prompts for a model that brings none of its own.
PROMPTS = (
    *SHORT_PROMPTS,
    Prompt(
        name="long",
        text="The keeper of the lighthouse had lived on the island for thirty years, and in all that time he had not "
        "missed one evening. At dusk he climbed the hundred and twelve steps, filled the lamp with oil, cleaned the "
        "great lens with a soft cloth and wrote the weather in his book: the wind, the clouds, the height of the "
        "waves and the names of the ships that passed. Some nights were clear and quiet, and he could count the "
        "lights of the harbour across the water. On others the storm shook the windows and the sea ran over the "
        "rocks, and then he stayed awake until the morning, because he knew that somewhere in the dark a captain was "
        "looking for his light. One autumn, when the first geese flew south, a small boat came",
    ),
)
#: Characters of these prompts that make a token, about.
_CHARACTERS = 4.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One prompt.

    Attributes:
        name: Unique for a model.
        ids: Prompt ids, BOS included where the model wants it.
        n_greedy: Tokens to continue.
    """

    name: str
    ids: tuple[int, ...]
    n_greedy: int


def text_cases(engine: Runner, prompts: Sequence[Prompt], *, n_vocab: int, n_greedy: int) -> tuple[Case, ...]:
    """Prompts as ids; random ids (seeded) where the model has no tokenizer that can be used."""
    try:
        encoded = [engine.tokenize(prompt.text) for prompt in prompts]
    except ReferenceUnavailableError:
        rng = np.random.default_rng(20)
        lengths = [max(8, round(len(prompt.text) / _CHARACTERS)) for prompt in prompts]
        encoded = [tuple(int(i) for i in rng.integers(0, n_vocab, length)) for length in lengths]
    return tuple(
        Case(name=prompt.name, ids=ids, n_greedy=n_greedy) for prompt, ids in zip(prompts, encoded, strict=True) if ids
    )


def ends(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The first case and the longest, which may be one: some faults show late."""
    longest = max(cases, key=lambda case: len(case.ids), default=None)
    return tuple(dict.fromkeys((*cases[:1], *([] if longest is None else [longest]))))


def read_prompts(path: Path, model: str) -> tuple[Prompt, ...]:
    """Prompts of a fixture model, the first of each kind; the general ones where the file has none for it."""
    listed = json.loads(path.read_text("utf-8")).get(model, []) if path.is_file() else []
    kinds: dict[str, Prompt] = {}
    for entry in listed:
        if "text" in entry:
            kinds.setdefault(entry["name"].split("-")[0], Prompt(name=entry["name"], text=entry["text"]))
    return tuple(kinds.values()) or PROMPTS
