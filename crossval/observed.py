"""What an engine was seen to compute, in a file of two or three arrays: ids, and logits where there are any.

`.npz` (numpy) or `.json`, with the same names: `prompt_ids`, evaluated in one batch; `generated_ids`, chosen greedily
after them, one at a time (optional); `logits` (optional), a row after each id of prompt and continuation, the last one
or more of which may be missing; `log_probabilities` (optional) where they are normalised, as servers tell them.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.errors import UsageError
from crossval.end_to_end import Evaluation
from crossval.metrics import Float32, Float64
from reference.runner import LOG_PROBABILITY_ERROR

_REMEDY = "a .npz or .json file with prompt_ids and generated_ids or logits"
_MOST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """An engine's own words.

    Attributes:
        prompt_ids: Evaluated in one batch.
        generated_ids: Chosen after them.
        logits: [T, n_vocab] after the first T of both; None where ids are all that is known.
        log_probabilities: Whether they are normalised.
    """

    prompt_ids: tuple[int, ...]
    generated_ids: tuple[int, ...] = ()
    logits: Float32 | None = None
    log_probabilities: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        """Those that have a row of logits."""
        return (*self.prompt_ids, *self.generated_ids)[: 0 if self.logits is None else len(self.logits)]

    @property
    def n_finite(self) -> int:
        """Rows of logits before the first one that holds NaN or infinity."""
        odd = np.flatnonzero(~np.isfinite(self._rows()).all(axis=1))
        return int(odd[0]) if odd.size else len(self._rows())

    def evaluation(self, n: int, n_batch: int | None, floor: Float64 | None = None) -> Evaluation:
        """The first rows of logits as something to be explained.

        Args:
            n: How many.
            n_batch: How many of their ids are replayed together, before the others one at a time; None for all.
            floor: As in `Evaluation`.
        """
        return Evaluation(
            ids=self.ids[:n],
            logits=self._rows()[:n],
            n_batch=n_batch,
            floor=floor,
            log_probabilities=self.log_probabilities,
        )

    def own_choices(self) -> tuple[int, ...]:
        """The likeliest id by its own row of logits at each step of the continuation that has one.

        An id that is as likely counts as that, and a row that is not finite has no say.
        """
        first = len(self.prompt_ids) - 1
        rows = self._rows()[first : first + len(self.generated_ids)]
        given = np.asarray(self.generated_ids[: len(rows)], np.int64)
        chosen = rows.argmax(axis=1)
        with np.errstate(invalid="ignore"):
            gap = rows.max(axis=1) - rows[np.arange(len(rows)), given]
        told = 2.0 * LOG_PROBABILITY_ERROR if self.log_probabilities else 0.0
        return tuple(int(i) for i in np.where(gap > told, chosen, given))

    def _rows(self) -> Float32:
        assert self.logits is not None
        return self.logits


def read(path: Path, n_vocab: int) -> Observed:
    """Read a file.

    Raises:
        UsageError: It cannot be read, or does not hold what it should.
    """
    try:
        fields = _json(path) if path.suffix == ".json" else _npz(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", where=path, remedy=_REMEDY) from error
    prompt, generated = (_ids(fields.get(name, ()), name, n_vocab, path) for name in ("prompt_ids", "generated_ids"))
    if not prompt:
        raise UsageError("has no prompt_ids", where=path, remedy=_REMEDY)
    logits = fields.get("logits")
    if logits is None and not generated:
        raise UsageError("has neither generated_ids nor logits", where=path, remedy=_REMEDY)
    normalised = _flag(fields.get("log_probabilities", False), path)
    if logits is not None:
        logits = _logits(logits, len(prompt) + len(generated), n_vocab, path)
    return Observed(prompt_ids=prompt, generated_ids=generated, logits=logits, log_probabilities=normalised)


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise UsageError("is no JSON object", where=path, remedy=_REMEDY)
    return content


def _npz(path: Path) -> dict[str, Any]:
    names = ("prompt_ids", "generated_ids", "logits", "log_probabilities")
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UsageError("is a single array", where=path, remedy=_REMEDY)
    with loaded as arrays:
        return {name: arrays[name] for name in names if name in arrays}


def _ids(values: Any, name: str, n_vocab: int, path: Path) -> tuple[int, ...]:  # noqa: ANN401  # of a file
    try:
        ids = np.asarray(values)
    except ValueError as error:
        raise UsageError(f"{name} is no list of ids", where=path, remedy=_REMEDY) from error
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)) or ids.size > _MOST:
        raise UsageError(f"{name} is no list of ids", where=path, remedy=_REMEDY)
    if ids.size and not (ids.min() >= 0 and ids.max() < n_vocab):
        raise UsageError(f"{name} has an id outside the vocabulary of {n_vocab}", where=path)
    return tuple(int(i) for i in ids)


def _logits(values: Any, n_ids: int, n_vocab: int, path: Path) -> Float32:  # noqa: ANN401  # of a file
    try:
        given = np.asarray(values)
    except ValueError as error:
        raise UsageError("its logits are no table of numbers", where=path) from error
    if not (np.issubdtype(given.dtype, np.floating) or np.issubdtype(given.dtype, np.integer)):
        raise UsageError(f"its logits are no table of real numbers, but of {given.dtype.name}", where=path)
    with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and that is a finding
        logits = given.astype(np.float32)
    if logits.ndim != 2 or not 0 < len(logits) <= n_ids or logits.shape[1] != n_vocab:
        raise UsageError(
            f"its logits have shape {list(logits.shape)}, not a row of {n_vocab} after each of {n_ids} ids",
            where=path,
            remedy="give the rows from the first id on",
        )
    return logits


def _flag(value: Any, path: Path) -> bool:  # noqa: ANN401  # of a file
    told = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    if not isinstance(told, bool):
        raise UsageError("log_probabilities is neither true nor false", where=path)
    return told
