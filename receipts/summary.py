"""The fields older readers look for, derived from the evidence and never typed in.

`assemble` is how a run makes a receipt; the verifier calls the same functions and compares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from receipts.evidence import Accuracy, Case, Determinism, Ledger, Performance, Reference
from receipts.lanes import ENGINE, Lane, gate_reason
from receipts.record import (
    SCHEMA_VERSION,
    Claims,
    Correction,
    ModelInfo,
    Parity,
    PerformanceBaseline,
    Receipt,
    TestResults,
)
from receipts.subject import Environment, Identity, Model, TokenizerRecord

#: Words that mark a kernel of a GPU, in its id or its instruction set.
_GPU = re.compile(r"(?<![a-z])(cuda|gpu|cupy|hip|rocm|metal|vulkan|sycl|opencl|ptx|sm_?\d)", re.IGNORECASE)
#: Words that mark a kernel that computes nothing.
_EMPTY = re.compile(r"mock|placeholder|dummy|stub|fake|simulat|no_?op(?![a-z])", re.IGNORECASE)


def assemble(
    *,
    timestamp: str,
    identity: Identity,
    environment: Environment,
    claims: Claims,
    models: Sequence[Model] = (),
    tokenizers: Sequence[TokenizerRecord] = (),
    ledger: Sequence[Ledger] = (),
    cases: Sequence[Case] = (),
    references: Sequence[Reference] = (),
    lanes: Sequence[Lane] = (),
    accuracy: Sequence[Accuracy] = (),
    determinism: Sequence[Determinism] = (),
    performance: Sequence[Performance] = (),
    corrections: Sequence[Correction] = (),
) -> Receipt:
    """A receipt from its evidence, every summary derived. `receipts.write` adds side files and digest."""
    return Receipt(
        schema_version=SCHEMA_VERSION,
        timestamp=timestamp,
        identity=identity,
        environment=environment,
        claims=claims,
        models=tuple(models),
        tokenizers=tuple(tokenizers),
        ledger=tuple(ledger),
        cases=tuple(cases),
        references=tuple(references),
        lanes=tuple(lanes),
        accuracy=tuple(accuracy),
        determinism=tuple(determinism),
        performance=tuple(performance),
        corrections=tuple(corrections),
        **summary(models, ledger, lanes, determinism, performance),
    )


def summary(
    models: Sequence[Model],
    ledger: Sequence[Ledger],
    lanes: Sequence[Lane],
    determinism: Sequence[Determinism],
    performance: Sequence[Performance],
) -> dict[str, Any]:
    """Every derived field of a receipt, by name."""
    return {
        "compute_path": compute_path(ledger),
        "backend": backend(ledger),
        "kernels": tuple(sorted({entry.kernel for part in ledger for entry in part.entries})),
        "deterministic": bool(determinism) and all(len(d.runs) >= 2 and same_bits(d) for d in determinism),
        "model_info": model_info(models),
        "test_results": count_rungs(lanes),
        "performance_baseline": baseline(performance),
        "parity": count_lanes(lanes),
    }


def compute_path(ledger: Sequence[Ledger]) -> Literal["real", "none"]:
    """`real` when kernels that compute something were called for at least one token."""
    called = any(part.tokens and any(entry.calls and entry.rows for entry in part.entries) for part in ledger)
    return "real" if called and not any(is_empty(e.kernel) for part in ledger for e in part.entries) else "none"


def backend(ledger: Sequence[Ledger]) -> Literal["cpu", "cuda", "none"]:
    """Where the kernels ran, as their ids and instruction sets say."""
    entries = [entry for part in ledger for entry in part.entries]
    if not entries:
        return "none"
    return "cuda" if any(is_gpu(entry.kernel) or is_gpu(entry.isa) for entry in entries) else "cpu"


def is_gpu(name: str) -> bool:
    """Whether a kernel id or an instruction set is a GPU's."""
    return _GPU.search(name) is not None


def is_empty(kernel: str) -> bool:
    """Whether a kernel's id says that it computes nothing."""
    return _EMPTY.search(kernel) is not None


def same_bits(determinism: Determinism) -> bool:
    """Whether all runs have equal digests."""
    return len({(run.logits_sha256, run.ids_sha256) for run in determinism.runs}) <= 1


def model_info(models: Sequence[Model]) -> ModelInfo:
    """The first model."""
    if not models:
        return ModelInfo(name="", file="", sha256="", arch="", models=0)
    first = models[0]
    return ModelInfo(name=first.name, file=first.file, sha256=first.sha256, arch=first.arch, models=len(models))


def count_rungs(lanes: Sequence[Lane]) -> TestResults:
    """Rungs of all lanes by outcome."""
    count = Counter(rung.outcome for lane in lanes for rung in lane.rungs)
    return TestResults(
        total=count.total(),
        passed=count["pass"],
        failed=count["fail"],
        errors=count["error"],
        unsupported=count["unsupported"],
        inconclusive=count["inconclusive"],
    )


def count_lanes(lanes: Sequence[Lane]) -> Parity:
    """Lanes by what the gate makes of them."""
    required = [lane for lane in lanes if lane.required]
    deviations = [lane for lane in required if lane.deviates_as_declared]
    passed = [lane for lane in required if gate_reason(lane)[0] and not lane.deviates_as_declared]
    failed = len(required) - len(passed) - len(deviations)
    return Parity(
        status="inconclusive" if not required else "failed" if failed else "ok",
        lanes=len(lanes),
        required=len(required),
        passed=len(passed),
        deviations=len(deviations),
        failed=failed,
    )


def baseline(performance: Sequence[Performance]) -> PerformanceBaseline:
    """The engine's first decode measurement."""
    for row in performance:
        if row.engine == ENGINE and row.what == "decode":
            return PerformanceBaseline(
                model=row.model,
                tokens_generated=row.tokens * row.n,
                total_time_ms=1000 * sum(row.seconds),
                tokens_per_second=row.tokens_per_second,
            )
    return PerformanceBaseline(model="", tokens_generated=0, total_time_ms=0.0, tokens_per_second=0.0)
