"""Models, cases, times, rates and repetitions: can these numbers all be true together?"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from receipts.codec import Anything, ids_digest
from receipts.lanes import ENGINE
from receipts.record import SCHEMA_ID
from receipts.rule import Finding, View, key, rule
from receipts.subject import HyperParameters
from receipts.summary import same_bits, summary

#: Rates are recomputed in double precision from the same numbers; only the order of operations may differ.
RATE_TOLERANCE = 1e-9
#: Two clocks (wall and monotonic) and the writing of pictures lie between the measured end and the time stamp.
CLOCK_SLACK = timedelta(minutes=2)
#: Machines' clocks differ by zone errors at most; a receipt from further ahead was not written yet.
FUTURE_SLACK = timedelta(days=1)
#: Information of a ternary weight, bits: a file cannot be smaller than its weights.
TERNARY_BITS = 1.585

#: The largest float32.
_FLOAT32_MAX = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]

#: Digests of nothing: no bytes, an empty list, all zeros or one repeated digit.
_NOTHING = {hashlib.sha256(b"").hexdigest(), hashlib.sha256(b"[]").hexdigest()} | {d * 64 for d in "0123456789abcdef"}


@rule("schema.id", "The receipt names the schema it is written in.")
def schema_id(view: View) -> Iterator[Finding]:
    """By the id of the schema's file."""
    if view.receipt.schema != SCHEMA_ID:
        yield "schema", f"{view.receipt.schema!r}, expected {SCHEMA_ID!r}"


@rule("summary.derived", "The fields that older tools read are what the evidence makes them.")
def summary_derived(view: View) -> Iterator[Finding]:
    """`compute_path`, `kernels`, `deterministic`, `parity`, … derived again and compared."""
    receipt = view.receipt
    derived = summary(receipt.models, receipt.ledger, receipt.lanes, receipt.determinism, receipt.performance)
    for name, value in derived.items():
        found = getattr(receipt, name)
        if is_dataclass(value):
            for f in fields(value):
                ours, theirs = getattr(value, f.name), getattr(found, f.name)
                if not _same(ours, theirs):
                    yield f"{name}.{f.name}", f"{theirs!r}, but the evidence makes it {ours!r}"
        elif found != value:
            yield name, f"{found!r}, but the evidence makes it {value!r}"


@rule("digests.something", "No digest is that of nothing.")
def digests_something(view: View) -> Iterator[Finding]:
    """An empty file hashes well."""
    for path, digest in _digests(view.receipt, ""):
        if digest in _NOTHING:
            yield path, "is the digest of nothing"


@rule("identity.times", "The run started, took its time, and its receipt was written then, not in the future.")
def identity_times(view: View) -> Iterator[Finding]:
    """All in UTC."""
    identity = view.receipt.identity
    started, written = _time(identity.started), _time(view.receipt.timestamp)
    if started is None:
        yield "identity.started", f"{identity.started!r} is no time"
    if written is None:
        yield "timestamp", f"{view.receipt.timestamp!r} is no time"
    if started is None or written is None:
        return
    if written > view.now + FUTURE_SLACK:
        yield "timestamp", f"{view.receipt.timestamp} lies in the future"
    if written - started < timedelta(seconds=-1):  # one of the two may have been cut to whole seconds
        yield "timestamp", f"{view.receipt.timestamp} is before the start {identity.started}"
    if abs((written - started).total_seconds() - identity.seconds) > CLOCK_SLACK.total_seconds():
        yield "identity.seconds", f"{identity.seconds:g} s, but start and writing are {written - started} apart"


@rule("identity.seconds", "The run took at least as long as what was timed within it, one after the other.")
def identity_seconds(view: View) -> Iterator[Finding]:
    """An engine's repetitions of one phase do not overlap. Recorded references were timed elsewhere."""
    live = {ENGINE} | {ref.key for ref in view.receipt.references if ref.obtained in ("live", "server")}
    total: dict[tuple[str, str], float] = {}
    for row in view.receipt.performance:
        if row.engine in live:
            total[row.engine, row.what] = total.get((row.engine, row.what), 0.0) + sum(row.seconds)
    for (engine, what), seconds in total.items():
        if seconds > view.receipt.identity.seconds:
            yield "identity.seconds", f"{view.receipt.identity.seconds:g} s, but {what} of {engine} took {seconds:g} s"


@rule("models.names", "Models are named once, and their files carry no folder.")
def models_names(view: View) -> Iterator[Finding]:
    """A path would tell about the machine and nothing about the model."""
    seen: set[str] = set()
    for i, model in enumerate(view.receipt.models):
        if model.name in seen:
            yield f"models[{i}].name", f"a second model is called {model.name!r}"
        seen.add(model.name)
        if "/" in model.file or "\\" in model.file:
            yield f"models[{i}].file", f"{model.file!r} carries a folder"
    if not view.receipt.models:
        yield "models", "there is none"


@rule("models.shape", "Hyper-parameters are positive, and query heads divide evenly over key heads.")
def models_shape(view: View) -> Iterator[Finding]:
    """As every loader demands."""
    for i, model in enumerate(view.receipt.models):
        shape, path = model.hyper_parameters, f"models[{i}].hyper_parameters"
        for f in fields(HyperParameters):
            if getattr(shape, f.name) == 0 and not isinstance(getattr(shape, f.name), bool):
                yield f"{path}.{f.name}", "is zero"
        if shape.n_head_kv and shape.n_head % shape.n_head_kv:
            yield f"{path}.n_head_kv", f"{shape.n_head} heads over {shape.n_head_kv}"


@rule("models.size", "The file is large enough for its weights.")
def models_size(view: View) -> Iterator[Finding]:
    """However they are packed."""
    for i, model in enumerate(view.receipt.models):
        shape = model.hyper_parameters
        if 8 * model.bytes < TERNARY_BITS * shape.projection_weights:
            yield f"models[{i}].bytes", f"{model.bytes} bytes cannot hold {shape.projection_weights} weights"


@rule("tokenizers.models", "A tokenizer belongs to a model of the receipt, and has no more ids than it.")
def tokenizers_models(view: View) -> Iterator[Finding]:
    """Embeddings may be padded; tokens may not exceed them."""
    known = view.models()
    for i, tokenizer in enumerate(view.receipt.tokenizers):
        if tokenizer.model not in known:
            yield f"tokenizers[{i}].model", f"there is no model {tokenizer.model!r}"
        elif not 0 < tokenizer.n_vocab <= known[tokenizer.model].hyper_parameters.n_vocab:
            yield f"tokenizers[{i}].n_vocab", f"{tokenizer.n_vocab}, but the model has other embeddings"


@rule("cases.ids", "A case has a prompt, its ids are in the vocabulary, and their digest is theirs.")
def cases_ids(view: View) -> Iterator[Finding]:
    """The digest is over prompt and generated ids."""
    known = view.models()
    for i, case in enumerate(view.receipt.cases):
        ids = (*case.prompt_ids, *case.generated_ids)
        if not case.prompt_ids:
            yield f"cases[{i}].prompt_ids", "is empty"
        if case.model not in known:
            yield f"cases[{i}].model", f"there is no model {case.model!r}"
        elif any(not 0 <= token < known[case.model].hyper_parameters.n_vocab for token in ids):
            yield f"cases[{i}]", "an id is outside the vocabulary"
        if all(0 <= token < 2**31 for token in ids) and ids_digest(ids) != case.ids_sha256:
            yield f"cases[{i}].ids_sha256", "is not the digest of the ids"


@rule("cases.logits", "Logits have a row for each evaluated id and a column for each id of the vocabulary.")
def cases_logits(view: View) -> Iterator[Finding]:
    """The last generated id is not evaluated; a case may keep the rows of its prompt, or the last, alone."""
    known = view.models()
    for i, case in enumerate(view.receipt.cases):
        if len(case.logits_shape) != 2:
            yield f"cases[{i}].logits_shape", "is not [rows, n_vocab]"
            continue
        rows, columns = case.logits_shape
        most = len(case.prompt_ids) + max(len(case.generated_ids) - 1, 0)
        if rows not in {1, len(case.prompt_ids), most}:
            yield (
                f"cases[{i}].logits_shape",
                f"{rows} rows from {most} evaluated ids, {len(case.prompt_ids)} of the prompt",
            )
        if case.model in known and columns != known[case.model].hyper_parameters.n_vocab:
            yield f"cases[{i}].logits_shape", f"{columns} columns, but the vocabulary has another size"


@rule("cases.top_k", "The most likely ids are distinct, best first, and greedy text begins with the first.")
def cases_top_k(view: View) -> Iterator[Finding]:
    """At the last position of the prompt, in float32."""
    known = view.models()
    for i, case in enumerate(view.receipt.cases):
        for j, top in enumerate(case.top_k):
            path = f"cases[{i}].top_k[{j}]"
            if len(top.ids) != len(top.logits) or not top.ids or len(set(top.ids)) != len(top.ids):
                yield path, "ids and logits do not pair up"
                continue
            if any(a < b for a, b in pairwise(top.logits)):
                yield f"{path}.logits", "are not descending"
            if top.position != len(case.prompt_ids) - 1:
                yield f"{path}.position", f"{top.position} is not the last of the prompt"
            if any(abs(x) > _FLOAT32_MAX or struct.unpack("<f", struct.pack("<f", x))[0] != x for x in top.logits):
                yield f"{path}.logits", "are no float32 numbers, as logits are"
            if case.model in known and max(top.ids) >= known[case.model].hyper_parameters.n_vocab:
                yield f"{path}.ids", "an id is outside the vocabulary"
            follows = top.position + 1 - len(case.prompt_ids)
            if 0 <= follows < len(case.generated_ids) and case.generated_ids[follows] != top.ids[0]:
                yield f"{path}.ids", f"best is {top.ids[0]}, but {case.generated_ids[follows]} was generated"


@rule("cases.digests", "Different ids have different logits; where runs are deterministic, equal ids have equal ones.")
def cases_digests(view: View) -> Iterator[Finding]:
    """A digest copied from case to case shows here."""
    names: set[object] = set()
    logits_of: dict[object, str] = {}
    ids_of: dict[str, tuple[int, ...]] = {}
    for i, case in enumerate(view.receipt.cases):
        place = key(case.model, case.numerics)
        if (place, case.name) in names:
            yield f"cases[{i}].name", f"a second case is called {case.name!r}"
        names.add((place, case.name))
        # Cases that evaluate one sequence in another split (batch, then single steps) may keep other rows of it.
        ids = (place, case.ids_sha256, case.logits_shape, len(case.prompt_ids))
        if view.receipt.deterministic and logits_of.setdefault(ids, case.logits_sha256) != case.logits_sha256:
            yield f"cases[{i}].logits_sha256", "the same ids gave other logits before"
        read = (*case.prompt_ids, *case.generated_ids)[: next(iter(case.logits_shape), 0)]
        if ids_of.setdefault(case.logits_sha256, read) != read:
            yield f"cases[{i}].logits_sha256", "other ids gave exactly these logits before"


@rule(
    "determinism.runs",
    "Determinism is two or more recorded runs, equal exactly where their digests are.",
)
def determinism_runs(view: View) -> Iterator[Finding]:
    """A variable that asks for it proves nothing."""
    if view.receipt.deterministic and not view.receipt.determinism:
        yield "deterministic", "true, but no runs are recorded"
    for i, row in enumerate(view.receipt.determinism):
        path = f"determinism[{i}]"
        if len(row.runs) < 2:
            yield f"{path}.runs", f"{len(row.runs)} run shows nothing"
        if tuple(run.setting for run in row.runs) != row.settings:
            yield f"{path}.settings", "are not those of the runs"
        if row.what != "repeat" and len(set(row.settings)) < min(2, len(row.settings)):
            yield f"{path}.settings", f"{row.what} were not varied"
        if row.equal != same_bits(row):
            yield f"{path}.equal", f"{str(row.equal).lower()}, but the digests say otherwise"


@rule("accuracy.passed", "A kernel's accuracy passes exactly when something was compared and is within its limit.")
def accuracy_passed(view: View) -> Iterator[Finding]:
    """Recomputed."""
    for i, row in enumerate(view.receipt.accuracy):
        if row.passed != (row.compared > 0 and row.measured <= row.limit):
            yield (
                f"accuracy[{i}].passed",
                f"{str(row.passed).lower()} with {row.measured:g} against {row.limit:g} over {row.compared} values",
            )


@rule("claims.honest", "A receipt in which no required lane passed claims nothing.")
def claims_honest(view: View) -> Iterator[Finding]:
    """And every receipt says what it does not show."""
    parity = view.receipt.parity
    if view.receipt.claims.supports and parity.passed + parity.deviations == 0:
        yield "claims.supports", "no required lane passed"
    if not view.receipt.claims.does_not:
        yield "claims.does_not", "is empty; no receipt shows everything"


def _same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=RATE_TOLERANCE)
    return a == b


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _digests(value: Anything, path: str) -> Iterator[tuple[str, str]]:
    """Every field whose name ends in `sha256`, with its path."""
    if is_dataclass(value):
        for f in fields(value):
            item = getattr(value, f.name)
            place = f"{path}.{f.name}" if path else f.name
            if f.name.endswith("sha256") and isinstance(item, str):
                yield place, item
            else:
                yield from _digests(item, place)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _digests(item, f"{path}[{i}]")
