"""Several prompts continued together: one pass gives each of them a token."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from threading import Event

from bitnet.errors import ResourceLimitError, UsageError
from bitnet.generate import Continuation, Generation, decode
from bitnet.generation_config import GenerationConfig
from bitnet.metrics import Meter
from bitnet.runtime import Runtime
from bitnet.tokenizer import Tokenizer


def generate_batch(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    n_batch: int,
    meters: Sequence[Meter],
) -> list[Generation]:
    """Continuations of several prompts, decoded together; each is what it would be alone, to the bit.

    At most `n_batch` are in progress, and no more than the cache has room for; when one ends, the next begins. A
    beginning that prompts share is evaluated once.

    Raises:
        ContextLengthError: A prompt fills the context.
        ResourceLimitError: The cache has no room even for one.
    """
    sequences = []
    for i, (ids, meter) in enumerate(zip(prompts, meters, strict=True)):
        try:
            sequences.append(Continuation(runtime, tokenizer, ids, config, meter=meter))
        except (ResourceLimitError, UsageError) as error:
            raise type(error)(error.what, where=f"prompts[{i}]", remedy=error.remedy) from error
    never = Event()
    waiting, live = deque(sequences), list[Continuation]()
    try:
        while waiting or live:
            while waiting and len(live) < n_batch:
                try:
                    waiting[0].open()
                except ResourceLimitError:
                    if not live:
                        raise
                    break
                live.append(waiting.popleft())
                live[-1].prefill(never)
                live = _unfinished(live)
            if live:
                decode(runtime, live)
                live = _unfinished(live)
    finally:
        for sequence in sequences:
            sequence.close()
    return [sequence.result() for sequence in sequences]


def _unfinished(sequences: Sequence[Continuation]) -> list[Continuation]:
    for sequence in sequences:
        if sequence.reason is not None:
            sequence.finish()
    return [sequence for sequence in sequences if sequence.reason is None]
