"""Prefill, decode, stop: tokens one after another, and the text they make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitnet.cache import KVCache
from bitnet.config import GenerationConfig
from bitnet.errors import ResourceLimitError
from bitnet.linear import Float32
from bitnet.model import Network
from bitnet.sampler import sample
from bitnet.streaming import TextStream
from bitnet.tokenizer import Tokenizer

StopReason = Literal["length", "end_token", "stop_string", "context"]

#: Tokens of a prompt that are evaluated together; bounds the memory of a long one without changing a bit.
PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall seconds by phase, and the tokens evaluated in them, which turn them into rates.

    The last token of a continuation is not evaluated, and the time that the reader of a stream takes is not counted.
    """

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float

    @property
    def decode_rate(self) -> float:
        """Tokens evaluated a second, one at a time; 0 where none was."""
        return self.decode_tokens / self.decode_seconds if self.decode_tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A finished continuation.

    Attributes:
        text: What follows the prompt, without a stop string.
        ids: The generated ids, without the end token that stopped them.
        prompt_ids: What the prompt became.
        stop_reason: Why it ended.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    stop_reason: StopReason
    timing: Timing


@dataclass(slots=True)
class Decoder:
    """One continuation in progress: iterate it for pieces of text; then `result` holds the whole."""

    network: Network
    tokenizer: Tokenizer
    prompt_ids: tuple[int, ...]
    config: GenerationConfig
    result: Generation | None = None

    def __iter__(self) -> Iterator[str]:
        c, stream = self.config, TextStream(self.tokenizer, self.config.stop, continuation=True)
        ends = frozenset(c.stop_ids) | (frozenset() if c.ignore_eos else self.tokenizer.end_ids)
        room = self.network.config.n_ctx - len(self.prompt_ids)
        if room <= 0:
            raise ResourceLimitError(
                f"the prompt has {len(self.prompt_ids)} tokens; the model's context is {self.network.config.n_ctx}",
                remedy="shorten the prompt",
            )
        n_new = min(c.max_new_tokens, room)
        cache = self.network.new_cache(len(self.prompt_ids) + n_new)
        rng = np.random.default_rng(c.seed)
        reason: StopReason = "length" if n_new == c.max_new_tokens else "context"

        began = time.perf_counter()
        logits = prefill(self.network, self.prompt_ids, cache) if n_new else None
        prefilled = time.perf_counter()
        waited, decoded = 0.0, 0
        ids: list[int] = []
        pieces: list[str] = []
        while logits is not None:
            token = sample(logits, (*self.prompt_ids, *ids), c, rng)
            if token in ends:
                reason = "end_token"
                break
            ids.append(token)
            piece = stream.feed(token)
            if piece:
                pieces.append(piece)
                handed = time.perf_counter()
                yield piece
                waited += time.perf_counter() - handed
            if stream.stopped:
                reason = "stop_string"
                break
            if len(ids) == n_new:
                break
            logits = self.network.forward([token], cache, last_only=True)[0]
            decoded += 1
        ended = time.perf_counter()
        rest = stream.finish()
        if rest:
            pieces.append(rest)
            yield rest
        self.result = Generation(
            text="".join(pieces),
            ids=tuple(ids),
            prompt_ids=self.prompt_ids,
            stop_reason=reason,
            timing=Timing(
                prefill_tokens=len(self.prompt_ids) if n_new else 0,
                prefill_seconds=prefilled - began,
                decode_tokens=decoded,
                decode_seconds=ended - prefilled - waited,
            ),
        )


def prefill(network: Network, ids: Sequence[int], cache: KVCache) -> Float32:
    """Evaluate a prompt in chunks; the logits [n_vocab] after its last token."""
    logits: Float32 | None = None
    for begin in range(0, len(ids), PREFILL_CHUNK):
        logits = network.forward(ids[begin : begin + PREFILL_CHUNK], cache, last_only=True)
    assert logits is not None
    last: Float32 = logits[0]
    return last
