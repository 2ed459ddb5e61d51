"""What was seen: the ledger of kernels, cases, references, accuracy, determinism, speed.

Every record here is filled in by what ran. The verifier compares them with each other and with the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from receipts.codec import SPARSE, Amount, Count, Name, Record, Sha256, Sha256OrNone, Token
from receipts.lanes import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry(Record):
    """What one kernel did.

    Attributes:
        kernel: Id in the dispatcher's table.
        role: `projection` (the seven of a layer) or `head`.
        weight_type: Type of the weights in the file.
        isa: Instruction set that it was compiled for.
        calls: How often it was called.
        rows: Matrix rows × tokens, summed.
        bytes: Weight bytes read, once a call.
        fallback: Whether it stood in for a faster one; unknown is never no.
    """

    kernel: Name
    role: Literal["projection", "head"]
    weight_type: Name
    isa: Name
    calls: Count
    rows: Count
    bytes: Count
    fallback: Literal["yes", "no", "unknown"] = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger(Record):
    """Everything the engine computed for one model with one set of numerics.

    Attributes:
        model: Name of the model.
        tokens: Tokens evaluated.
        passes: Forward calls.
        head_rows: Rows of logits computed.
        entries: By kernel.
        numerics: The engine's.
    """

    model: Name
    tokens: Count
    passes: Count
    head_rows: Count
    entries: tuple[LedgerEntry, ...]
    numerics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Record):
    """The most likely tokens at one position, best first.

    Attributes:
        position: Of the last token read.
        ids: Token ids.
        logits: Theirs, descending.
    """

    position: Count
    ids: tuple[Token, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Record):
    """One prompt and what the engine made of it.

    Attributes:
        name: Unique for a model and its numerics.
        model: Name of the model.
        prompt_ids: Token ids read.
        ids_sha256: `ids_digest` of prompt_ids followed by generated_ids.
        logits_sha256: Of all rows of logits, float32 little-endian, row by row.
        logits_shape: [rows, n_vocab].
        generated_ids: Greedy continuation.
        top_k: At the last prompt position.
        numerics: The engine's.
    """

    name: Name
    model: Name
    prompt_ids: tuple[Token, ...]
    ids_sha256: Sha256
    logits_sha256: Sha256
    logits_shape: tuple[Count, ...]
    generated_ids: tuple[Token, ...] = ()
    top_k: tuple[TopK, ...] = ()
    numerics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck(Record):
    """A question put to a reference about itself.

    Attributes:
        question: What was asked (`activation`, `rotary style`, `head`).
        expected: As the model declares it.
        found: As the reference computes it; equal to `expected` exactly when the outcome is `pass`.
        outcome: Of the comparison.
    """

    question: Name
    expected: str
    found: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference(Record):
    """Who was asked.

    Attributes:
        key: Unique in the receipt.
        name: `llama.cpp`, `bitnet.cpp`, `oracle`, ….
        family: Those that share code share it; they are one witness.
        version: Of the engine.
        obtained: `live`, `server` (live, by its server), `recorded`, or `unavailable` (so that a lane can say why).
        library_sha256: Of the code that computed; "" where there is no library file.
        numerics: As the reference declares them.
        model_sha256: Of the model file it ran on; "" if none.
        detail: Anything else to show.
        self_check: Its answers.
    """

    key: Name
    name: Name
    family: Name
    version: str
    obtained: Literal["live", "server", "recorded", "unavailable"]
    library_sha256: Sha256OrNone = ""
    numerics: Mapping[str, str] = field(default_factory=dict)
    model_sha256: Sha256OrNone = ""
    detail: Mapping[str, str] = field(default_factory=dict)
    self_check: tuple[SelfCheck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy(Record):
    """A kernel against the oracle.

    Attributes:
        weight_type: Type of the weights.
        kernel: Id as in the ledger.
        metric: What was measured.
        measured: Its worst value.
        limit: What was allowed.
        passed: measured ≤ limit, with something compared.
        compared: How many values.
    """

    weight_type: Name
    kernel: Name
    metric: Name
    measured: Amount
    limit: Amount
    passed: bool
    compared: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Record):
    """One of several runs that should give the same bits.

    Attributes:
        setting: What was different this time.
        logits_sha256: Of all logits.
        ids_sha256: Of all ids.
    """

    setting: Name
    logits_sha256: Sha256
    ids_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Determinism(Record):
    """The same computation several times.

    Attributes:
        what: What was varied.
        settings: Its values, in the order of `runs`.
        runs: What came out.
        equal: Whether all runs have equal digests.
    """

    what: Literal["threads", "repeat", "batch"]
    settings: tuple[str, ...]
    runs: tuple[Run, ...]
    equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance(Record):
    """A measured speed.

    Attributes:
        model: Name of the model.
        what: Phase.
        engine: `bitnet` or the key of a reference.
        threads: Used.
        tokens: Of one repetition; 0 where the phase has none (`load`).
        seconds: Raw wall time of each repetition.
        tokens_per_second: Median over repetitions of tokens / seconds; 0 where the phase has no tokens.
        n: Number of repetitions.
        interval: Least and greatest value of the median rate, as `receipts.interval` has it.
        bytes_per_token: Weight bytes that one token of decoding reads; 0 where that is not known.
        bandwidth_limit: Bytes per second that this machine reads on as many threads, measured in the same run.
        memory_bytes: Largest resident memory of the process by then.
    """

    model: Name
    what: Literal["decode", "prefill", "load", "first_token"]
    engine: Name
    threads: Count
    tokens: Count
    seconds: tuple[Amount, ...]
    tokens_per_second: Amount
    n: Count
    interval: tuple[Amount, ...] = field(default=(), metadata=SPARSE)
    bytes_per_token: Count = field(default=0, metadata=SPARSE)
    bandwidth_limit: Amount = field(default=0.0, metadata=SPARSE)
    memory_bytes: Count = field(default=0, metadata=SPARSE)

    @property
    def bandwidth(self) -> float:
        """Weight bytes read per second; 0 where they are not known."""
        return self.bytes_per_token * self.tokens_per_second
