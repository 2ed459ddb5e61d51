"""Every setting of the environment, with its value and where that comes from: a flag, a variable, a default."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bitnet import hub_cache
from bitnet.api import default_threads
from bitnet.errors import BitNetError
from bitnet.limits import batch_size, memory_limit
from bitnet.packed_cache import limit as packed_limit

Origin = Literal["flag", "variable", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        name: Its variable.
        value: As it is used here; None where it is not set and has no default. Of a secret, only that it is set.
        origin: Where the value comes from.
        meaning: What it is for.
        fault: Why the value has no meaning, or None.
    """

    name: str
    value: str | None
    origin: Origin
    meaning: str
    fault: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def _threads() -> str:
    return str(default_threads())


def _isa() -> str:
    from bitnet.kernels.variants import choose

    return choose().id


def _memory() -> str | None:
    limit = memory_limit()
    return None if limit is None else str(limit)


def _together() -> str:
    return str(batch_size())


def _packed() -> str:
    return str(packed_limit())


def _offline() -> str:
    return "1" if hub_cache.offline() else "0"


def _home() -> str:
    return str(hub_cache.hub_cache().parent)


def _text(value: str | None) -> Callable[[], str | None]:
    return lambda: value


#: Variable → what it is for, and its default.
_VARIABLES: dict[str, tuple[str, Callable[[], str | None]]] = {
    "BITNET_GGUF": ("the model, where none is named", _text(None)),
    "BITNET_TOKENIZER": ("a tokenizer in place of the model's own", _text(None)),
    "BITNET_DEVICE": ("cpu (compiled kernels) or plain (numpy)", _text("cpu")),
    "BITNET_ISA": ("kernels of ternary weights; results do not depend on them", _isa),
    "BITNET_NUM_THREADS": ("threads; results do not depend on them", _threads),
    "BITNET_SEED": ("of the sampler", _text("0")),
    "BITNET_DETERMINISTIC": ("the same bits every time, which is always so here", _text("1")),
    "BITNET_OFFLINE": ("1 forbids the network", _offline),
    "BITNET_CPP_DIR": ("a build of bitnet.cpp to compare with", _text(None)),
    "BITNET_MEMORY_LIMIT": ("bytes that models and caches may take", _memory),
    "BITNET_BATCH_SIZE": ("prompts that are evaluated together", _together),
    "BITNET_PACKED_CACHE": ("bytes of packed weights kept for the next start; 0: none", _packed),
    "HF_HOME": ("where the Hub's files are kept", _home),
    "HF_TOKEN": ("for private and gated repositories", _text(None)),
}
_SECRET = ("HF_TOKEN",)
#: Settings whose text is checked by whoever reads it.
_CHECKED: dict[str, Callable[[], str | None]] = {
    "BITNET_ISA": _isa,
    "BITNET_NUM_THREADS": _threads,
    "BITNET_OFFLINE": _offline,
    "BITNET_MEMORY_LIMIT": _memory,
    "BITNET_BATCH_SIZE": _together,
    "BITNET_PACKED_CACHE": _packed,
}


def settings(flags: Mapping[str, object] | None = None) -> tuple[Setting, ...]:
    """Every setting.

    Args:
        flags: Values given on the command line, by variable; None where a flag was not given.
    """
    given = {name: str(value) for name, value in (flags or {}).items() if value is not None}
    return tuple(_setting(name, given.get(name)) for name in _VARIABLES)


def _setting(name: str, flag: str | None) -> Setting:
    meaning, default = _VARIABLES[name]
    set_to = os.environ.get(name, "").strip()
    origin: Origin = "flag" if flag is not None else "variable" if set_to else "default"
    fault = None
    try:
        value = flag or set_to or default()
        if origin == "variable" and name in _CHECKED:
            value = _CHECKED[name]()
        if name == "BITNET_DEVICE":
            from bitnet.kernels import kernels

            kernels(value or "cpu")
    except BitNetError as error:
        value, fault = flag or set_to, f"{error.what}; {error.remedy}" if error.remedy else error.what
    if name in _SECRET and value:
        value = "set, not shown"
    return Setting(name=name, value=value or None, origin=origin, meaning=meaning, fault=fault)
