"""How tokens are chosen and when to stop: one frozen record, checked where it is made."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from bitnet.arguments import instance_of
from bitnet.errors import UsageError

_MAX_JSON = 1 << 20  # bytes; the published files have a few hundred


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """How tokens are chosen and when to stop. Made only with values that have a meaning.

    Attributes:
        max_new_tokens: At most this many tokens.
        temperature: 0 is greedy (ties to the lowest id).
        top_k: Keep the k most likely; 0 keeps all.
        top_p: Keep the smallest set with at least this probability; 1 keeps all.
        repetition_penalty: Logits of seen tokens are divided (if positive) or multiplied by this; 1 is off.
        seed: Of the sampler; the same seed gives the same tokens.
        stop: Strings that end the text; they may span token borders and are not part of the result.
        stop_ids: Token ids that end the text, beside the model's own end tokens.
        ignore_eos: Go on past the model's own end tokens.
        context: When the model's context is full, `stop`, or `slide`: forget the oldest tokens but the first few and
            go on (`bitnet.cache`), which changes what the model says from there on.
        lookahead: Whether the next tokens are guessed from what was said before and checked together; the tokens are
            the same either way (`bitnet.lookahead`).

    Raises:
        UsageError: A field has no meaning; it is named.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    context: Literal["stop", "slide"] = "stop"
    lookahead: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):  # anything listed is as good as a tuple, and numpy's numbers as Python's
            value: object = getattr(self, field.name)
            if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
                with suppress(TypeError):  # an array of no dimensions
                    value = tuple(_plain(item) for item in value)
            object.__setattr__(self, field.name, _plain(value))
        self.validate()

    def validate(self) -> None:
        """Check every field. It was done when the record was made; a record cannot change.

        Raises:
            UsageError: The first field without a meaning, with what it may be.
        """
        for name, (ok, remedy) in _RULES.items():
            value = getattr(self, name)
            if not ok(value):
                raise UsageError(f"{name} is {value!r}", where="GenerationConfig", remedy=remedy)

    @classmethod
    def greedy(cls, **changes: Any) -> GenerationConfig:
        """Always the most likely token."""
        return cls(**changes)

    @classmethod
    def balanced(cls, **changes: Any) -> GenerationConfig:
        """Varied, but seldom astray: for answers and conversation."""
        return cls(**{"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.05} | changes)

    @classmethod
    def creative(cls, **changes: Any) -> GenerationConfig:
        """Surprising: for stories and ideas."""
        return cls(**{"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1} | changes)

    def with_changes(self, **changes: Any) -> GenerationConfig:
        """A copy with some fields changed, checked again."""
        _known(changes, "GenerationConfig")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = asdict(self)
        return values | {"stop": list(self.stop), "stop_ids": list(self.stop_ids)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """From plain values; what is left out keeps its default. Raises `UsageError` for an unknown or wrong field."""
        _known(values, "GenerationConfig")
        return cls(**values)

    @classmethod
    def from_json(cls, path: str | PathLike[str], **changes: Any) -> GenerationConfig:
        """From a Hugging Face `generation_config.json`, beside a model or in its repository.

        `do_sample: false` is greedy whatever else is said; `eos_token_id` becomes `stop_ids`; fields for which there is
        no counterpart here are left out.

        Args:
            path: The file.
            changes: Fields that take the place of the file's.

        Raises:
            UsageError: It cannot be read, is no object, or holds a value without a meaning.
        """
        file = Path(path)
        try:
            if file.stat().st_size > _MAX_JSON:
                raise UsageError("is no generation_config.json: it is too large", where=file)
            found = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot be read: {error}", where=file) from error
        if not isinstance(found, dict):
            raise UsageError("is not a JSON object", where=file)
        values = {name: found[name] for name in _SHARED if found.get(name) is not None}
        if not found.get("do_sample", False):
            values["temperature"] = 0.0
        else:
            values.setdefault("temperature", 1.0)
        ends = found.get("eos_token_id")
        if ends is not None:
            values["stop_ids"] = tuple(ends) if isinstance(ends, list) else (ends,)
        try:
            return cls(**(values | changes))
        except UsageError as error:
            raise UsageError(error.what, where=file, remedy=error.remedy) from error


def configured(config: GenerationConfig | None, settings: Mapping[str, Any]) -> GenerationConfig:
    """A configuration, by default the greedy one, with the fields that a caller gave beside it."""
    chosen = GenerationConfig() if config is None else config
    instance_of(chosen, GenerationConfig, "config", "a bitnet.GenerationConfig, or its fields by name: temperature=0.7")
    return chosen.with_changes(**settings) if settings else chosen


#: Fields with the same name and meaning in a generation_config.json.
_SHARED = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty")


def _known(values: Mapping[str, object], where: str) -> None:
    names = sorted(f.name for f in fields(GenerationConfig))
    for name in values:
        if name not in names:
            raise UsageError(f"unknown field {name!r}", where=where, remedy=f"one of {', '.join(names)}")


def _plain(value: object) -> object:
    """Numpy's numbers as Python's; anything else as it is."""
    if isinstance(value, (int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether it is a finite number within limits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    finite = abs(value) <= sys.float_info.max  # whole numbers may be larger than any float
    return finite and value > above and least <= value <= most


def _all(value: object, ok: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(ok(item) for item in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (_whole, "a whole number, 0 or more"),
    "temperature": (lambda v: _number(v, least=0.0), "0 (greedy) or a positive number"),
    "top_k": (_whole, "a whole number; 0 keeps all"),
    "top_p": (lambda v: _number(v, above=0.0, most=1.0), "above 0 and at most 1"),
    "repetition_penalty": (lambda v: _number(v, above=0.0), "a positive number"),
    "seed": (_whole, "a whole number, 0 or more"),
    "stop": (lambda v: _all(v, lambda s: isinstance(s, str) and s != ""), "a list of strings, none of them empty"),
    "stop_ids": (lambda v: _all(v, _whole), "a list of token ids"),
    "ignore_eos": (lambda v: isinstance(v, bool), "True or False"),
    "context": (lambda v: v in ("stop", "slide"), "stop or slide"),
    "lookahead": (lambda v: isinstance(v, bool), "True or False"),
}
