"""Replay: a verifier has some of a receipt computed again, and believes its own machine.

Which cases are run is decided by the receipt's digest together with a nonce that the verifier draws afterwards; so
whoever wrote the receipt could not know, and could not compute only those. The engine is no part of this package: it is
found through the entry points of the group `receipts.replay`, each a function that takes model files and returns a
`Runner`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from receipts.codec import Anything, Record
from receipts.errors import ReceiptError, UnavailableError
from receipts.evidence import Case
from receipts.record import Receipt
from receipts.subject import Model, TokenizerRecord

GROUP = "receipts.replay"
#: Cases of a replay unless told; each is a prompt and its continuation.
CASES = 8
#: Digits of a nonce: 128 bits cannot be guessed.
NONCE_BYTES = 16


class Runner(Protocol):
    """An engine that can compute a case again."""

    #: Name and version, for people.
    name: str

    def model(self, record: Model) -> Model:
        """What a model file is, read and hashed again under the record's name.

        Raises:
            UnavailableError: The file is not here.
            ReceiptError: A file of that name is here, but it is another one, or cannot be read.
        """

    def tokenizer(self, record: Model) -> TokenizerRecord | None:
        """The tokenizer of a model that `model` has returned."""

    def case(self, model: Model, case: Case) -> Case:
        """A case computed again: its prompt, as many tokens as it generated, its numerics.

        Raises:
            UnavailableError: The engine has no such numerics here.
        """


Opener = Callable[[Sequence[Path]], Runner]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One thing that was recomputed.

    Attributes:
        name: `replay.model`, `replay.tokenizer`, `replay.case`.
        outcome: `inconclusive` where it could not be recomputed.
        path: In the receipt.
        why: One sentence.
    """

    name: str
    outcome: str
    path: str
    why: str


def open_runner(files: Sequence[Path]) -> Runner:
    """The engine that is installed here. Raises `UnavailableError` if there is none."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            opener: Opener = entry.load()
        except ImportError as error:
            raise UnavailableError(
                f"the engine {entry.name!r} cannot be loaded ({error})",
                remedy="install its dependencies: pip install bitnet-crossval",
            ) from None
        return opener(files)
    raise UnavailableError(
        "no engine is installed that could replay a receipt",
        remedy="pip install bitnet-crossval, or in a checkout: python -m crossval replay",
    )


def draw_nonce() -> str:
    """A fresh nonce, hexadecimal."""
    return secrets.token_hex(NONCE_BYTES)


def chosen(receipt: Receipt, nonce: str, k: int) -> tuple[int, ...]:
    """Indices of the k cases to run, ascending: those with the smallest keyed hash."""

    def rank(i: int) -> bytes:
        return hmac.digest(nonce.encode(), f"{receipt.digest}:{i}".encode(), hashlib.sha256)

    return tuple(sorted(sorted(range(len(receipt.cases)), key=rank)[:k]))


def replay(receipt: Receipt, runner: Runner, nonce: str, *, k: int | None = CASES) -> Iterator[Replayed]:
    """Recompute cases and their models.

    Args:
        receipt: Whose form and consistency hold.
        runner: The engine.
        nonce: The verifier's, drawn after the receipt was written.
        k: Number of cases; None for all of them, and all models.
    """
    indices = range(len(receipt.cases)) if k is None else chosen(receipt, nonce, k)
    if not indices:
        yield Replayed(name="replay.case", outcome="inconclusive", path="cases", why="there is no case to replay")
    names = {receipt.cases[i].model for i in indices}
    whole: dict[str, Model] = {}
    for i, record in enumerate(receipt.models):
        if record.name in names or k is None:
            seen = _compare("replay.model", f"models[{i}]", record, partial(runner.model, record))
            yield seen
            if seen.outcome == "pass":
                whole[record.name] = record
                yield from _tokenizers(receipt, record, runner)
    for i in indices:
        case = receipt.cases[i]
        if case.model in whole:
            model = whole[case.model]
            yield _compare("replay.case", f"cases[{i}]", case, partial(runner.case, model, case))
        else:
            why = f"its model {case.model!r} could not be used"
            yield Replayed(name="replay.case", outcome="inconclusive", path=f"cases[{i}]", why=why)


def _tokenizers(receipt: Receipt, model: Model, runner: Runner) -> Iterator[Replayed]:
    for i, record in enumerate(receipt.tokenizers):
        if record.model != model.name:
            continue
        found = runner.tokenizer(model)
        path = f"tokenizers[{i}]"
        if found is None or (record.source != "embedded" and found.source != "embedded"):
            # One from elsewhere depends on what lies around here; a model's own is always preferred to it.
            why = "it did not come from the model's file, and is not here"
            yield Replayed(name="replay.tokenizer", outcome="pass", path=path, why=f"not recomputed: {why}")
            continue
        yield _compare("replay.tokenizer", path, record, partial(_same, found))


def _same(record: Record) -> Record:
    return record


def _compare(name: str, path: str, record: Record, again: Callable[[], Record]) -> Replayed:
    try:
        found = again()
    except UnavailableError as error:
        return Replayed(name=name, outcome="inconclusive", path=path, why=error.reason)
    except ReceiptError as error:
        return Replayed(name=name, outcome="fail", path=error.path or path, why=error.reason)
    where = next(differences(record, found), None)
    label = getattr(record, "name", "") or getattr(record, "model", "")
    if where is None:
        return Replayed(name=name, outcome="pass", path=path, why=f"{label}: computed again, equal in every field")
    place, theirs, ours = where
    why = f"{label}: the receipt says {theirs!r:.80}, computed again it is {ours!r:.80}"
    return Replayed(name=name, outcome="fail", path=f"{path}{place}", why=why)


def differences(a: Anything, b: Anything, path: str = "") -> Iterator[tuple[str, Anything, Anything]]:
    """(path, value in a, value in b) of everything that differs between two records of one type."""
    if is_dataclass(a) and type(a) is type(b):
        for f in fields(a):
            yield from differences(getattr(a, f.name), getattr(b, f.name), f"{path}.{f.name}")
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield path, a, b
