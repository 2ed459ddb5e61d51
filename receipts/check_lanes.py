"""Lanes against their own rungs, their references and their ledger: do these outcomes follow from these findings?"""

from __future__ import annotations

from collections.abc import Iterator

from receipts.lanes import RUNGS, UNWATCHED, Lane, Rung, blamed, climb, lane_outcome
from receipts.rule import Finding, View, key, rule

#: Rungs that the engine has to compute something for.
_COMPUTED = ("operations", "logits", "decode", "greedy", "quality")
#: A cause is proven when it removes nine tenths of the difference: what is left is then within the noise that
#: chaotic int8 rounding adds (facts: one flipped rounding moves logits by 1e-2), and no second defect hides in it.
PROVEN = 0.9


@rule("lanes.names", "Lanes are named once, and their model and reference are in the receipt.")
def lanes_names(view: View) -> Iterator[Finding]:
    """A lane that compares with nobody compares nothing."""
    models, references = view.models(), {reference.key for reference in view.receipt.references}
    seen: set[str] = set()
    for path, lane in _lanes(view):
        if lane.name in seen:
            yield f"{path}.name", f"a second lane is called {lane.name!r}"
        seen.add(lane.name)
        if lane.model not in models:
            yield f"{path}.model", f"there is no model {lane.model!r}"
        if lane.reference not in references:
            yield f"{path}.reference", f"there is no reference {lane.reference!r}"


@rule("lanes.rungs", "A lane has the eight rungs of the ladder, in order.")
def lanes_rungs(view: View) -> Iterator[Finding]:
    """A rung left out is a rung hidden."""
    for path, lane in _lanes(view):
        names = tuple(rung.name for rung in lane.rungs)
        if names != RUNGS:
            yield f"{path}.rungs", f"{', '.join(names) or 'none'}; expected {', '.join(RUNGS)}"


@rule("rungs.evidence", "A rung passes only if something was compared and no measured value is over its limit.")
def rungs_evidence(view: View) -> Iterator[Finding]:
    """Nothing compared is `inconclusive`, and every outcome says why."""
    for path, _, rung in _rungs(view):
        if not rung.why.strip():
            yield f"{path}.why", "no reason is given"
        if rung.outcome != "pass":
            continue
        if rung.compared == 0:
            yield f"{path}.compared", "passed, but nothing was compared"
        if rung.limit is not None and rung.measured is None:
            yield f"{path}.measured", f"passed a limit of {rung.limit:g} without a measured value"
        if rung.limit is not None and rung.measured is not None and rung.measured > rung.limit:
            yield f"{path}.measured", f"passed, but {rung.measured:g} is over the limit {rung.limit:g}"


@rule("rungs.near_ties", "A near-tie is of a known case, between two tokens, with a margin within its floor.")
def rungs_near_ties(view: View) -> Iterator[Finding]:
    """A difference with a clear margin is a difference."""
    cases = {(case.model, case.name) for case in view.receipt.cases}
    for path, lane, rung in _rungs(view):
        for i, tie in enumerate(rung.near_ties):
            place = f"{path}.near_ties[{i}]"
            if tie.margin > tie.floor:
                yield place, f"the margin {tie.margin:g} is over the noise floor {tie.floor:g}"
            if tie.ours == tie.theirs:
                yield place, f"both chose {tie.ours}"
            if (lane.model, tie.case) not in cases:
                yield place, f"there is no case {tie.case!r} of model {lane.model!r}"
        if rung.outcome == "pass" and rung.near_ties and len(rung.near_ties) >= rung.compared:
            yield path, "passed, but everything compared was a near-tie"


@rule("lanes.outcome", "A lane's outcome and height follow from its rungs.")
def lanes_outcome(view: View) -> Iterator[Finding]:
    """Recomputed by the functions that the comparison itself uses."""
    for path, lane in _lanes(view):
        outcome = lane_outcome(lane.rungs, lane.required_rungs)
        if lane.outcome != outcome:
            yield f"{path}.outcome", f"{lane.outcome}, but its rungs make it {outcome}"
        height = climb(lane.rungs, lane.required_rungs)
        if lane.climbed != height:
            yield f"{path}.climbed", f"{lane.climbed or 'none'}, but its rungs reach {height or 'none'}"


@rule("lanes.unavailable", "Nothing passes or fails against a reference that was not there.")
def lanes_unavailable(view: View) -> Iterator[Finding]:
    """Such rungs are `unsupported`."""
    absent = {reference.key for reference in view.receipt.references if reference.obtained == "unavailable"}
    for path, lane, rung in _rungs(view):
        if lane.reference in absent and rung.outcome in ("pass", "fail"):
            yield f"{path}.outcome", f"{rung.outcome}, but {lane.reference!r} was unavailable"


@rule("lanes.ledger", "Rungs that compare what the engine computed have a ledger of it.")
def lanes_ledger(view: View) -> Iterator[Finding]:
    """For the lane's model and numerics."""
    ledgers = view.ledgers()
    for path, lane in _lanes(view):
        part = ledgers.get(key(lane.model, lane.numerics))
        if (part is None or part.tokens == 0) and any(
            rung.outcome == "pass" and rung.name in _COMPUTED for rung in lane.rungs
        ):
            yield f"{path}.numerics", "passed, but no ledger says that the engine ran with this model and numerics"


@rule(
    "lanes.located",
    "An operations rung that failed has a located operation, in the model, over its limit and in a case.",
)
def lanes_located(view: View) -> Iterator[Finding]:
    """An integer operation is over its limit by any difference at all, and then integers are what the rung measured."""
    models = view.models()
    for path, lane in _lanes(view):
        found, rung = lane.located, lane.rung("operations")
        if found is None:
            if rung is not None and rung.outcome == "fail" and rung.metric not in ("", UNWATCHED):
                yield f"{path}.located", "operations were measured and failed, but none is located"
            continue
        if not _failed(lane) or rung is None or rung.outcome == "pass":
            yield f"{path}.located", "an operation is located, but no rung failed, or not for its operations"
        elif rung.metric == UNWATCHED:
            yield (
                f"{path}.located",
                "an operation is located, but the engine's are not those that it computes unwatched",
            )
        elif found.integer and rung.metric.startswith("max"):
            yield f"{path}.located.integer", f"integers are wrong, but the rung measured {rung.metric!r:.60}"
        allowed = 0.0 if found.integer else found.limit * found.max_abs_ref
        if found.max_abs_err <= allowed:
            yield f"{path}.located.max_abs_err", f"{found.max_abs_err:g} is within the limit {allowed:g}"
        if lane.model in models and found.layer >= models[lane.model].hyper_parameters.n_layer:
            yield f"{path}.located.layer", f"the model has no layer {found.layer}"
        cases = (case for case in view.receipt.cases if (case.model, case.numerics) == (lane.model, lane.numerics))
        longest = max((len(case.prompt_ids) for case in cases), default=0)
        if list(found.positions) != sorted({*found.positions, found.worst_token}):
            yield f"{path}.located.positions", f"not in order, or without the worst, {found.worst_token}"
        elif found.positions[-1] >= longest:
            yield f"{path}.located.positions", f"{found.positions[-1]}, but the longest prompt has {longest} tokens"


@rule("lanes.blame", "Blamed is who the first vote with an odd one names, and nobody where no rung failed.")
def lanes_blame(view: View) -> Iterator[Finding]:
    """Blaming the reference clears the engine, and blaming nobody clears both."""
    for path, lane in _lanes(view):
        if lane.blame is not None and not _failed(lane):
            yield f"{path}.blame", f"the {lane.blame} is blamed, but no rung failed"
            continue
        if lane.blame != blamed(lane.rungs, lane.votes, lane.reference):
            odd = next((vote.odd for vote in lane.votes if vote.odd), None)
            votes = f"the votes name {odd!r:.60}" if odd else "no vote has an odd one"
            yield f"{path}.blame", f"{f'the {lane.blame}' if lane.blame else 'nobody'} is blamed, but {votes}"


@rule(
    "lanes.cause", "A cause explains more than its runner-up, in a lane with a rung that failed, and what was located."
)
def lanes_cause(view: View) -> Iterator[Finding]:
    """A tie between two hypotheses is no attribution; only logits have a cause without an operation."""
    for path, lane in _lanes(view):
        if lane.cause is None:
            continue
        if (lane.cause.evidence == "operations") != (lane.located is not None):
            seen = "an operation is" if lane.located else "no operation is"
            yield f"{path}.cause.evidence", f"{lane.cause.evidence}, but {seen} located"
        if not lane.cause.name:
            continue
        if not _failed(lane):
            yield f"{path}.cause", "a cause is named, but no rung failed"
        if lane.cause.runner_up and lane.cause.explained <= lane.cause.runner_up_explained:
            yield f"{path}.cause", f"{lane.cause.name!r} explains no more than {lane.cause.runner_up!r}"


@rule(
    "lanes.known_deviation",
    "A known deviation is proven only with the reference blamed, the operation located and 0.9 of it explained.",
)
def lanes_known_deviation(view: View) -> Iterator[Finding]:
    """Otherwise a declaration would be a pass for anything."""
    for path, lane in _lanes(view):
        if not lane.deviates_as_declared:
            continue
        place = f"{path}.known_deviation"
        if not _failed(lane):
            yield place, "proven, but no rung failed: the declaration is stale"
        if lane.located is None:
            yield place, "proven, but no operation is located"
        if lane.cause is None or not lane.cause.name or lane.cause.explained < PROVEN:
            yield place, f"proven, but no cause explains at least {PROVEN:g} of the difference"
        if lane.blame != "reference":
            yield place, "proven, but the reference is not the one to blame"


@rule("votes.witnesses", "Witnesses are the engine and known references, and share neither library nor family.")
def votes_witnesses(view: View) -> Iterator[Finding]:
    """One build heard twice is one witness."""
    references = {reference.key: reference for reference in view.receipt.references}
    for path, lane in _lanes(view):
        for i, vote in enumerate(lane.votes):
            present = [name for name, word in vote.witnesses.items() if word != "absent"]
            seen: dict[str, str] = {}
            for name in sorted(present):
                reference = references.get(name)
                if reference is None:
                    if name != "bitnet":
                        yield f"{path}.votes[{i}].witnesses", f"nobody is called {name!r}"
                    continue
                for mark in filter(None, (reference.library_sha256, f"family {reference.family}")):
                    if mark in seen:
                        yield f"{path}.votes[{i}].witnesses", f"{seen[mark]!r} and {name!r} are one witness ({mark})"
                        break
                    seen[mark] = name


@rule("votes.odd", "The odd one out is the only one that differs, and at least two agree.")
def votes_odd(view: View) -> Iterator[Finding]:
    """Two engines that differ have no majority."""
    for path, lane in _lanes(view):
        for i, vote in enumerate(lane.votes):
            if vote.odd is None:
                continue
            differ = [name for name, word in vote.witnesses.items() if word == "differs"]
            agree = [name for name, word in vote.witnesses.items() if word == "agrees"]
            if differ != [vote.odd] or len(agree) < 2:
                yield f"{path}.votes[{i}].odd", f"{vote.odd!r}, but {len(agree)} agree and {len(differ)} differ"


@rule("references.keys", "References are named once, and none takes the engine's name.")
def references_keys(view: View) -> Iterator[Finding]:
    """An engine is no witness for itself."""
    seen = {"bitnet"}
    for i, reference in enumerate(view.receipt.references):
        if reference.key in seen:
            yield f"references[{i}].key", f"{reference.key!r} is taken"
        seen.add(reference.key)


@rule("references.identity", "A reference that answered has hashes: of its model file and, if native, of its library.")
def references_identity(view: View) -> Iterator[Finding]:
    """A name or a path identifies nothing."""
    for i, reference in enumerate(view.receipt.references):
        if reference.obtained == "unavailable":
            continue
        if not reference.model_sha256:
            yield f"references[{i}].model_sha256", f"{reference.key!r} answered, but on which file is not said"
        native = "ggml" in reference.family.lower() or reference.name.lower() in ("llama.cpp", "bitnet.cpp")
        if native and reference.obtained in ("live", "server") and not reference.library_sha256:
            yield f"references[{i}].library_sha256", f"{reference.key!r} ran, but from which library is not said"


@rule("references.self_check", "A self-check passes exactly when the reference computes what was expected.")
def references_self_check(view: View) -> Iterator[Finding]:
    """The answer is recorded, not only the verdict."""
    for i, reference in enumerate(view.receipt.references):
        for j, answer in enumerate(reference.self_check):
            same = answer.expected == answer.found
            if same != (answer.outcome == "pass") or (answer.found and not same and answer.outcome != "fail"):
                yield (
                    f"references[{i}].self_check[{j}].outcome",
                    f"{answer.outcome}, but expected {answer.expected!r} and found {answer.found!r}",
                )


def _failed(lane: Lane) -> bool:
    return any(rung.outcome == "fail" for rung in lane.rungs)


def _lanes(view: View) -> Iterator[tuple[str, Lane]]:
    for i, lane in enumerate(view.receipt.lanes):
        yield f"lanes[{i}]", lane


def _rungs(view: View) -> Iterator[tuple[str, Lane, Rung]]:
    for path, lane in _lanes(view):
        for j, rung in enumerate(lane.rungs):
            yield f"{path}.rungs[{j}]", lane, rung
