"""A prompt that is evaluated once and gone on from as often as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bitnet.arguments import items_of
from bitnet.errors import UsageError
from bitnet.generate import Beginning, Decoder, Generation, prefill
from bitnet.generation_config import GenerationConfig, configured
from bitnet.linear import Float32
from bitnet.metrics import Meter, Metrics
from bitnet.runtime import Runtime
from bitnet.tokenizer import Tokenizer

More = str | Sequence[int]


class Session:
    """A prompt held in the cache. What is generated from it does not change it; `extend` does.

    It keeps its pages until it is closed (with-statement) or forgotten. Continuations may run at the same time, in
    several threads.

    Args:
        runtime: The model.
        tokenizer: Its tokenizer, asked for when there is text.
        ids: The prompt.

    Attributes:
        ids: What is held.
        metrics: What evaluating the prompt cost.

    Raises:
        ResourceLimitError: The prompt does not fit in the context, or in what is left of the cache.
    """

    def __init__(self, runtime: Runtime, tokenizer: Callable[[], Tokenizer], ids: Sequence[int]) -> None:
        self._runtime = runtime
        self._tokenizer = tokenizer
        self.ids = runtime.within_context(runtime.check_ids(ids))
        meter = Meter(prompt_tokens=len(self.ids))
        cache = runtime.open_cache(len(self.ids))
        meter.cached_tokens = cache.reuse(self.ids)
        *_, last = prefill(runtime, self.ids, cache, meter)
        self._held: Beginning | None = Beginning(cache=cache, logits=last.logits)
        self.metrics: Metrics = meter.finish(load_seconds=runtime.load_seconds, threads=runtime.threads)

    @property
    def n_past(self) -> int:
        """Tokens held."""
        return len(self.ids)

    @property
    def logits(self) -> Float32:
        """[n_vocab] f32 after the last token held; a copy."""
        return self._beginning.logits.copy()

    def extend(self, more: More) -> None:
        """Hold more: text, which is tokenised by itself, or ids.

        Raises:
            ResourceLimitError: It does not fit; the session is as it was.
        """
        ids = self._encode(more)
        if not ids:
            return
        before, whole = self._beginning, self._runtime.within_context((*self.ids, *ids))
        cache = before.cache.fork(len(whole))
        try:
            *_, last = prefill(self._runtime, whole, cache, Meter())
        except BaseException:
            cache.close()
            raise
        self.ids, self._held = whole, Beginning(cache=cache, logits=last.logits)
        before.cache.close()

    def decoder(self, more: More = "", config: GenerationConfig | None = None, **settings: object) -> Decoder:
        """A continuation of what is held, and of `more`; as `BitNetModel.decoder`."""
        chosen = configured(config, settings)
        meter = Meter()
        with meter.phase("tokenise"):
            ids = (*self.ids, *self._encode(more))
        return Decoder(
            self._runtime,
            self._tokenizer(),
            ids,
            chosen,
            meter=meter,
            beginning=self._beginning,
        )

    def stream(self, more: More = "", config: GenerationConfig | None = None, **settings: object) -> Iterator[str]:
        """Pieces of a continuation as they come."""
        yield from self.decoder(more, config, **settings)

    def generate(self, more: More = "", config: GenerationConfig | None = None, **settings: object) -> Generation:
        """A whole continuation."""
        return self.decoder(more, config, **settings).run()

    def fork(self) -> Session:
        """Another session that holds the same, to be extended in another way."""
        held = self._beginning
        new = object.__new__(Session)
        new._runtime, new._tokenizer, new.ids, new.metrics = self._runtime, self._tokenizer, self.ids, self.metrics
        new._held = Beginning(cache=held.cache.fork(), logits=held.logits)
        return new

    def close(self) -> None:
        """Let go of the cache. A second call does nothing."""
        if self._held is not None:
            self._held.cache.close()
            self._held = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<bitnet.Session {self.n_past} tokens{'' if self._held is not None else ', closed'}>"

    @property
    def _beginning(self) -> Beginning:
        if self._held is None:
            raise UsageError("the session is closed", remedy="prefill the prompt again")
        return self._held

    def _encode(self, more: More) -> tuple[int, ...]:
        if isinstance(more, str):
            return self._tokenizer().encode(more, add_special=False)
        ids = items_of(more, "what follows", "a text or token ids")
        return self._runtime.check_ids(ids) if ids else ()
