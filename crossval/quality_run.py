"""Quality of a model on a text: evaluate its chunks with any runner, keep them as a base, or score them against one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import UsageError
from crossval import kld_file, quality
from crossval.metrics import Float32
from reference.runner import Request, Runner

Progress = Callable[[int, int], None]


def text_chunks(ids: Sequence[int], n_ctx: int, limit: int | None = None) -> NDArray[np.int32]:
    """A text's ids as [n_chunk, n_ctx]; what is left at the end is not used.

    Raises:
        UsageError: The text does not fill one chunk, or a chunk scores nothing.
    """
    n = len(ids) // n_ctx if n_ctx else 0
    if n_ctx < 4 or n == 0:
        raise UsageError(
            f"{len(ids)} tokens make no chunk of {n_ctx}", where="--n-ctx", remedy="give a longer text, or 4 ≤ --n-ctx"
        )
    n = n if limit is None else min(n, limit)
    return np.asarray(ids[: n * n_ctx], np.int32).reshape(n, n_ctx)


def evaluate(
    runner: Runner,
    tokens: NDArray[np.int32],
    *,
    bos: int | None,
    base: Path | None = None,
    save: Path | None = None,
    progress: Progress = lambda _done, _all: None,
) -> quality.Quality:
    """Score every chunk.

    Args:
        runner: Who computes.
        tokens: [n_chunk, n_ctx]; taken from `base` where there is one (they must be equal).
        bos: Put in place of the first token of each chunk; None for a model that wants none.
        base: A file of log-probabilities to compare with.
        save: Where to write one.
        progress: Told of chunks done, and of how many.

    Raises:
        UsageError: The base is of another text or vocabulary.
        ReferenceFailedError: The runner died.
    """
    if save is None:
        return _scored(runner, tokens, bos, base, None, progress)
    with kld_file.Writer(save, tokens, _n_vocab(runner, tokens, bos)) as writer:
        return _scored(runner, tokens, bos, base, writer, progress)


def _scored(
    runner: Runner,
    tokens: NDArray[np.int32],
    bos: int | None,
    base: Path | None,
    writer: kld_file.Writer | None,
    progress: Progress,
) -> quality.Quality:
    header = None if base is None else kld_file.read_header(base)
    if header is not None and not np.array_equal(header.tokens, tokens):
        raise UsageError("was written from another text", where=base, remedy="leave --text out: the file holds its own")
    stored = None if base is None or header is None else kld_file.chunks(base, header)
    parts: list[quality.Scores] = []
    for i, chunk in enumerate(tokens):
        logits, following = _rows(runner, chunk, bos)
        if header is not None and logits.shape[1] != header.n_vocab:
            raise UsageError(f"has {header.n_vocab} tokens in its vocabulary, not {logits.shape[1]}", where=base)
        if writer is not None:
            writer.add(logits)
        parts.append(quality.score(logits, following, None if stored is None else next(stored)))
        progress(i + 1, len(tokens))
    return quality.summarise(quality.joined(parts))


def _rows(runner: Runner, chunk: NDArray[np.int32], bos: int | None) -> tuple[Float32, tuple[int, ...]]:
    """Logits of the second half of a chunk, and the tokens they predict."""
    ids = tuple(int(i) for i in chunk)
    first = len(ids) // 2
    seen = runner.run(Request(ids=ids if bos is None else (bos, *ids[1:])))
    return seen.logits[first:-1], ids[first + 1 :]


def _n_vocab(runner: Runner, tokens: NDArray[np.int32], bos: int | None) -> int:
    """Width of the logits, from one evaluated token: a runner does not tell it otherwise."""
    first = int(tokens[0, 0]) if bos is None else bos
    return int(runner.run(Request(ids=(first,))).logits.shape[1])
