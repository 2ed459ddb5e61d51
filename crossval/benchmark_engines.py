"""The engines that `benchmark` times: ours as a user runs it, and llama.cpp in a child process."""

from __future__ import annotations

import time
from pathlib import Path

import bitnet
from bitnet.errors import UsageError
from bitnet.generation_config import GenerationConfig
from bitnet.gguf import GGMLType, read
from crossval.benchmark import Head, Task
from crossval.copies import lossless_copy
from crossval.plan import TIMEOUT
from reference.process import ProcessRunner
from reference.runner import ReferenceUnavailableError, Request

_ALPHABET = 997  # prompts of ids below it: every vocabulary has as many


def prompt(n: int) -> list[int]:
    """Ids without a pattern, so that no draft and no cache helps."""
    return [(i * i * 31 + 7 * i) % _ALPHABET + 3 for i in range(n)]


class Ours:
    """This engine, through `generate`.

    Args:
        model: The file.
        head: Whether greedy tokens read the head by its bounds, as for a user, or all of it, as other engines do.
    """

    name = "bitnet"

    def __init__(self, model: Path, head: Head = "screened") -> None:
        self._path = model
        self._head = head
        self._models: dict[int, bitnet.BitNetModel] = {}

    def _model(self, threads: int) -> bitnet.BitNetModel:
        if threads not in self._models:
            self._models.clear()
            model = bitnet.load(self._path, n_threads=threads)
            model.network.screened = self._head == "screened"
            self._models[threads] = model
        return self._models[threads]

    def seconds(self, task: Task) -> float:
        """Decode or prefill as `generate` does; nothing is reused from an earlier prompt."""
        model = self._model(task.threads)
        if task.what == "prefill":
            cache = model.network.new_cache(task.tokens)
            began = time.perf_counter()
            model.network.forward_top([(prompt(task.tokens), cache)], [[1]])
            return time.perf_counter() - began
        greedy = GenerationConfig(max_new_tokens=task.tokens + 1, ignore_eos=True, lookahead=False)
        prompts = [prompt(max(task.position, 1)) for _ in range(task.batch)]
        for i, ids in enumerate(prompts):
            ids[0] += i  # a beginning of its own: no page is shared
        if task.batch == 1:
            return model.generate(prompts[0], greedy).metrics.decode_seconds
        return model.generate_batch(prompts, greedy, n_batch=task.batch)[0].metrics.decode_seconds

    def weight_bytes(self, task: Task) -> int:
        """What the ledger counts for one greedy step."""
        model = self._model(task.threads)
        ledger = model.network.backend.ledger
        before = ledger.snapshot()
        model.network.forward_top([(prompt(1), model.network.new_cache(1))], [[1]])
        return sum(n_bytes for _, _, n_bytes in ledger.since(before).values())


class LlamaCpp:
    """llama.cpp on a copy of the same weights.

    Args:
        model: The copy.
        name: For tables, with the type.
    """

    def __init__(self, model: Path, name: str) -> None:
        self.name = name
        self._path = model
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
            request = Request(ids=tuple(prompt(task.tokens)), last_only=True)
            return self._runner.run(request).seconds["prefill"]
        ids = tuple(prompt(max(task.position, 1)))
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
    arch = "llama" if source.metadata.get("general.architecture") == "llama" else "bitnet"
    found = []
    for to in (GGMLType.TQ2_0, GGMLType.TQ1_0):
        try:
            copy = lossless_copy(source, folder, to, arch=arch)
        except UsageError as error:
            raise ReferenceUnavailableError(f"llama.cpp cannot be shown this model: {error.what}") from error
        found.append(LlamaCpp(copy, f"llama.cpp {to.name}"))
    return found
