"""Prefill, decode, stop: tokens one after another, and the text they make."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from threading import Event
from typing import Any, Literal

import numpy as np

from bitnet import html
from bitnet.cache import KVCache
from bitnet.errors import ContextLengthError
from bitnet.generation_config import GenerationConfig
from bitnet.linear import Float32
from bitnet.lookahead import Lookahead
from bitnet.metrics import Meter, Metrics
from bitnet.model import Candidates
from bitnet.runtime import Runtime
from bitnet.sampler import needed, sample
from bitnet.streaming import TextStream
from bitnet.tokenizer import Tokenizer

StopReason = Literal["length", "end_token", "stop_string", "context", "cancelled"]

#: Tokens of a prompt that are evaluated together; bounds the memory of a long one without changing a bit.
PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A finished continuation.

    Attributes:
        text: What follows the prompt, without a stop string.
        ids: The generated ids, without the end token that stopped them.
        prompt_ids: What the prompt became.
        stop_reason: Why it ended.
        metrics: What it cost.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    stop_reason: StopReason
    metrics: Metrics

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = asdict(self) | {"metrics": self.metrics.to_dict()}
        return values | {"ids": list(self.ids), "prompt_ids": list(self.prompt_ids)}

    def _repr_html_(self) -> str:
        ended = f"{len(self.ids)} tokens, ended by {self.stop_reason.replace('_', ' ')}"
        return html.text(ended, self.text) + html.table("metrics", self.metrics.rows())


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """A prompt's beginning that is evaluated already.

    Attributes:
        cache: Where its keys and values are; forked, never written.
        logits: [n_vocab] after its last token.
    """

    cache: KVCache
    logits: Float32


class Continuation:
    """One prompt and what follows it, while it is made: its cache, its sampler, its text, its meter."""

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        *,
        meter: Meter | None = None,
        beginning: Beginning | None = None,
    ) -> None:
        self.began = time.perf_counter()
        self.runtime, self.config = runtime, config
        self.prompt_ids = runtime.check_ids(prompt_ids)
        self.meter = meter or Meter()
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.reason: StopReason | None = None
        self.evaluated = 0  # tokens of the last pass that count
        self._ends = frozenset(config.stop_ids) | (frozenset() if config.ignore_eos else tokenizer.end_ids)
        self._stream = TextStream(tokenizer, config.stop, continuation=True)
        self._rng = np.random.default_rng(config.seed)
        self._room = self._check_room()
        self._beginning = beginning
        self._lookahead = self._guesses()
        self._guessed: list[int] = []  # of the pass in progress
        self.cache: KVCache | None = None

    def _check_room(self) -> int:
        """Tokens that may be generated."""
        n_ctx, n_prompt = self.runtime.config.n_ctx, len(self.prompt_ids)
        if self.config.context == "slide":
            return self.config.max_new_tokens
        if n_prompt >= n_ctx:
            raise ContextLengthError(
                f"the prompt has {n_prompt} tokens; the model's context is {n_ctx}",
                remedy="shorten the prompt, or let the context slide",
            )
        return min(self.config.max_new_tokens, n_ctx - n_prompt)

    def _guesses(self) -> Lookahead | None:
        """Whether guesses are made: not where positions slide, nor where rounding depends on how many are evaluated."""
        numerics = self.runtime.network.numerics
        by_pass = "f16_decode" in (numerics.probs, numerics.head)
        if not self.config.lookahead or self.config.context == "slide" or by_pass:
            return None
        return Lookahead(self.prompt_ids, self.runtime.pass_cost)

    def open(self) -> None:
        """Take room in the cache. Raises `ResourceLimitError` if there is none now."""
        if not self._room:
            return
        n_ctx = min(len(self.prompt_ids) + self._room, self.runtime.config.n_ctx)
        slides = self.config.context == "slide" and n_ctx < len(self.prompt_ids) + self._room
        context: Literal["stop", "slide"] = "slide" if slides else "stop"
        if self._beginning is not None:
            self.cache = self._beginning.cache.fork(n_ctx, context=context)
        else:
            self.cache = self.runtime.open_cache(n_ctx, context)
            self.cache.reuse(self.prompt_ids)

    def prefill(self, cancelled: Event) -> str:
        """Evaluate what is not in the cache, and choose the first token; text that is certain."""
        self.meter.prompt_tokens = len(self.prompt_ids)
        if self.cache is None:
            self.reason = "length"
            return ""
        self.meter.cached_tokens = self.cache.position
        found = Candidates(ids=None, logits=self._beginning.logits) if self._beginning is not None else None
        for evaluated in prefill(self.runtime, self.prompt_ids, self.cache, self.meter, self.wanted[0]):
            found = evaluated
            if cancelled.is_set():
                break
        if found is None or cancelled.is_set():
            self.reason = "cancelled"
            return ""
        piece = self.accept([found])
        self.meter.first_token_seconds = self.meter.seconds.get("tokenise", 0.0) + time.perf_counter() - self.began
        return piece

    @property
    def wanted(self) -> list[int | None]:
        """For each token of the next pass that counts, how many of the largest logits decide; None: all."""
        n_seen = len(self.prompt_ids) + len(self.ids)
        return [needed(self.config, n_seen + i) for i in range(1 + len(self._guessed))]

    def accept(self, found: Sequence[Candidates]) -> str:
        """Choose the next tokens, one more than guesses were right; text that is certain. Sets `reason` at the end."""
        pieces, right = [], 0
        for i, candidates in enumerate(found):
            pieces.append(self._choose(candidates))
            if self.reason is not None or i == len(self._guessed) or self.ids[-1] != self._guessed[i]:
                break
            right += 1
        wrong = len(self._guessed) - right
        if wrong and self.cache is not None:
            self.cache.truncate(self.cache.n_past - wrong)
        self.meter.guessed_tokens += len(self._guessed)
        self.meter.accepted_tokens += right
        self.evaluated = 1 + right
        self._guessed = []
        return "".join(pieces)

    def _choose(self, found: Candidates) -> str:
        token = sample(found.logits, (*self.prompt_ids, *self.ids), self.config, self._rng, found.ids)
        if token in self._ends:
            self.reason = "end_token"
            return ""
        self.ids.append(token)
        if self._lookahead is not None:
            self._lookahead.append(token)
        piece = self._keep(self._stream.feed(token))
        if self._stream.stopped:
            self.reason = "stop_string"
        elif len(self.ids) == self._room:
            self.reason = "length" if self._room == self.config.max_new_tokens else "context"
        return piece

    def next(self, *, alone: bool) -> tuple[list[int], KVCache]:
        """What the next pass evaluates: the last token, and what may follow it if no other sequence shares the pass."""
        assert self.cache is not None
        room = min(self.cache.make_room(), self._room - len(self.ids)) - 1
        if alone and self._lookahead is not None and room > 0:
            self._guessed = self._lookahead.propose(room)
        return [*self.ids[-1:], *self._guessed], self.cache

    def finish(self) -> str:
        """The text still held back; the cache is given back."""
        self.close()
        return self._keep(self._stream.finish())

    def close(self) -> None:
        """Give the cache back; also what is to be done after an error."""
        if self.cache is not None:
            self.cache.close()

    def result(self) -> Generation:
        """The whole, after `finish`."""
        assert self.reason is not None
        return Generation(
            text="".join(self.pieces),
            ids=tuple(self.ids),
            prompt_ids=self.prompt_ids,
            stop_reason=self.reason,
            metrics=self.meter.finish(load_seconds=self.runtime.load_seconds, threads=self.runtime.threads),
        )

    def _keep(self, piece: str) -> str:
        if piece:
            self.pieces.append(piece)
        return piece


def prefill(
    runtime: Runtime, ids: Sequence[int], cache: KVCache, meter: Meter, wanted: int | None = None
) -> Iterator[Candidates]:
    """Evaluate what of a prompt is not in the cache, chunk by chunk; after each the `wanted` largest logits, or all.

    Raises:
        ModelFileError: The model's file was written to since it was opened.
    """
    runtime.check_file()
    while cache.position < len(ids):
        with meter.phase("prefill"):
            begin = cache.position
            n = min(PREFILL_CHUNK, cache.make_room(), len(ids) - begin)
            found = runtime.step([(ids[begin : begin + n], cache)], [meter], [[wanted]])[0][0]
            meter.prefill_tokens += n
        yield found


def decode(runtime: Runtime, sequences: Sequence[Continuation]) -> list[str]:
    """One pass over sequences that are not at their end: a token more for each, or several; text that is certain."""
    began = time.perf_counter()
    batch = [s.next(alone=len(sequences) == 1) for s in sequences]
    found = runtime.step(batch, [s.meter for s in sequences], [s.wanted for s in sequences])
    pieces = [s.accept(candidates) for s, candidates in zip(sequences, found, strict=True)]
    seconds = time.perf_counter() - began
    if len(sequences) == 1:
        runtime.pass_cost.record(len(batch[0][0]), seconds)
    for s in sequences:
        s.meter.decode_tokens += s.evaluated
        s.meter.add_seconds("decode", seconds)
    return pieces


@dataclass(slots=True)
class Decoder:
    """One continuation in progress: iterate it for pieces of text; then `result` holds the whole."""

    runtime: Runtime
    tokenizer: Tokenizer
    prompt_ids: tuple[int, ...]
    config: GenerationConfig
    meter: Meter = field(default_factory=Meter)
    beginning: Beginning | None = None
    cancelled: Event = field(default_factory=Event)
    result: Generation | None = None

    def cancel(self) -> None:
        """End after the token in progress; from any thread. The result then says `cancelled`."""
        self.cancelled.set()

    def __iter__(self) -> Iterator[str]:
        sequence = Continuation(
            self.runtime, self.tokenizer, self.prompt_ids, self.config, meter=self.meter, beginning=self.beginning
        )
        try:
            sequence.open()
            piece = sequence.prefill(self.cancelled)
            while True:
                if piece:
                    yield piece
                if sequence.reason is None and self.cancelled.is_set():
                    sequence.reason = "cancelled"
                if sequence.reason is not None:
                    break
                piece = decode(self.runtime, [sequence])[0]
            rest = sequence.finish()
            if rest:
                yield rest
            self.result = sequence.result()
        finally:
            sequence.close()

    def run(self) -> Generation:
        """To the end, without a reader."""
        for _ in self:
            pass
        assert self.result is not None
        return self.result
