"""What a receipt says twice, it says alike: builds, limits, numerics, repeated runs, threads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from receipts.lanes import ENGINE, RUNGS
from receipts.rule import Finding, View, key, rule

#: Counts and values that sentences quote; two digits are given, so that 6 % is their rounding.
_NUMBER = r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
_COUNTS = re.compile(
    r"^(\d{1,15}) texts have|^(\d{1,15}) tensors decode|at \d{1,15} of (\d{1,15}) positions|"
    r"^\d{1,15} of (\d{1,15}) greedy|, (\d{1,15}) tokens: "
)
_LARGEST = re.compile(rf"\blargest {_NUMBER}")
_MEDIAN = re.compile(rf"^median {_NUMBER}")
_RUNNING = re.compile(rf"\brunning median {_NUMBER}")
_NOISE = re.compile(rf"limit: {_NUMBER} × the noise of {_NUMBER}")
_PAIR = re.compile(r": (\d{1,9}\.\d{6}) here, (\d{1,9}\.\d{6}) there")
_LIBRARY = re.compile(r"\blibrary ([0-9a-f]{12})\b")
_DECODED = re.compile(r"\bdecoded weights ([0-9a-f]{12})\b")
#: How a self-check that recognised nothing begins; what it tried follows.
_NONE_OF = "none of "
_SIX_DECIMALS = 1.1e-6  # two numbers rounded at half of the sixth decimal each, and what doubles add

#: Rungs whose limit no noise widens: it is one number wherever it stands.
_FIXED = ("tokens", "weights", "operations", "greedy")


@rule("references.builds", "References of one name and origin are one build: same family, version and library.")
def references_builds(view: View) -> Iterator[Finding]:
    """A run loads one library of a kind."""
    first: dict[tuple[str, str], tuple[str, str, str]] = {}
    families: dict[str, str] = {}
    for i, reference in enumerate(view.receipt.references):
        if reference.obtained == "unavailable":
            continue
        build = (reference.family, reference.version, reference.library_sha256)
        if first.setdefault((reference.name, reference.obtained), build) != build:
            yield f"references[{i}]", f"another build of {reference.name!r} than before"
        library = reference.library_sha256
        if library and families.setdefault(library, reference.name) != reference.name:
            yield f"references[{i}].name", f"{families[library]!r} is that library's name elsewhere"


@rule("references.numerics", "The engine computed in the numerics of the reference that it was compared with.")
def references_numerics(view: View) -> Iterator[Finding]:
    """Two numerics give two results; a limit wide enough for both would show nothing."""
    declared = {reference.key: reference.numerics for reference in view.receipt.references}
    for i, lane in enumerate(view.receipt.lanes):
        compared = any(rung.outcome in ("pass", "fail") for rung in lane.rungs if rung.name in RUNGS[3:])
        theirs = declared.get(lane.reference)
        if compared and theirs is not None and dict(theirs) != dict(lane.numerics):
            odd = sorted(name for name in {*theirs, *lane.numerics} if theirs.get(name) != lane.numerics.get(name))
            yield f"lanes[{i}].numerics", f"{', '.join(odd)[:80]} not as the reference declares it"


@rule("votes.numerics", "An oracle that votes in a lane computed in the lane's numerics.")
def votes_numerics(view: View) -> Iterator[Finding]:
    """Whatever key it has: the lane's own, or that of a witness beside."""
    references = {reference.key: reference for reference in view.receipt.references}
    for i, lane in enumerate(view.receipt.lanes):
        for name in sorted({name for vote in lane.votes for name, word in vote.witnesses.items() if word != "absent"}):
            witness = references.get(name)
            if witness is not None and witness.family == "oracle" and dict(witness.numerics) != dict(lane.numerics):
                yield f"lanes[{i}].votes", f"{name!r} declares other numerics than the lane"


@rule(
    "references.models", "A reference ran on its lane's model, or the weights are compared; the oracle on one listed."
)
def references_models(view: View) -> Iterator[Finding]:
    """The oracle reads the very file that the engine reads."""
    listed = {model.sha256 for model in view.receipt.models}
    models = view.models()
    by_key = {reference.key: (i, reference) for i, reference in enumerate(view.receipt.references)}
    for i, reference in by_key.values():
        same_file = reference.family == "oracle" or reference.obtained == "recorded"
        if same_file and reference.model_sha256 and reference.model_sha256 not in listed:
            yield f"references[{i}].model_sha256", "is no model of the receipt"
    for i, lane in enumerate(view.receipt.lanes):
        if lane.reference not in by_key or lane.model not in models:
            continue
        model, (j, reference) = models[lane.model], by_key[lane.reference]
        weights = lane.rung("weights")
        if reference.model_sha256 in ("", model.sha256) or (weights is not None and weights.outcome == "pass"):
            for k, answer in enumerate(reference.self_check):
                if answer.question == "activation" and answer.expected != model.activation:
                    yield f"references[{j}].self_check[{k}].expected", f"the model's activation is {model.activation}"
            continue
        if any(rung.outcome == "pass" for rung in lane.rungs if rung.name in RUNGS[3:]):
            yield f"lanes[{i}].reference", "it ran on another file, and no weights were compared"


@rule("lanes.limits", "A limit that no noise widens is the same everywhere, and a lane judges logits by one.")
def lanes_limits(view: View) -> Iterator[Finding]:
    """By rung and metric. No limit may be negative."""
    seen: dict[tuple[str, str], float | None] = {}
    for i, lane in enumerate(view.receipt.lanes):
        for j, rung in enumerate(lane.rungs):
            path = f"lanes[{i}].rungs[{j}]"
            if (rung.limit is not None and rung.limit < 0) or (rung.measured is not None and rung.measured < 0):
                yield path, "a magnitude is negative"
            if rung.outcome not in ("pass", "fail") or not rung.metric:
                continue
            where = (rung.name if rung.name in _FIXED else f"{i}", rung.metric)
            if where in seen and seen[where] != rung.limit:
                yield f"{path}.limit", f"{rung.limit}, but {seen[where]} elsewhere for {rung.metric!r:.60}"
            seen.setdefault(where, rung.limit)


@rule("rungs.counts", "Rungs that passed count every tensor of the model, and every token that its cases generated.")
def rungs_counts(view: View) -> Iterator[Finding]:
    """Scales that are tensors of their own, one a projection, are compared with their weights."""
    models = view.models()
    generated: dict[object, int] = {}
    for case in view.receipt.cases:
        place = key(case.model, case.numerics)
        generated[place] = generated.get(place, 0) + len(case.generated_ids)
    for i, lane in enumerate(view.receipt.lanes):
        for j, rung in enumerate(lane.rungs):
            if rung.outcome != "pass" or lane.model not in models:
                continue
            model, path = models[lane.model], f"lanes[{i}].rungs[{j}].compared"
            tensors = sum(model.tensor_types.values())
            scales = 7 * model.hyper_parameters.n_layer
            if rung.name == "weights" and rung.compared not in (tensors, tensors - scales):
                yield path, f"{rung.compared}, but the model has {tensors} tensors"
            tokens = generated.get(key(lane.model, lane.numerics), 0)
            if rung.name == "greedy" and tokens and rung.compared != tokens:
                yield path, f"{rung.compared}, but the cases generated {tokens} tokens"


@rule("rungs.why", "The sentence of a rung that passed quotes its own numbers.")
def rungs_why(view: View) -> Iterator[Finding]:
    """A person reads the sentence, a machine the number; neither may be told something else."""
    for i, lane in enumerate(view.receipt.lanes):
        for j, rung in enumerate(lane.rungs):
            path = f"lanes[{i}].rungs[{j}].why"
            if rung.outcome != "pass":
                continue
            if (said := _COUNTS.search(rung.why)) and int(next(filter(None, said.groups()))) != rung.compared:
                yield path, f"{said[0]!r}, but {rung.compared} were compared"
            for pattern, value, slack in (
                (_LARGEST, rung.measured if rung.metric.startswith("largest") else None, 0.06),
                (_MEDIAN, rung.measured if rung.metric.startswith("median") else None, 0.06),
                (_RUNNING, rung.measured if rung.metric.startswith("running") else None, 0.06),
                (_NOISE, rung.limit, 0.06),
            ):
                quoted = pattern.search(rung.why)
                if quoted and value is not None:
                    number = math.prod(float(part) for part in quoted.groups())
                    if not math.isclose(number, value, rel_tol=slack):
                        yield path, f"{quoted[0]!r}, but the number is {value:g}"
            if (pair := _PAIR.search(rung.why)) and rung.measured is not None:
                apart = abs(float(pair[1]) - float(pair[2]))
                if abs(apart - rung.measured) > _SIX_DECIMALS:
                    yield path, f"{pair[0]!r}, but the difference is {rung.measured:g}"


@rule("rungs.judged", "What was not judged has neither measured value nor limit, and what was not tried no count.")
def rungs_judged(view: View) -> Iterator[Finding]:
    """What is inconclusive may have compared a little."""
    for i, lane in enumerate(view.receipt.lanes):
        for j, rung in enumerate(lane.rungs):
            path = f"lanes[{i}].rungs[{j}]"
            if not rung.metric and (rung.measured is not None or rung.limit is not None):
                yield path, "there is a value, but not what it measures"
            if rung.outcome in ("unsupported", "error") and rung.compared:
                yield f"{path}.compared", f"{rung.outcome}, but {rung.compared} were compared"


@rule("rungs.identity", "Who was compared on the identity rung is who the receipt names.")
def rungs_identity(view: View) -> Iterator[Finding]:
    """Two files, and the copy's weights where both sides read a copy; digests are quoted by their first digits."""
    weights = [model.weights_sha256 for model in view.receipt.models]
    by_key = {reference.key: reference for reference in view.receipt.references}
    for i, lane in enumerate(view.receipt.lanes):
        rung, reference = lane.rung("identity"), by_key.get(lane.reference)
        if rung is None or rung.outcome != "pass" or reference is None:
            continue
        path = f"lanes[{i}].rungs[0]"
        if rung.compared != 2 + ("both read the same copy" in rung.why):
            yield f"{path}.compared", f"{rung.compared}, but it says: {rung.why:.60}"
        if (said := _LIBRARY.search(rung.why)) and not reference.library_sha256.startswith(said[1]):
            yield f"{path}.why", f"library {said[1]}, but the reference has {reference.library_sha256[:12]}"
        if (said := _DECODED.search(rung.why)) and not any(digest.startswith(said[1]) for digest in weights):
            yield f"{path}.why", f"{said[0]}, which no model has"


@rule("models.same_weights", "Models with the same ternary weights have the same shape and the same tokenizer.")
def models_same_weights(view: View) -> Iterator[Finding]:
    """One is a copy of the other in another container."""
    first: dict[str, tuple[object, ...]] = {}
    tokenizers = {t.model: (t.sha256, t.kind, t.n_vocab) for t in view.receipt.tokenizers}
    for i, model in enumerate(view.receipt.models):
        said = (model.hyper_parameters, model.activation, tokenizers.get(model.name))
        if first.setdefault(model.weights_sha256, said) != said:
            yield f"models[{i}]", "is a copy of one before, but not in shape, activation or tokenizer"


@rule("lanes.required_rungs", "Required rungs are listed once, in the order of the ladder, and only where the lane is.")
def lanes_required_rungs(view: View) -> Iterator[Finding]:
    """A rung listed twice stands in the place of another."""
    for i, lane in enumerate(view.receipt.lanes):
        if lane.required_rungs != tuple(name for name in RUNGS if name in lane.required_rungs):
            yield f"lanes[{i}].required_rungs", ", ".join(lane.required_rungs)


@rule("rungs.ties", "Near-ties of a lane share one noise floor, lie inside their case and are of its vocabulary.")
def rungs_ties(view: View) -> Iterator[Finding]:
    """The floor is measured once a lane."""
    lengths = {(c.model, c.name): len(c.prompt_ids) + len(c.generated_ids) for c in view.receipt.cases}
    models = view.models()
    for i, lane in enumerate(view.receipt.lanes):
        ties = [(j, k, tie) for j, rung in enumerate(lane.rungs) for k, tie in enumerate(rung.near_ties)]
        for j, k, tie in ties:
            path = f"lanes[{i}].rungs[{j}].near_ties[{k}]"
            if tie.floor != ties[0][2].floor:
                yield f"{path}.floor", f"{tie.floor:g}, but {ties[0][2].floor:g} before"
            if tie.position >= lengths.get((lane.model, tie.case), tie.position + 1):
                yield f"{path}.position", f"{tie.position} is past the end"
            model = models.get(lane.model)
            if model is not None and max(tie.ours, tie.theirs) >= model.hyper_parameters.n_vocab:
                yield path, "a token is outside the vocabulary"


@rule("votes.outcome", "Where a voted rung passed both sides agree; a single one that differs from two is the odd one.")
def votes_outcome(view: View) -> Iterator[Finding]:
    """The vote and the rung look at the same numbers."""
    for i, lane in enumerate(view.receipt.lanes):
        for j, vote in enumerate(lane.votes):
            path = f"lanes[{i}].votes[{j}]"
            rung = lane.rung(vote.rung)
            words = [vote.witnesses.get(name) for name in (ENGINE, lane.reference)]
            if rung is not None and rung.outcome == "pass" and words != ["agrees", "agrees"]:
                yield f"{path}.witnesses", f"the rung {vote.rung} passed, but {ENGINE} and the reference do not agree"
            differ = [name for name, word in vote.witnesses.items() if word == "differs"]
            agree = sum(word == "agrees" for word in vote.witnesses.values())
            if vote.odd is None and len(differ) == 1 and agree >= 2:
                yield f"{path}.odd", f"nobody, but {differ[0]!r} alone differs"


@rule("determinism.cases", "What was run again on other threads, or once more, is a case of the receipt.")
def determinism_cases(view: View) -> Iterator[Finding]:
    """With its digests. Other batches keep other rows, so those trials have digests of their own."""
    cases = {(case.ids_sha256, case.logits_sha256) for case in view.receipt.cases}
    ids = {case.ids_sha256 for case in view.receipt.cases}
    for i, row in enumerate(view.receipt.determinism):
        for j, run in enumerate(row.runs):
            if row.equal and row.what != "batch" and (run.ids_sha256, run.logits_sha256) not in cases:
                what = "logits are not those" if run.ids_sha256 in ids else "ids are not those"
                yield f"determinism[{i}].runs[{j}]", f"{what} of any case"


@rule("performance.pairs", "A phase of a model is timed once an engine, with the same tokens and threads for each.")
def performance_pairs(view: View) -> Iterator[Finding]:
    """Speeds are compared on equal terms or not at all."""
    seen: set[tuple[str, str, str]] = set()
    terms: dict[tuple[str, str], tuple[int, int, int]] = {}
    for i, row in enumerate(view.receipt.performance):
        if (row.model, row.what, row.engine) in seen:
            yield f"performance[{i}]", f"{row.what} of {row.model!r} by {row.engine!r} is entered twice"
        seen.add((row.model, row.what, row.engine))
        if row.what in ("decode", "prefill"):
            now = (row.tokens, row.threads, row.n)
            if terms.setdefault((row.model, row.what), now) != now:
                yield f"performance[{i}]", "tokens, threads or repetitions are not those of its peer"


@rule("accuracy.kernels", "A kernel whose accuracy was measured ran on such weights, and one metric has one limit.")
def accuracy_kernels(view: View) -> Iterator[Finding]:
    """By the ledger."""
    ran = {(entry.kernel, entry.weight_type) for part in view.receipt.ledger for entry in part.entries}
    limits: dict[str, float] = {}
    for i, row in enumerate(view.receipt.accuracy):
        if (row.kernel, row.weight_type) not in ran:
            yield f"accuracy[{i}].kernel", f"no ledger has {row.kernel!r} on {row.weight_type}"
        if limits.setdefault(row.metric, row.limit) != row.limit:
            yield f"accuracy[{i}].limit", f"{row.limit:g}, but {limits[row.metric]:g} elsewhere"


@rule("causes.self_check", "An activation that explains a reference is the one that the reference's self-check found.")
def causes_self_check(view: View) -> Iterator[Finding]:
    """Two ways of finding out, and one answer; the self-check tries the usual forms, each alone."""
    by_key = {reference.key: reference for reference in view.receipt.references}
    for i, lane in enumerate(view.receipt.lanes):
        reference = by_key.get(lane.reference)
        if lane.cause is None or lane.blame != "reference" or reference is None:
            continue
        parts = lane.cause.name.split(" + ")
        for name, _, value in (part.partition("=") for part in parts):
            for answer in reference.self_check:
                tried = answer.found.removeprefix(_NONE_OF).split(", ") if answer.found.startswith(_NONE_OF) else None
                none = tried is not None and (len(parts) > 1 or value not in tried)
                if answer.question == name and answer.found != value and not none:
                    yield (
                        f"lanes[{i}].cause.name",
                        f"{lane.cause.name!r:.60}, but the self-check found {answer.found!r:.60}",
                    )
