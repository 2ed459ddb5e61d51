"""A loaded model: text, chat, batches, streams, sessions, numbers.

A prompt is a text, a sequence of token ids, or a sequence of chat messages. All three may be lists, so several prompts
are never a plain list given to `generate`: they have a method of their own, `generate_batch`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np

from bitnet.arguments import items_of
from bitnet.batches import generate_batch
from bitnet.cache_pool import CacheStats
from bitnet.config import ModelConfig, Numerics
from bitnet.discovery import Discovery, discover
from bitnet.errors import UsageError
from bitnet.generate import PREFILL_CHUNK, Decoder, Generation
from bitnet.generation_config import GenerationConfig, configured
from bitnet.gguf import GGUF
from bitnet.info import ModelInfo, describe
from bitnet.limits import batch_size
from bitnet.linear import Float32
from bitnet.metrics import Meter
from bitnet.model import Network
from bitnet.runtime import Runtime
from bitnet.session import Session
from bitnet.tokenizer import Tokenizer
from bitnet.weights import Weights

if TYPE_CHECKING:
    from bitnet.chat import ChatTemplate
    from bitnet.validate import WeightReport

#: A text, token ids, or chat messages.
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


class LoadOptions(TypedDict, total=False):
    """What `load` takes beside the path."""

    device: str | None
    n_threads: int | None
    numerics: Numerics | None
    tokenizer: str | os.PathLike[str] | None
    cache_bytes: int | None
    isa: str | None
    packed_cache: bool
    on_packing: Callable[[int, int], None]
    compile_ahead: bool


class BitNetModel:
    """A model that is loaded and ready. Several threads and tasks may call it at the same time.

    Attributes:
        gguf: The file.
        config: Its hyper-parameters.
        weights: Its tensors, packed.
        network: The graph on a backend.
        runtime: What its calls share.
        notices: What its user should know about how it was read.
        tokenizer_path: A tokenizer that takes the place of the file's own, or None.
    """

    def __init__(
        self,
        gguf: GGUF,
        weights: Weights,
        runtime: Runtime,
        notices: Sequence[str] = (),
        tokenizer_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.gguf = gguf
        self.config: ModelConfig = runtime.config
        self.weights = weights
        self.network: Network = runtime.network
        self.runtime = runtime
        self.notices = tuple(notices)
        self.tokenizer_path = tokenizer_path
        self._discovery: Discovery | None = None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **options: Unpack[LoadOptions]) -> BitNetModel:
        """Open a GGUF file, or the folder of a checkpoint; as `bitnet.load`."""
        from bitnet.api import load  # which makes this class

        return load(path, **options)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        file: str | None = None,
        revision: str = "main",
        sha256: str | None = None,
        offline: bool | None = None,
        progress: bool = False,
        **options: Unpack[LoadOptions],
    ) -> BitNetModel:
        """Open a model by the name of its repository, or by a path; what is here needs no network.

        Args:
            name: `owner/name` on the Hugging Face Hub, a file, or a folder.
            file: Which file of it, where there are several models.
            revision: Branch, tag or commit of the repository.
            sha256: Refuse any other content.
            offline: Use the cache alone; default BITNET_OFFLINE.
            progress: Show a bar on standard error.
            options: As `bitnet.load`.

        Raises:
            UsageError: Several models could be meant, or none.
            DownloadError: It is neither here nor to be had.
            ModelFileError: The file is damaged, or not what was announced.
        """
        from bitnet.api import load
        from bitnet.pretrained import resolve  # what fetches files takes a while to import

        path = resolve(name, file=file, revision=revision, sha256=sha256, offline=offline, progress=progress)
        return load(path, **options)

    # --- text and ids -------------------------------------------------------------------------------------------------

    @property
    def discovery(self) -> Discovery:
        """The tokenizer with where it was found, and how. Raises `TokenizerError` if none fits the model."""
        if self._discovery is None:
            self._discovery = discover(self.gguf, path=self.tokenizer_path, n_vocab=self.config.n_vocab)
        return self._discovery

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `TokenizerError` if none fits the model."""
        return self.discovery.tokenizer

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a text, of chat messages (``[{"role": "user", "content": …}]``), or of ids themselves."""
        if isinstance(prompt, Mapping):
            raise UsageError("the prompt is a single message, not a list of messages", remedy="put it in a list")
        items = () if isinstance(prompt, str) else items_of(prompt, "the prompt", "a text, token ids or chat messages")
        first = items[0] if items else None
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif isinstance(first, Mapping):
            t = self.tokenizer
            ids = t.encode(self.chat_prompt(items), add_special=False)
            if t.add_bos and t.bos_id is not None and ids[:1] != (t.bos_id,):
                ids = (t.bos_id, *ids)  # the template leaves it to the tokenizer
        elif isinstance(first, str):
            raise UsageError("token ids are whole numbers, not texts", remedy="for several prompts use generate_batch")
        else:
            return self.network.check_ids(items)
        if not ids:
            raise UsageError("the prompt has no tokens", remedy="give some text; this model adds no BOS of its own")
        return ids

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages rendered by the model's chat template, ready for the answer."""
        from bitnet.chat import render  # jinja2 costs a tenth of a second, and few callers chat

        t = self.tokenizer
        bos, eos = (t.token_text(i) if i is not None else "" for i in (t.bos_id, t.eos_id))
        return render(self.chat_template.text, messages, bos_token=bos, eos_token=eos)

    @property
    def chat_template(self) -> ChatTemplate:
        """The template and where it comes from. Raises `TokenizerError` if there is none."""
        from bitnet.chat import template_of

        return template_of(self.gguf, self.discovery.chat_template)

    # --- generation ---------------------------------------------------------------------------------------------------

    def decoder(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        cancelled: Event | None = None,
        **settings: Any,
    ) -> Decoder:
        """A continuation to iterate for text as it comes; its `result` is the `Generation` afterwards.

        Args:
            prompt: What to continue.
            config: How; default greedy.
            cancelled: Ends it, when set, after the token in progress; as its `cancel` does.
            settings: Fields of `GenerationConfig` that take the place of the config's.
        """
        meter = Meter()
        chosen = configured(config, settings)
        with meter.phase("tokenise"):
            ids = self.encode(prompt)
        return Decoder(self.runtime, self.tokenizer, ids, chosen, meter=meter, cancelled=cancelled or Event())

    def stream(self, prompt: Prompt, config: GenerationConfig | None = None, **settings: Any) -> Iterator[str]:
        """Pieces of the continuation as they come; `settings` are fields of `GenerationConfig`."""
        yield from self.decoder(prompt, config, **settings)

    def generate(self, prompt: Prompt, config: GenerationConfig | None = None, **settings: Any) -> Generation:
        """The whole continuation; `settings` are fields of `GenerationConfig`."""
        return self.decoder(prompt, config, **settings).run()

    def generate_batch(
        self,
        prompts: Iterable[Prompt],
        config: GenerationConfig | None = None,
        *,
        n_batch: int | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Continuations of several prompts, decoded together; each is the one `generate` gives, to the bit.

        Args:
            prompts: Each as for `generate`.
            config: For all of them.
            n_batch: At most so many at once; default BITNET_BATCH_SIZE, else 8. Results do not depend on it.
            settings: Fields of `GenerationConfig`.

        Raises:
            UsageError, ResourceLimitError: A prompt cannot be continued; its number is named. Nothing was generated.
        """
        if isinstance(prompts, str):
            raise UsageError("is one text, not several prompts", where="prompts", remedy="put it in a list")
        several: tuple[Prompt, ...] = items_of(prompts, "prompts", "several prompts")
        chosen, n_batch = configured(config, settings), batch_size(n_batch)
        ids: list[tuple[int, ...]] = []
        meters = [Meter() for _ in several]
        for i, (prompt, meter) in enumerate(zip(several, meters, strict=True)):
            with meter.phase("tokenise"):
                try:
                    ids.append(self.encode(prompt))
                except UsageError as error:
                    raise UsageError(error.what, where=f"prompts[{i}]", remedy=error.remedy) from error
        if not ids:
            return []
        return generate_batch(self.runtime, self.tokenizer, ids, chosen, n_batch=n_batch, meters=meters)

    async def agenerate(self, prompt: Prompt, config: GenerationConfig | None = None, **settings: Any) -> Generation:
        """As `generate`, without keeping the event loop waiting. Cancelling it stops after the token in progress."""
        from bitnet.aio import whole

        return await whole(lambda e: self.decoder(prompt, config, cancelled=e, **settings), self.runtime.workers)

    async def astream(
        self, prompt: Prompt, config: GenerationConfig | None = None, **settings: Any
    ) -> AsyncIterator[str]:
        """As `stream`, likewise; a token is made when its piece is asked for."""
        from bitnet.aio import pieces

        stream = pieces(lambda e: self.decoder(prompt, config, cancelled=e, **settings), self.runtime.steppers)
        try:
            async for piece in stream:
                yield piece
        finally:
            await stream.aclose()

    def prefill(self, prompt: Prompt) -> Session:
        """Evaluate a prompt once; the session can be gone on from, as often as one likes."""
        return Session(self.runtime, lambda: self.tokenizer, self.encode(prompt))

    # --- numbers ------------------------------------------------------------------------------------------------------

    def logits(self, prompt: Prompt) -> Float32:
        """Logits [n_token, n_vocab] f32 after each token of a prompt.

        Raises:
            ResourceLimitError: The prompt is longer than the context, or making its logits takes more than
                BITNET_MEMORY_LIMIT leaves.
        """
        ids = self.encode(prompt)
        cache = self.runtime.cache_apart(ids, self.config.n_vocab + self._pass_floats(len(ids), len(ids)))
        return self.runtime.logits(ids, cache)

    def embed(self, prompt: Prompt, pool: Literal["none", "mean", "last"] = "none") -> Float32:
        """States after the last norm, before the head: what the model knows at each token.

        Args:
            prompt: What to embed.
            pool: `none` gives [n_token, n_embd] f32; `mean` their mean and `last` the last one, [n_embd] f32.

        Raises:
            UsageError: `pool` is none of these.
            ResourceLimitError: The prompt is longer than the context, or making its states takes more than
                BITNET_MEMORY_LIMIT leaves.
        """
        if pool not in ("none", "mean", "last"):
            raise UsageError(f"pool is {pool!r}", where="embed", remedy="none, mean or last")
        ids = self.encode(prompt)
        n_float = 2 * self.config.n_embd + self._pass_floats(len(ids), PREFILL_CHUNK)  # states in parts, and joined
        cache = self.runtime.cache_apart(ids, n_float)
        parts = [self.runtime.hidden(ids[i : i + PREFILL_CHUNK], cache) for i in range(0, len(ids), PREFILL_CHUNK)]
        states = np.concatenate(parts)
        if pool == "none":
            return states
        pooled: Float32 = states[-1] if pool == "last" else states.mean(axis=0, dtype=np.float64).astype(np.float32)
        return pooled

    def _pass_floats(self, n_token: int, n_pass: int) -> int:
        """Floats that passes of at most `n_pass` tokens take, about, as a share of each of all tokens."""
        c = self.config
        one = 5 * c.n_embd + 4 * c.n_q + 2 * c.n_kv + 5 * c.n_ff  # of a layer, with what is quantised and padded
        return -(-one * min(n_token, n_pass) // n_token)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """What it is and how it runs."""
        return describe(self.gguf, self.weights, self.network, self.notices)

    @property
    def cache_stats(self) -> CacheStats:
        """The state of the KV cache, and how often it helped."""
        return self.runtime.pool.stats()

    def validate_weights(self) -> WeightReport:
        """Count and examine every tensor: trits, scales, norms, and what is odd about them."""
        from bitnet.validate import validate_weights  # few callers ask

        return validate_weights(self.gguf, self.config, self.weights.formats)

    def close(self) -> None:
        """Give the cache and the threads back; calls in progress end at their next token. May be called twice."""
        self.runtime.close()

    def __enter__(self) -> BitNetModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.config
        return (
            f"<bitnet.BitNetModel {self.gguf.path.name}: {c.arch}, {c.n_layer} layers, n_embd {c.n_embd}, "
            f"{c.activation}, {self.weights.n_bytes / 1e6:.1f} MB a token>"
        )

    def _repr_html_(self) -> str:
        return self.info._repr_html_()
