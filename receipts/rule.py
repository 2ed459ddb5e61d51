"""What a rule is: a name, a sentence, and a function that yields each place where a receipt breaks it.

Rules are plain functions over a `View`. The table `RULES` fills as the modules `check_*` are imported; the
verifier runs all of it and the tests show for every rule a receipt that only that rule refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from receipts.errors import ReceiptError
from receipts.evidence import Ledger
from receipts.record import Receipt
from receipts.subject import Model
from receipts.tables import Row

#: (path, what is wrong there)
Finding = tuple[str, str]
Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class View:
    """A receipt as rules see it.

    Attributes:
        receipt: Typed and valid by the schema.
        tables: Rows of its side files, in their order, or why one cannot be read.
        now: The verifier's clock, UTC.
        grouped: Rows by table and lane, kept by whoever groups them first.
    """

    receipt: Receipt
    tables: tuple[list[Row] | ReceiptError, ...]
    now: datetime
    grouped: dict[str, dict[str, list[Row]]] = field(default_factory=dict, repr=False, compare=False)

    def models(self) -> dict[str, Model]:
        """By name."""
        return {model.name: model for model in self.receipt.models}

    def ledgers(self) -> dict[Key, Ledger]:
        """By model and numerics."""
        return {key(part.model, part.numerics): part for part in self.receipt.ledger}


def key(model: str, numerics: Mapping[str, str]) -> Key:
    """What a ledger is unique for."""
    return model, frozenset(numerics.items())


@dataclass(frozen=True, slots=True)
class Rule:
    """One named rule.

    Attributes:
        name: `part.what`, as reports print it.
        says: The rule in one sentence.
        check: Yields its breaches.
    """

    name: str
    says: str
    check: Callable[[View], Iterator[Finding]]


RULES: dict[str, Rule] = {}


def rule(name: str, says: str) -> Callable[[Callable[[View], Iterator[Finding]]], Callable[[View], Iterator[Finding]]]:
    """Enters a function in the table of rules."""

    def enter(check: Callable[[View], Iterator[Finding]]) -> Callable[[View], Iterator[Finding]]:
        if name in RULES:
            raise ValueError(f"two rules are called {name!r}")
        RULES[name] = Rule(name, says, check)
        return check

    return enter
