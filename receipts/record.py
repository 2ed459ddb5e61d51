"""The receipt: who ran, on what, with which kernels, compared with whom, how fast, and what that supports.

The first twelve fields of `Receipt` stay where older readers look for them. They are never typed in:
`receipts.summary.assemble` derives them from the evidence beside them, and the verifier derives them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from receipts.codec import Amount, Count, Name, Record, RowsFile, Sha256, Sha256OrNone, Time
from receipts.evidence import (
    Accuracy,
    Case,
    Determinism,
    Ledger,
    LedgerEntry,
    Performance,
    Reference,
    Run,
    SelfCheck,
    TopK,
)
from receipts.lanes import (
    OUTCOMES,
    RUNGS,
    Cause,
    KnownDeviation,
    Lane,
    Located,
    NearTie,
    NoiseFloor,
    Outcome,
    Rung,
    RungName,
    Vote,
)
from receipts.subject import Environment, HyperParameters, Identity, Model, TokenizerRecord

__all__ = [
    "OUTCOMES",
    "RUNGS",
    "SCHEMA_ID",
    "SCHEMA_VERSION",
    "Accuracy",
    "Case",
    "Cause",
    "Claims",
    "Correction",
    "Determinism",
    "Environment",
    "HyperParameters",
    "Identity",
    "KnownDeviation",
    "Lane",
    "Ledger",
    "LedgerEntry",
    "Located",
    "Model",
    "ModelInfo",
    "NearTie",
    "NoiseFloor",
    "Outcome",
    "Parity",
    "Performance",
    "PerformanceBaseline",
    "Receipt",
    "Reference",
    "Run",
    "Rung",
    "RungName",
    "SelfCheck",
    "SideFile",
    "TestResults",
    "TokenizerRecord",
    "TopK",
    "Vote",
]

SCHEMA_VERSION = "1.0.0"
#: A URN: the schema travels with the package and is fetched from nowhere.
SCHEMA_ID = "urn:bitnet-crossval:inference-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims(Record):
    """What the receipt supports, and what it does not, in sentences.

    Attributes:
        supports: Shown by this run.
        does_not: Not shown, though a reader might think so.
    """

    supports: tuple[str, ...] = ()
    does_not: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile(Record):
    """A table too large for the receipt.

    Attributes:
        table: Which; `receipts.tables` has their columns.
        file: Beside the receipt, named by its hash.
        sha256: Of the file.
        bytes: Its size.
        rows: Number of rows.
    """

    table: Literal["operations", "positions", "profiles", "tokens", "runs", "candidates"]
    file: RowsFile
    sha256: Sha256
    bytes: Count
    rows: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(Record):
    """The first model, for older readers.

    Attributes:
        models: Number of models in the receipt.
    """

    name: str
    file: str
    sha256: Sha256OrNone
    arch: str
    models: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResults(Record):
    """Rungs of all lanes, counted by outcome."""

    __test__ = False  # not a test case, whatever its name suggests to a collector

    total: Count
    passed: Count
    failed: Count
    errors: Count
    unsupported: Count
    inconclusive: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceBaseline(Record):
    """The engine's first decode measurement, for older readers; zero when there is none."""

    model: str
    tokens_generated: Count
    total_time_ms: Amount
    tokens_per_second: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity(Record):
    """Lanes, counted.

    Attributes:
        status: `ok` when every required lane passed or deviates as declared, and there is one.
        lanes: All.
        required: Of those.
        passed: Required ones that passed.
        deviations: Required ones that deviate as declared.
        failed: The other required ones.
    """

    status: Literal["ok", "failed", "inconclusive"]
    lanes: Count
    required: Count
    passed: Count
    deviations: Count
    failed: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction(Record):
    """A change made to a model at run time. This engine makes none; the gate refuses any.

    Attributes:
        what: Was changed.
        reason: Given for it.
    """

    what: Name
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt(Record):
    """One run.

    Attributes:
        compute_path: `real` exactly when the ledger holds kernels that computed tokens, else `none`.
        backend: Of every kernel.
        kernels: Names in the ledger, sorted.
        deterministic: Whether it was tried, and every time equal.
        schema: Id of the JSON Schema.
        digest: Sha256 over the canonical form without this field.
    """

    schema_version: Name
    timestamp: Time
    compute_path: Literal["real", "none"]
    backend: Literal["cpu", "cuda", "none"]
    kernels: tuple[Name, ...]
    deterministic: bool
    environment: Environment
    model_info: ModelInfo
    test_results: TestResults
    performance_baseline: PerformanceBaseline
    parity: Parity
    corrections: tuple[Correction, ...]
    identity: Identity
    models: tuple[Model, ...]
    tokenizers: tuple[TokenizerRecord, ...]
    ledger: tuple[Ledger, ...]
    cases: tuple[Case, ...]
    references: tuple[Reference, ...]
    lanes: tuple[Lane, ...]
    accuracy: tuple[Accuracy, ...]
    determinism: tuple[Determinism, ...]
    performance: tuple[Performance, ...]
    claims: Claims
    schema: Name = SCHEMA_ID
    side_files: tuple[SideFile, ...] = ()
    digest: Sha256OrNone = ""

    def model(self, name: str) -> Model | None:
        """The model of that name, or None."""
        return next((model for model in self.models if model.name == name), None)

    def reference(self, key: str) -> Reference | None:
        """The reference of that key, or None."""
        return next((reference for reference in self.references if reference.key == key), None)
