"""The receipt as a page: `report.md` beside its pictures, or, shorter, the summary of a CI step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from receipts.evidence import Performance
from receipts.gate import gate
from receipts.lanes import ENGINE, OUTCOMES, RUNGS, Lane, gate_reason
from receipts.record import Receipt
from receipts.visible import visible
from reports import sentences
from reports.frames import frames, worst
from reports.sentences import SYMBOLS, counts, number, place, times

_ALTERNATIVES = {
    "ladder": "The outcome of every rung in every lane",
    "operations": "Error of every operation on locked inputs, by layer",
    "drift": "Difference of the logits by position, over the noise floor",
    "throughput": "Tokens per second of the engine and its peers",
}


def page(receipt: Receipt, pictures: Mapping[str, str] | None = None) -> str:
    """The whole report.

    Args:
        receipt: What to report.
        pictures: `ladder`, `operations`, `drift`, `throughput` → address relative to the page.

    Returns:
        GitHub-flavoured Markdown; nothing of the receipt's texts is read as markup.
    """
    pictures = pictures or {}
    parts = [
        ["# Cross-validation"],
        _status(receipt),
        _ladder(receipt),
        _picture("ladder", pictures),
        ["## What did not simply pass", *_findings(receipt)],
        ["## Operations on locked inputs"] * ("operations" in pictures),
        _picture("operations", pictures),
        ["## Logits by position"] * ("drift" in pictures),
        _picture("drift", pictures),
        ["## Lanes"],
        *(_lane(lane) for lane in receipt.lanes),
        ["## References", *_references(receipt)],
        ["## Models and tokenizers", *_models(receipt)],
        ["## Kernels that ran", *_ledger(receipt)],
        ["## Speed", *_performance(receipt.performance)],
        _picture("throughput", pictures),
        ["## Determinism", *_determinism(receipt)],
        ["## Claims", *_claims(receipt)],
        ["## Run", *_run(receipt)],
    ]
    return "\n\n".join(block for part in parts for block in part if block) + "\n"


def summary(receipt: Receipt) -> str:
    """The short form for a CI step: status, ladder, findings."""
    parts = [["## Cross-validation"], _status(receipt), _ladder(receipt), _findings(receipt)]
    return "\n\n".join(block for part in parts for block in part if block) + "\n"


def escape(text: str) -> str:
    """Text that no Markdown reader takes for markup, on one line."""
    text = _line(text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
    text = re.sub(r"([\\`*|\[\]~])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def code(text: str) -> str:
    """Text as code; empty text is a dash."""
    plain = _line(text)
    if not plain:
        return "–"
    return escape(plain) if "`" in plain else "`" + plain.replace("|", "\\|") + "`"


def _line(text: str) -> str:
    return " ".join(visible(text, kept="\t\r\n").split())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _picture(name: str, pictures: Mapping[str, str]) -> list[str]:
    return [f"![{_ALTERNATIVES[name]}]({pictures[name]})"] if name in pictures else []


def _status(receipt: Receipt) -> list[str]:
    tests = receipt.test_results
    refused = [result for result in gate(receipt) if result.outcome != "pass"]
    said = (
        f"**{'Not passed' if refused else 'Passed'}.** {sentences.tally(receipt)}. "
        f"Of {tests.total} rungs {tests.passed} passed, {tests.failed} failed, {tests.errors} ended in an error, "
        f"{tests.unsupported} unsupported, {tests.inconclusive} inconclusive."
    )
    lines = [said]
    if refused:
        demands = "\n".join(f"- {code(result.name)}: {escape(result.why)}" for result in refused)
        lines.append(f"The gate refuses:\n\n{demands}")
    return lines


def _ladder(receipt: Receipt) -> list[str]:
    if not receipt.lanes:
        return ["No lane was run, so nothing is shown."]
    all_rungs = frames(receipt).rungs
    rows = []
    for lane in receipt.lanes:
        outcomes = {rung.name: rung.outcome for rung in lane.rungs}
        nearest = worst(all_rungs[all_rungs["lane"] == lane.name])
        far = "–" if nearest is None else f"{number(nearest['measured'])} / {number(nearest['limit'])}"
        passes = ("yes" if lane.required else "–") if counts(lane) else "**no**"
        cells = (SYMBOLS[outcomes.get(name, "inconclusive")] for name in RUNGS)
        rows.append([escape(lane.name), *cells, lane.climbed or "–", far, passes])
    legend = ", ".join(f"{SYMBOLS[outcome]} {outcome}" for outcome in OUTCOMES)
    return [table(["lane", *RUNGS, "climbed", "worst / limit", "gate"], rows), f"{legend}."]


def _findings(receipt: Receipt) -> list[str]:
    loud = [lane for lane in receipt.lanes if not sentences.simply_passed(lane)]
    if not loud:
        return ["Every lane passed."] if receipt.lanes else []
    return ["\n".join(f"- {SYMBOLS[lane.outcome]} {escape(sentences.sentence(lane))}" for lane in loud)]


def _lane(lane: Lane) -> list[str]:
    met, why = gate_reason(lane)
    asked = f"required: {'met' if met else '**not met**'}, {escape(why)}" if lane.required else "not required"
    numerics = ", ".join(f"{name} {value}" for name, value in lane.numerics.items())
    sides = f"Model {code(lane.model)} against {code(lane.reference)}"
    facts = [f"{sides}; engine's numerics: {escape(numerics) or '–'}; {asked}."]
    if floor := lane.noise_floor:
        facts.append(f"Noise floor: {escape(floor.metric)} {number(floor.value)} ({escape(floor.how)}).")
    if found := lane.located:
        positions = ", ".join(map(str, found.positions[:12])) + (", …" if len(found.positions) > 12 else "")
        facts.append(
            f"First wrong operation: {code(place(found.tap, found.layer))}, largest error {number(found.max_abs_err)} "
            f"of values up to {number(found.max_abs_ref)}, at token {found.worst_token}, column {found.worst_index}"
            + (f"; wrong at positions {positions}." if positions else ".")
        )
    facts += [
        f"Vote on {vote.rung}: "
        + ", ".join(f"{escape(name)} {opinion}" for name, opinion in vote.witnesses.items())
        + (f"; the odd one is {escape(vote.odd)}." if vote.odd else ".")
        for vote in lane.votes
    ]
    rungs = table(
        ["rung", "outcome", "metric", "measured", "limit", "compared", "why"],
        [
            [
                rung.name,
                f"{SYMBOLS[rung.outcome]} {rung.outcome}",
                escape(rung.metric) or "–",
                number(rung.measured),
                number(rung.limit),
                str(rung.compared),
                escape(rung.why) or "–",
            ]
            for rung in lane.rungs
        ],
    )
    return [f"### {escape(lane.name)}", " ".join(facts), rungs, _ties(lane)]


def _ties(lane: Lane) -> str:
    rows = [
        [
            rung.name,
            escape(tie.case),
            str(tie.position),
            number(tie.margin),
            number(tie.floor),
            str(tie.ours),
            str(tie.theirs),
        ]
        for rung in lane.rungs
        for tie in rung.near_ties
    ]
    head = ["near-tie at", "case", "position", "margin", "floor", "our token", "their token"]
    return table(head, rows) if rows else ""


def _references(receipt: Receipt) -> list[str]:
    if not receipt.references:
        return ["None."]
    identities = table(
        ["reference", "version", "family", "obtained", "library sha256", "numerics", "detail"],
        [
            [
                code(item.key),
                escape(item.version) or "–",
                escape(item.family),
                item.obtained,
                code(item.library_sha256[:16]),
                escape(", ".join(f"{name} {value}" for name, value in item.numerics.items())) or "–",
                escape(", ".join(f"{name}: {value}" for name, value in item.detail.items())) or "–",
            ]
            for item in receipt.references
        ],
    )
    checks = [
        [code(item.key), escape(check.question), escape(check.expected), escape(check.found), _outcome(check.outcome)]
        for item in receipt.references
        for check in item.self_check
    ]
    head = ["reference", "asked", "declared by the model", "found", "outcome"]
    return [identities, "Does each reference compute what the model declares?" if checks else "", table(head, checks)]


def _models(receipt: Receipt) -> list[str]:
    if not receipt.models:
        return ["None."]
    rows = []
    for item in receipt.models:
        size = item.hyper_parameters
        shape = f"{size.n_layer} layers, n_embd {size.n_embd}, n_ff {size.n_ff}, heads {size.n_head}/{size.n_head_kv}"
        types = ", ".join(f"{name} × {count}" for name, count in item.tensor_types.items())
        activation = f"{item.activation} ({item.activation_source})"
        cells = [escape(item.arch), escape(activation), shape, escape(types), f"{item.bytes:,}", code(item.sha256[:16])]
        rows.append([code(item.name), *cells])
    blocks = [table(["model", "architecture", "activation", "shape", "tensors", "bytes", "sha256"], rows)]
    notices = [f"- {code(item.name)}: {escape(notice)}" for item in receipt.models for notice in item.notices]
    blocks.append("\n".join(notices))
    tokenizers = [
        [
            code(item.model),
            escape(item.kind),
            f"{escape(item.pre) or '–'} ({escape(item.pre_source)})",
            item.source,
            str(item.n_vocab),
            code(item.sha256[:16]),
        ]
        for item in receipt.tokenizers
    ]
    head = ["tokenizer of", "kind", "pre-tokenizer", "source", "vocabulary", "sha256"]
    return [*blocks, table(head, tokenizers) if tokenizers else ""]


def _ledger(receipt: Receipt) -> list[str]:
    rows = [
        [
            code(part.model),
            code(entry.kernel),
            entry.role,
            escape(entry.weight_type),
            escape(entry.isa),
            f"{entry.calls:,}",
            f"{entry.rows:,}",
            f"{entry.bytes:,}",
            entry.fallback,
        ]
        for part in receipt.ledger
        for entry in part.entries
    ]
    head = ["model", "kernel", "role", "weights", "instructions", "calls", "rows", "bytes read", "fallback"]
    accuracy = [
        [
            code(row.kernel),
            escape(row.weight_type),
            escape(row.metric),
            number(row.measured),
            number(row.limit),
            f"{row.compared:,}",
            _outcome("pass" if row.passed else "fail"),
        ]
        for row in receipt.accuracy
    ]
    found = table(["kernel", "weights", "metric", "measured", "limit", "compared", "outcome"], accuracy)
    return [table(head, rows) if rows else "None.", found if accuracy else ""]


def _performance(timings: Sequence[Performance]) -> list[str]:
    if not timings:
        return ["Nothing was timed."]
    own = {(row.model, row.what, row.threads): row.tokens_per_second for row in timings if row.engine == ENGINE}
    rows = []
    for row in timings:
        rates = sorted(row.tokens / second for second in row.seconds if second > 0) if row.tokens else []
        peer = row.tokens_per_second if row.engine != ENGINE else 0.0
        ours = own.get((row.model, row.what, row.threads))
        rows.append(
            [
                code(row.model),
                row.what.replace("_", " "),
                escape(row.engine),
                str(row.threads),
                f"{row.tokens_per_second:,.1f}" if row.tokens else "–",
                f"{rates[0]:,.1f} to {rates[-1]:,.1f}" if rates else "–",
                f"{1000 * median(row.seconds):,.2f}" if row.seconds else "–",
                str(row.n),
                times(ours / peer) if ours is not None and peer > 0 else "–",
            ]
        )
    head = ["model", "phase", "engine", "threads", "tokens/s", "range", "median ms", "runs", f"{ENGINE} ÷ this"]
    return [table(head, rows)]


def _determinism(receipt: Receipt) -> list[str]:
    lines = [
        f"- {trial.what} ({escape(', '.join(trial.settings))}): "
        + ("the same bits every time" if trial.equal else "**not the same bits**")
        for trial in receipt.determinism
    ]
    return ["\n".join(lines)] if lines else ["Not tried."]


def _claims(receipt: Receipt) -> list[str]:
    blocks = []
    for title, said in (("Supported:", receipt.claims.supports), ("Not supported:", receipt.claims.does_not)):
        if said:
            blocks.append(title + "\n\n" + "\n".join(f"- {escape(claim)}" for claim in said))
    return blocks or ["None."]


def _run(receipt: Receipt) -> list[str]:
    run, machine = receipt.identity, receipt.environment
    dirty = {True: " with changes", False: "", None: ""}[run.git_dirty]
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    variables = ", ".join(f"{name}={value}" for name, value in machine.variables.items())
    rows = [
        ["command", code(run.command)],
        ["started", f"{escape(run.started)}, took {number(run.seconds)} s"],
        ["commit", code(run.git_commit) + dirty],
        ["package", escape(run.package_version)],
        ["machine", escape(f"{machine.cpu}, {machine.cores} cores, {machine.os}, {machine.machine}")],
        ["Python", escape(f"{machine.python}; {packages}")],
        ["variables", escape(variables) or "–"],
        ["receipt", code(receipt.digest)],
    ]
    return [table(["", ""], rows)]


def _outcome(outcome: str) -> str:
    return f"{SYMBOLS[outcome]} {outcome}"
