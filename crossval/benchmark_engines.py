"""The engines that `benchmark` times: ours as a user runs it, and llama.cpp in a child process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import bitnet
from bitnet.architecture import read_config
from bitnet.arguments import whole_number
from bitnet.cache_pool import page_bytes, pages_for
from bitnet.errors import BitNetError, UsageError
from bitnet.generate import Generation
from bitnet.generation_config import GenerationConfig
from bitnet.gguf import GGMLType, read
from bitnet.hf import open_model
from bitnet.limits import MOST_THREADS, batch_size
from bitnet.runtime import pool_pages
from crossval.benchmark import Head, Task
from crossval.copies import lossless_copy
from crossval.plan import TIMEOUT
from reference.process import ProcessRunner
from reference.runner import ReferenceUnavailableError, Request

_ALPHABET = 997  # ids that prompts are made of, where the vocabulary has as many
_FIRST = 3  # the ids before it are control tokens in most vocabularies


def prompt(n: int, n_vocab: int) -> list[int]:
    """Ids of a vocabulary without a pattern, so that no draft and no cache helps."""
    first = min(_FIRST, n_vocab - 1)
    alphabet = min(_ALPHABET, n_vocab - first)
    return [(i * i * 31 + 7 * i) % alphabet + first for i in range(n)]


def check(model: Path, tasks: Sequence[Task]) -> None:
    """Whether a model can do all that is to be timed, by its header alone.

    Raises:
        UsageError: A task takes more than the model's context, or more sequences or threads than there may be.
        ModelFileError: The file is no model.
    """
    config, _ = read_config(open_model(model))
    for task in tasks:
        if task.n_ctx > config.n_ctx:
            parts = f"{max(task.position, 1)} + {task.tokens} + 1" if task.what == "decode" else str(task.tokens)
            options = "--prefill" if task.what == "prefill" else "--decode or --position"
            raise UsageError(
                f"takes a context of {parts} tokens; {model.name} has one of {config.n_ctx}",
                where=task.name,
                remedy=f"ask for less with {options}",
            )
        batch_size(task.batch)
        whole_number(task.threads, "threads", f"a whole number, 1 to {MOST_THREADS}", most=MOST_THREADS)


class Ours:
    """This engine, through `generate`.

    Args:
        model: The file.
        tasks: All that it will be given: its KV cache has room for the sequences of each.
        head: Whether greedy tokens read the head by its bounds, as for a user, or all of it, as other engines do.
    """

    name = "bitnet"

    def __init__(self, model: Path, tasks: Sequence[Task], head: Head = "screened") -> None:
        self._path = model
        self._pages = max(task.batch * pages_for(task.n_ctx) for task in tasks)
        self._head = head
        self._models: dict[int, bitnet.BitNetModel] = {}

    def _model(self, threads: int) -> bitnet.BitNetModel:
        if threads not in self._models:
            self._models.clear()
            model = bitnet.load(self._path, n_threads=threads)
            model.network.screened = self._head == "screened"
            if self._pages > pool_pages(model.network):
                one = page_bytes(model.config, model.network.numerics)
                model.runtime.cache_bytes = self._pages * one
            self._models[threads] = model
        return self._models[threads]

    def seconds(self, task: Task) -> float:
        """Decode or prefill as `generate` does; nothing is reused from an earlier prompt.

        Raises:
            BitNetError: It did not do all of it: what it took would be no measure.
        """
        model = self._model(task.threads)
        n_vocab = model.config.n_vocab
        if task.what == "prefill":
            cache = model.network.new_cache(task.tokens)
            began = time.perf_counter()
            model.network.forward_top([(prompt(task.tokens, n_vocab), cache)], [[1]])
            return time.perf_counter() - began
        greedy = GenerationConfig(max_new_tokens=task.tokens + 1, ignore_eos=True, lookahead=False)
        prompts = [prompt(max(task.position, 1), n_vocab) for _ in range(task.batch)]
        for i, ids in enumerate(prompts):
            ids[0] = (ids[0] + i) % n_vocab  # a beginning of its own: no page is shared
        if task.batch == 1:
            return _decoded(task, [model.generate(prompts[0], greedy)])
        return _decoded(task, model.generate_batch(prompts, greedy, n_batch=task.batch))

    def weight_bytes(self, task: Task) -> int:
        """What the ledger counts for one greedy step."""
        model = self._model(task.threads)
        ledger = model.network.backend.ledger
        before = ledger.snapshot()
        model.network.forward_top([(prompt(1, model.config.n_vocab), model.network.new_cache(1))], [[1]])
        return sum(n_bytes for _, _, n_bytes in ledger.since(before).values())


def _decoded(task: Task, found: Sequence[Generation]) -> float:
    """The seconds of all passes, once they are known to be those of the task."""
    for made in (generation.metrics for generation in found):
        if (made.decode_tokens, made.batch) != (task.tokens, task.batch):
            raise BitNetError(
                f"{made.decode_tokens} of {task.tokens} tokens were decoded, {made.batch} of {task.batch} sequences "
                "together, so there is no speed to tell",
                where=task.name,
                remedy="ask for fewer sequences or tokens; a KV cache for all has no room in memory",
            )
    return found[0].metrics.decode_seconds


class LlamaCpp:
    """llama.cpp on a copy of the same weights.

    Args:
        model: The copy.
        name: For tables, with the type.
        n_vocab: Ids of the model.
    """

    def __init__(self, model: Path, name: str, n_vocab: int) -> None:
        self.name = name
        self._path = model
        self._n_vocab = n_vocab
        self._runner: ProcessRunner | None = None
        self._threads = 0

    def seconds(self, task: Task) -> float:
        """Decode or prefill in the child."""
        if self._runner is None or self._threads != task.threads:
            self.close()
            settings = {"model": str(self._path), "n_threads": task.threads}
            self._runner = ProcessRunner("reference.llama_cpp:LlamaCpp", settings, timeout=TIMEOUT)
            self._threads = task.threads
        if task.what == "prefill":
            request = Request(ids=tuple(prompt(task.tokens, self._n_vocab)), last_only=True)
            return self._runner.run(request).seconds["prefill"]
        ids = tuple(prompt(max(task.position, 1), self._n_vocab))
        request = Request(ids=ids, n_greedy=task.tokens + 1, last_only=True)
        return self._runner.run(request).seconds["decode"]

    def weight_bytes(self, _task: Task) -> int | None:
        """All of the file but what a step looks up in the embedding; close enough to its size."""
        return self._path.stat().st_size

    def close(self) -> None:
        """End the child."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def peers(model: Path, folder: Path) -> list[LlamaCpp]:
    """llama.cpp on TQ2_0 and TQ1_0 copies, made once; under the name of the architecture that it computes.

    Raises:
        ReferenceUnavailableError: The model has no ternary weights that llama.cpp reads.
    """
    source = read(model)
    config, _ = read_config(source)
    arch = "llama" if source.metadata.get("general.architecture") == "llama" else "bitnet"
    found = []
    for to in (GGMLType.TQ2_0, GGMLType.TQ1_0):
        try:
            copy = lossless_copy(source, folder, to, arch=arch)
        except UsageError as error:
            raise ReferenceUnavailableError(f"llama.cpp cannot be shown this model: {error.what}") from error
        found.append(LlamaCpp(copy, f"llama.cpp {to.name}", config.n_vocab))
    return found
