"""What ran, as the records of a receipt: models, tokenizers, ledgers, cases, trials of determinism, speed."""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bitnet.bitnet_model import BitNetModel
from bitnet.errors import BitNetError, ResourceLimitError, TokenizerError
from bitnet.kernels.bandwidth import measure
from bitnet.linear import TernaryMatrix
from crossval import envelope
from crossval.case import Case
from crossval.engine import EngineRunner
from crossval.lane import Lane, Row
from crossval.metrics import best, logits_digest
from receipts import ids_digest
from receipts import record as r
from receipts.interval import median_interval, rates
from receipts.tables import COLUMNS
from reference.runner import Observation, Request, Runner, RunnerInfo

#: Most likely tokens that a case lists, and that a lane compares.
TOP_K = 5
#: Repetitions of a timed run; the median is quoted.
REPEATS = 3
#: Tokens of a timed prefill and decode.
TIMED_PREFILL, TIMED_DECODE = 64, 32


@dataclass(slots=True)
class Evidence:
    """What the receipt is made of, gathered lane by lane."""

    models: dict[str, r.Model] = field(default_factory=dict)
    tokenizers: dict[str, r.TokenizerRecord] = field(default_factory=dict)
    engines: dict[tuple[str, str, str], tuple[str, EngineRunner]] = field(default_factory=dict)
    cases: dict[tuple[str, str, str], r.Case] = field(default_factory=dict)
    references: dict[str, r.Reference] = field(default_factory=dict)
    lanes: list[r.Lane] = field(default_factory=list)
    accuracy: list[r.Accuracy] = field(default_factory=list)
    determinism: list[r.Determinism] = field(default_factory=list)
    performance: list[r.Performance] = field(default_factory=list)
    operations: list[Row] = field(default_factory=list)
    positions: list[Row] = field(default_factory=list)
    profiles: list[Row] = field(default_factory=list)
    tokens: list[Row] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)
    candidates: list[Row] = field(default_factory=list)

    @property
    def tables(self) -> dict[str, list[Row]]:
        """The side tables by name."""
        return {name: getattr(self, name) for name in COLUMNS}


def model_record(name: str, model: BitNetModel) -> r.Model:
    """A model file."""
    c = model.config
    return r.Model(
        name=name,
        file=model.gguf.path.name,
        bytes=model.gguf.n_bytes,
        sha256=model.gguf.sha256(),
        arch=c.arch,
        activation=c.activation,
        activation_source=c.activation_source,
        hyper_parameters=r.HyperParameters(
            n_layer=c.n_layer,
            n_embd=c.n_embd,
            n_ff=c.n_ff,
            n_head=c.n_head,
            n_head_kv=c.n_head_kv,
            head_dim=c.head_dim,
            n_vocab=c.n_vocab,
            n_ctx=c.n_ctx,
            rope_theta=c.rope_theta,
            rms_eps=c.rms_eps,
            sub_norms=c.sub_norms,
            tied_head=c.tied_head,
        ),
        tensor_types=dict(Counter(t.type.name for t in model.gguf.tensors.values())),
        weights_sha256=model.weights.digest(),
        notices=model.notices,
    )


def tokenizer_record(name: str, model: BitNetModel) -> r.TokenizerRecord | None:
    """The tokenizer of a model, or None without a usable one."""
    try:
        found = model.discovery
    except TokenizerError:
        return None
    t = found.tokenizer
    template = model.gguf.metadata.get("tokenizer.chat_template")
    return r.TokenizerRecord(
        model=name,
        source="cache" if found.source == "download" else found.source,  # a download lies in the cache from then on
        sha256=found.sha256,
        kind=t.kind,
        pre=t.pre,
        pre_source=t.pre_source,
        n_vocab=t.n_vocab,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None,
    )


def reference_record(key: str, info: RunnerInfo, self_check: tuple[r.SelfCheck, ...] = ()) -> r.Reference:
    """Who answered, and what its self-check found."""
    return r.Reference(
        key=key,
        name=info.name,
        family=info.family,
        version=info.version,
        obtained=info.obtained,
        library_sha256=info.library_sha256,
        numerics=dict(info.numerics),
        model_sha256=info.model_sha256,
        detail=dict(info.detail),
        self_check=self_check,
    )


def ledger_record(name: str, model: BitNetModel) -> r.Ledger:
    """What the dispatcher counted for one model in one set of numerics."""
    ledger = model.network.backend.ledger
    return r.Ledger(
        model=name,
        tokens=ledger.tokens,
        passes=ledger.passes,
        head_rows=ledger.head_rows,
        numerics=model.network.numerics.to_dict(),
        entries=tuple(
            r.LedgerEntry(
                kernel=use.kernel,
                role=use.role,
                weight_type=use.weight_type,
                isa=use.isa,
                calls=tally.calls,
                rows=tally.rows,
                bytes=tally.bytes,
                fallback="no",  # the table has one kernel for a pair of types, and none stands in for another
            )
            for use, tally in ledger
        ),
    )


def case_record(name: str, engine: EngineRunner, case: Case) -> r.Case:
    """A prompt and what the engine makes of it; where that is not numbers, no tokens."""
    try:
        seen = engine.run(Request(ids=case.ids, n_greedy=case.n_greedy))
    except ResourceLimitError:
        raise
    except BitNetError:  # of which token to choose: a rung says why
        seen = engine.run(Request(ids=case.ids))
    last = seen.logits[len(case.ids) - 1]
    likely = best(last, TOP_K)
    finite = np.isfinite(last[list(likely)]).all()
    return r.Case(
        name=case.name,
        model=name,
        prompt_ids=case.ids,
        ids_sha256=ids_digest(seen.ids),
        logits_sha256=logits_digest(seen.logits),
        logits_shape=seen.logits.shape,
        generated_ids=seen.generated,
        top_k=(r.TopK(position=len(case.ids) - 1, ids=likely, logits=tuple(float(last[i]) for i in likely)),)
        if finite
        else (),
        numerics=engine.model.network.numerics.to_dict(),
    )


def token_rows(lane: Lane) -> list[Row]:
    """What both sides of a lane evaluated, token by token: prompts, and the continuations that were compared."""
    rows: list[Row] = []
    write = _spelling(lane.original.model)
    for case in lane.cases:
        generated, chosen = lane.choices.get(case.name, ((), ()))
        ids = (*case.ids, *generated)
        ours = (*(None for _ in case.ids), *chosen)
        rows += [
            {
                "lane": lane.plan.name,
                "case": case.name,
                "position": i,
                "id": token,
                "text": write(token),
                "ours": mine,
                "ours_text": "" if mine is None else write(mine),
            }
            for i, (token, mine) in enumerate(zip(ids, ours, strict=True))
        ]
    return rows


def _spelling(model: BitNetModel) -> Callable[[int], str]:
    """Token id → its text; bytes that are no text, and tokens without a text, as the vocabulary spells them."""
    try:
        tokenizer = model.tokenizer
    except TokenizerError:
        return lambda _: ""

    def write(token: int) -> str:
        if not 0 <= token < tokenizer.n_vocab:
            return ""
        try:
            return tokenizer.token_bytes(token).decode() or tokenizer.token_text(token)
        except UnicodeDecodeError:
            return tokenizer.token_text(token)

    return write


def determinism_trials(
    engine: EngineRunner, case: Case, other_threads: Callable[[int], EngineRunner]
) -> list[r.Determinism]:
    """The same case on 1, 2 and 3 threads, twice, and in other batches: are the bits the same?"""

    def digests(setting: str, seen: Observation) -> r.Run:
        return r.Run(setting=setting, logits_sha256=logits_digest(seen.logits), ids_sha256=ids_digest(seen.ids))

    request = Request(ids=case.ids, n_greedy=case.n_greedy)
    threads = [digests(str(n), other_threads(n).run(request)) for n in (1, 2, 3)]
    repeat = [digests(f"run {n}", engine.run(request)) for n in (1, 2)]
    n = len(case.ids)
    batches = sorted({n, max(1, n // 2), 1}, reverse=True)
    batch = [digests(f"{b} together", engine.run(Request(ids=case.ids, n_batch=b))) for b in batches]
    trials = [("threads", threads), ("repeat", repeat)] + ([("batch", batch)] if len(batches) > 1 else [])
    return [
        r.Determinism(
            what=what,  # type: ignore[arg-type]  # one of three literals
            settings=tuple(run.setting for run in runs),
            runs=tuple(runs),
            equal=len({(run.logits_sha256, run.ids_sha256) for run in runs}) == 1,
        )
        for what, runs in trials
    ]


def speed(
    name: str,
    engine: EngineRunner,
    peer: Runner,
    peer_key: str,
    ids: Sequence[int],
    *,
    repeats: int = REPEATS,
) -> list[r.Performance]:
    """Prefill and decode of the engine and a reference, alternating, on the reference's number of threads.

    Args:
        name: Of the model.
        engine: On that model.
        peer: On the same weights; `info.detail["threads"]` says how many threads it uses.
        peer_key: Key of the reference in the receipt.
        ids: Repeated to fill the prompt.
        repeats: Timed runs of each side, after one to warm up.
    """
    threads = int(peer.info.detail["threads"])
    backend = engine.model.network.backend
    usual, backend.n_threads = backend.n_threads, threads  # rates are compared at equal threads or not at all
    request = Request(ids=tuple((list(ids) * TIMED_PREFILL)[:TIMED_PREFILL]), n_greedy=TIMED_DECODE + 1)
    sides: tuple[tuple[str, Runner], ...] = (("bitnet", engine), (peer_key, peer))
    seconds: dict[tuple[str, str], list[float]] = {}
    try:
        for repeat in range(repeats + 1):
            for key, runner in sides:
                for phase, value in runner.run(request).seconds.items():
                    if repeat:
                        seconds.setdefault((key, phase), []).append(value)
    finally:
        backend.n_threads = usual
    rows = []
    for key, _ in sides:
        rows.append(_rate(name, "prefill", key, threads, TIMED_PREFILL, seconds[key, "prefill"]))
        rows.append(_rate(name, "decode", key, threads, TIMED_DECODE, seconds[key, "decode"]))
    rows[1] = replace(
        rows[1],
        bytes_per_token=bytes_per_pass(ledger_record(name, engine.model)),
        bandwidth_limit=measure(threads),
        memory_bytes=peak_memory(),
    )
    return rows


def bytes_per_pass(ledger: r.Ledger) -> int:
    """Weight bytes that one forward call reads, which for decoding is one token."""
    layers = sum(entry.bytes for entry in ledger.entries if entry.role == "projection")
    heads = sum(entry.bytes // entry.calls for entry in ledger.entries if entry.role == "head" and entry.calls)
    return layers // max(ledger.passes, 1) + heads


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start_up(
    name: str, engine: EngineRunner, load: Callable[[], object], repeats: int = REPEATS
) -> list[r.Performance]:
    """How long it takes to open a model, and then to its first token after a prompt of one."""
    times: dict[Literal["load", "first_token"], list[float]] = {"load": [], "first_token": []}
    for _ in range(repeats):
        began = time.perf_counter()
        load()
        times["load"].append(time.perf_counter() - began)
        seen = engine.run(Request(ids=(0,), n_greedy=1))
        times["first_token"].append(seen.seconds["prefill"])
    threads = engine.model.network.backend.n_threads
    first = _rate(name, "first_token", "bitnet", threads, 1, times["first_token"])
    return [_rate(name, "load", "bitnet", threads, 0, times["load"]), first]


def _rate(
    name: str,
    what: Literal["prefill", "decode", "load", "first_token"],
    engine: str,
    threads: int,
    tokens: int,
    seconds: Sequence[float],
) -> r.Performance:
    return r.Performance(
        model=name,
        what=what,
        engine=engine,
        threads=threads,
        tokens=tokens,
        seconds=tuple(seconds),
        tokens_per_second=statistics.median(tokens / s for s in seconds),
        n=len(seconds),
        interval=median_interval(rates(tokens, seconds)) if tokens else (),
    )


def accuracy_records(engine: EngineRunner, operations: Sequence[Row]) -> list[r.Accuracy]:
    """Projections of an oracle lane by kernel: the largest locked error of each weight type."""
    from crossval.engine import PROJECTIONS

    worst: dict[str, tuple[float, int]] = {}
    for row in operations:
        if row["tap"] not in PROJECTIONS:
            continue
        matrix = getattr(engine.model.weights.layers[row["layer"]], PROJECTIONS[row["tap"]][0])
        if isinstance(matrix, TernaryMatrix):
            ratio, compared = worst.get(matrix.type_name, (0.0, 0))
            worst[matrix.type_name] = (max(ratio, row["ratio"]), compared + row["compared"])
    limit = envelope.LOCKED_OPERATION
    kernels = {
        use.weight_type: use.kernel for use, _ in engine.model.network.backend.ledger if use.role == "projection"
    }
    return [
        r.Accuracy(
            weight_type=weight_type,
            kernel=kernels[weight_type],
            metric=limit.metric,
            measured=ratio if np.isfinite(ratio) else float(np.finfo(np.float64).max),  # JSON has no infinity
            limit=limit.limit,
            passed=compared > 0 and limit.holds(ratio),
            compared=compared,
        )
        for weight_type, (ratio, compared) in worst.items()
    ]
