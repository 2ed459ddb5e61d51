"""What a reference is: something that takes token ids and returns an `Observation`.

A runner wraps one engine on one model file. It says who it is (`RunnerInfo`: version, hash of the library
that was loaded, numerics), and answers three questions: which ids a text has, what a tensor decodes to, and
what the model computes. Everything intermediate is a *tap*, spelled once, here. Native engines answer from a
child process (`process.py`), because they abort, hang and run out of memory, and each of those is a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

#: Taps of one layer in graph order. `q`, `k`, `v` are projections before rotary, `kqv_out` is attention before
#: its sub-norm, `ffn_act` is act(gate) · up, `l_out` is the residual stream after the layer.
LAYER_TAPS = (
    "attn_norm",
    "q",
    "k",
    "v",
    "q_rope",
    "k_rope",
    "kqv_out",
    "attn_sub_norm",
    "attn_out",
    "ffn_inp",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_act",
    "ffn_sub_norm",
    "ffn_down",
    "l_out",
)
FIRST_TAPS = ("embd",)
LAST_TAPS = ("result_norm", "result_output")

#: Largest absolute error of a log-probability that a server tells: a float32 logit 16 to 32 below the likeliest is
#: rounded to 1e-6 twice on its way, and so is the logarithm of the sum; 1.8e-6 measured, 4e-6 the worst known.
LOG_PROBABILITY_ERROR = 4e-6

#: (tap, layer); taps outside the layers have layer −1.
TapKey = tuple[str, int]

#: Rows of a matrix, from the first to before the second; None for all.
Rows = tuple[int, int] | None


def tap_order(n_layer: int) -> list[TapKey]:
    """Every tap of a model in graph order."""
    layers = [(name, il) for il in range(n_layer) for name in LAYER_TAPS]
    return [(name, -1) for name in FIRST_TAPS] + layers + [(name, -1) for name in LAST_TAPS]


def span(rows: Rows) -> slice:
    """The same as an index."""
    return slice(None) if rows is None else slice(*rows)


class ReferenceUnavailableError(Exception):
    """A reference cannot run here: not installed, not built, or it refuses this model.

    Args:
        what: Why, in one sentence.
        remedy: What would make it run.
    """

    exit_code = 4

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return self.what if self.remedy is None else f"{self.what}\n  hint: {self.remedy}"


class ReferenceFailedError(Exception):
    """A reference ran and died, hung or answered nonsense; its last words are kept.

    Args:
        what: How it ended ("killed by signal 6", "no answer within 120 s").
        last_words: The tail of its standard error.
    """

    exit_code = 4

    def __init__(self, what: str, *, last_words: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.last_words = last_words

    def __str__(self) -> str:
        return self.what if not self.last_words else f"{self.what}; its last words: {self.last_words.strip()[-400:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """Who answered.

    Attributes:
        name: `llama.cpp`, `bitnet.cpp`, `oracle`, `bitnet`, ….
        family: Runners of one family share code and count once in a vote.
        version: Of the engine.
        library_sha256: Hash of the code that computed, "" where there is no library file.
        obtained: `live`, `server` when a live one is asked through its server, `recorded` when outputs are replayed.
        numerics: Field by field as `bitnet.config.Numerics`, e.g. ``{"activation": "q8_k", "kv": "f32"}``.
        model_sha256: Hash of the model file it ran on.
        detail: Anything else a report should show (threads, compiler, system info).
        log_probabilities: Whether its logits are normalised: logits up to a constant of each row.
    """

    name: str
    family: str
    version: str
    library_sha256: str
    obtained: Literal["live", "server", "recorded"]
    numerics: Mapping[str, str]
    model_sha256: str
    detail: Mapping[str, str] = field(default_factory=dict)
    log_probabilities: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to compute.

    Attributes:
        ids: Token ids, teacher-forced, positions 0, 1, ….
        n_batch: Tokens evaluated together first; the rest follow one at a time. None: all together.
        n_greedy: Tokens to generate greedily afterwards, one at a time (ties to the lowest id).
        taps: Whether to capture every intermediate of `ids`.
        lock: Values put in place of what was computed, after the tap recorded it (operations on locked inputs).
            Only the engine and the oracle can do this.
        last_only: Whether logits are wanted after the last of `ids` alone, as a user of the model wants them.
    """

    ids: tuple[int, ...]
    n_batch: int | None = None
    n_greedy: int = 0
    taps: bool = False
    lock: Mapping[TapKey, Float32] | None = None
    last_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was computed.

    Attributes:
        ids: `Request.ids` followed by the generated ids.
        logits: [n, n_vocab] f32, row i are the logits after ids[:i + 1]. One row for each of `ids` that was
            evaluated: len(request.ids) + max(n_greedy − 1, 0) rows; with `last_only` those from the last of `ids` on.
        generated: The greedy continuation.
        taps: (tap, layer) → [n_token, width] f32 over `Request.ids`. A tap that the engine does not have is absent.
        seconds: Wall time by phase, `prefill` and `decode`.
    """

    ids: tuple[int, ...]
    logits: Float32
    generated: tuple[int, ...] = ()
    taps: Mapping[TapKey, Float32] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Runner(Protocol):
    """One engine on one model file."""

    @property
    def info(self) -> RunnerInfo:
        """Who this is."""
        ...

    def run(self, request: Request) -> Observation:
        """Compute. Raises `ReferenceFailedError` if the engine dies on it."""
        ...

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text as this engine sees it. Raises `ReferenceUnavailableError` without a tokenizer."""
        ...

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor as this engine decodes it, [rows, columns], before any `.scale` tensor is applied.

        Some rows are asked for where a whole tensor takes much memory.
        """
        ...

    def close(self) -> None:
        """Release the engine. Closing twice is allowed."""
        ...


def describe(info: RunnerInfo) -> dict[str, Any]:
    """The identity as plain JSON types, for headers and receipts."""
    return {
        "name": info.name,
        "family": info.family,
        "version": info.version,
        "library_sha256": info.library_sha256,
        "obtained": info.obtained,
        "numerics": dict(info.numerics),
        "model_sha256": info.model_sha256,
        "detail": dict(info.detail),
        "log_probabilities": info.log_probabilities,
    }
