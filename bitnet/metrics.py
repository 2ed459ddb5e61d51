"""What a call cost: seconds by phase, tokens, cache hits, memory, and the kernels that ran."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psutil

from bitnet import html
from bitnet.kernels.ledger import KernelUse, Role

Phase = Literal["tokenise", "prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSummary:
    """A kernel's share of a call, as `bitnet.kernels.ledger` counts: calls, output rows, weight bytes read."""

    kernel: str
    role: Role
    weight_type: str
    isa: str
    calls: int
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The cost of one call.

    Attributes:
        load_seconds: Opening the model, once, long before.
        tokenise_seconds: Prompt to ids.
        first_token_seconds: From the call to its first token, tokenising and waiting for others included; 0 if none.
        prefill_seconds: Evaluating the prompt.
        decode_seconds: Evaluating and choosing tokens one by one, without the time the reader of a stream takes. In a
            batch each sequence is given the whole time of the passes it shared.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Those of them that were taken from the cache.
        prefill_tokens: Those that were evaluated.
        decode_tokens: Generated tokens that were evaluated; the last one never is.
        guessed_tokens, accepted_tokens: Guesses that were evaluated beside them, and those that were right.
        batch: Most sequences that shared a pass with this one, itself included.
        memory_bytes: Resident memory of the process at the end.
        peak_memory_bytes: Most it ever had.
        threads: Threads of the backend.
        kernels: The kernels of the passes; where passes were shared, with everything in them.
    """

    load_seconds: float
    tokenise_seconds: float
    first_token_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    decode_tokens: int
    guessed_tokens: int
    accepted_tokens: int
    batch: int
    memory_bytes: int
    peak_memory_bytes: int
    threads: int
    kernels: tuple[KernelSummary, ...]

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens evaluated a second; 0 where none was."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens evaluated a second, one at a time; 0 where none was."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, rates included."""
        return asdict(self) | {"prefill_rate": self.prefill_rate, "decode_rate": self.decode_rate}

    def _repr_html_(self) -> str:
        return html.table("metrics", self.rows())

    def rows(self) -> dict[str, str]:
        """The same for a reader."""
        cached = f", {self.cached_tokens} from the cache" if self.cached_tokens else ""
        shared = f", up to {self.batch} together" if self.batch > 1 else ""
        return {
            "load": f"{self.load_seconds:.2f} s, once",
            "tokenise": f"{1e3 * self.tokenise_seconds:.1f} ms",
            "first token": f"{1e3 * self.first_token_seconds:.1f} ms",
            "prefill": f"{self.prompt_tokens} tokens{cached}, {self.prefill_rate:.1f}/s",
            "decode": f"{self.decode_tokens} tokens, {self.decode_rate:.1f}/s{shared}",
            "lookahead": f"{self.accepted_tokens} of {self.guessed_tokens} guesses were right",
            "memory": f"{self.memory_bytes / 1e6:.0f} MB, at most {self.peak_memory_bytes / 1e6:.0f} MB",
            "threads": str(self.threads),
            "kernels": ", ".join(f"{k.kernel} × {k.calls}" for k in self.kernels),
        }


@dataclass(slots=True)
class Meter:
    """Counts while a call runs."""

    seconds: dict[Phase, float] = field(default_factory=dict)
    first_token_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    batch: int = 0
    kernels: dict[KernelUse, tuple[int, int, int]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Time spent in a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - began)

    def add_seconds(self, name: Phase, seconds: float) -> None:
        """The same, measured by the caller."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def add_pass(self, n_sequence: int, kernels: Mapping[KernelUse, tuple[int, int, int]]) -> None:
        """A pass this call took part in: with how many sequences, and what ran."""
        self.batch = max(self.batch, n_sequence)
        for use, tally in kernels.items():
            before = self.kernels.get(use, (0, 0, 0))
            self.kernels[use] = before[0] + tally[0], before[1] + tally[1], before[2] + tally[2]

    def finish(self, *, load_seconds: float, threads: int) -> Metrics:
        """The record, with the memory of the process now."""
        order = sorted(self.kernels.items(), key=lambda item: (item[0].role, item[0].kernel, item[0].weight_type))
        return Metrics(
            load_seconds=load_seconds,
            tokenise_seconds=self.seconds.get("tokenise", 0.0),
            first_token_seconds=self.first_token_seconds,
            prefill_seconds=self.seconds.get("prefill", 0.0),
            decode_seconds=self.seconds.get("decode", 0.0),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            prefill_tokens=self.prefill_tokens,
            decode_tokens=self.decode_tokens,
            guessed_tokens=self.guessed_tokens,
            accepted_tokens=self.accepted_tokens,
            batch=self.batch,
            memory_bytes=psutil.Process().memory_info().rss,
            peak_memory_bytes=_peak_memory(),
            threads=threads,
            kernels=tuple(
                KernelSummary(
                    kernel=use.kernel,
                    role=use.role,
                    weight_type=use.weight_type,
                    isa=use.isa,
                    calls=calls,
                    rows=rows,
                    bytes=n_bytes,
                )
                for use, (calls, rows, n_bytes) in order
            ),
        )


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes
