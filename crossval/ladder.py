"""The eight rungs, each a function of a lane that returns what it found; a rung is tried only if those below held.

identity → tokens → weights → operations (locked inputs) → logits (prefill) → decode (teacher-forced) → greedy text →
quality. A reference that cannot offer something is `unsupported` there, one that dies is an `error`; neither is a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from bitnet import gguf as container
from bitnet.errors import BitNetError, ResourceLimitError
from crossval import envelope
from crossval.copies import declared_otherwise
from crossval.decoded import Part, decoded_tensors, scaled
from crossval.envelope import Envelope
from crossval.evidence import TOP_K
from crossval.lane import Forced, Lane
from crossval.locate import check_operations
from crossval.metrics import (
    Float32,
    ShapeMismatchError,
    best,
    kl_divergence,
    logits_digest,
    max_abs,
    negative_log_likelihood,
    relative_l2,
    top1_margin,
)
from crossval.settle import settle
from crossval.spans import differences
from crossval.vote import Witness, vote
from receipts import ids_digest
from receipts.record import RUNGS, NearTie, Rung, RungName, Vote
from reference.oracle import Oracle
from reference.runner import ReferenceFailedError, ReferenceUnavailableError, Request

Climb = Callable[[Lane], Rung]


#: The rungs whose limits noise can widen, in order and above all others: one noise is for all.
_OVER_NOISE: tuple[RungName, ...] = ("logits", "decode", "greedy", "quality")


def climb(lane: Lane) -> tuple[Rung, ...]:
    """Every rung of a lane in order; those above a rung that did not hold are `inconclusive` and say so."""
    rungs = _climb(lane, ())
    failed = next((rung for rung in rungs if rung.outcome == "fail"), None)
    if failed is None or failed.name not in _OVER_NOISE or not failed.compared or not settle(lane):
        return rungs
    lane.forget_logits()
    return _climb(lane, rungs[: RUNGS.index(_OVER_NOISE[0])])


def _climb(lane: Lane, below: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """The rungs above those that were climbed."""
    rungs = list(below)
    stopped = ""
    for name in RUNGS[len(below) :]:
        if stopped:
            rungs.append(Rung(name=name, outcome="inconclusive", why=f"not tried: {stopped}"))
            continue
        lane.progress(name)
        rung = _attempt(name, lane)
        rungs.append(rung)
        stepped_over = rung.outcome == "unsupported" and name not in lane.plan.required_rungs
        if rung.outcome != "pass" and not stepped_over:
            stopped = f"{name} did not hold"
    return tuple(rungs)


def unsupported(why: str) -> tuple[Rung, ...]:
    """All eight rungs of a lane that cannot run."""
    return tuple(Rung(name=name, outcome="unsupported", why=why) for name in RUNGS)


def failed_reference(why: str) -> tuple[Rung, ...]:
    """All eight rungs of a lane whose reference died before the first."""
    first = Rung(name="identity", outcome="error", why=why)
    rest = (Rung(name=n, outcome="inconclusive", why="not tried: identity did not hold") for n in RUNGS[1:])
    return (first, *rest)


def _attempt(name: RungName, lane: Lane) -> Rung:
    try:
        return CLIMB[name](lane)
    except ReferenceUnavailableError as error:
        return Rung(name=name, outcome="unsupported", why=error.what)
    except ReferenceFailedError as error:
        return Rung(name=name, outcome="error", why=f"the reference failed: {error}")
    except ShapeMismatchError as error:
        return Rung(name=name, outcome="fail", why=f"the two sides answered in different shapes: {error}")
    except ResourceLimitError:
        raise  # of this machine, and of every lane: not a finding
    except BitNetError as error:
        return Rung(name=name, outcome="fail", why=f"the engine refused what the reference computed: {error.what}")


def identity(lane: Lane) -> Rung:
    """Two different programs on the files they are said to run on."""
    ours, theirs = lane.engine.info, lane.reference.info
    compared = 2
    library = theirs.library_sha256[:12] or "without a file"
    why = f"{theirs.name} ({theirs.obtained}, library {library}) is not this engine"
    if theirs.library_sha256 == ours.library_sha256 or theirs.family == ours.family:
        return Rung(name="identity", outcome="fail", why="both sides run the same code", compared=compared)
    if not theirs.model_sha256:
        return Rung(name="identity", outcome="inconclusive", why="the reference does not say which file it ran on")
    model, read = lane.plan.subject, lane.plan.reference_file
    if read != model.path and (other := declared_otherwise(model.gguf, container.read(read))):
        why = (
            f"the reference reads {read.name}, which is no copy of this model: {other}; remove it, or convert it again"
        )
        return Rung(name="identity", outcome="fail", why=why, compared=compared)
    same = theirs.model_sha256 == ours.model_sha256
    if not same and "weights" not in lane.plan.required_rungs:
        why = "the reference ran on another file, and its weights are not compared"
        return Rung(name="identity", outcome="fail", why=why, compared=compared)
    if not same:
        original = lane.original.model.weights.digest()
        why += f"; it reads a copy of this model (decoded weights {original[:12]}), compared on the weights rung"
    elif lane.plan.engine_file != lane.plan.subject.path:
        digests = {r.model.weights.digest() for r in (lane.engine, lane.original)}
        compared += 1
        why += "; both read the same copy, made from this model"
        if len(digests) > 1 and lane.engine.model.weights.layers[0].q.type_name != "F32":
            why = (
                f"the copy {read.name} decodes to other ternary weights than the model; remove it, or convert it again"
            )
            return Rung(name="identity", outcome="fail", why=why, compared=compared)
    return Rung(name="identity", outcome="pass", why=why, compared=compared)


def tokens(lane: Lane) -> Rung:
    """The same ids for every text."""
    different: list[str] = []
    for text in lane.texts:
        ours, theirs = lane.original.tokenize(text), lane.reference.tokenize(text)
        if spans := differences(lane.original.model.tokenizer, ours, theirs):
            different.append(f"{text[:40]!r} from token {spans[0].token} on")
    if not lane.texts and lane.reference.info.obtained == "recorded":
        return Rung(name="tokens", outcome="unsupported", why="no texts were recorded for this model")
    if not lane.texts:
        return Rung(name="tokens", outcome="inconclusive", why="there is no text to tokenise")
    limit = envelope.SAME_TOKENS
    held = not different
    why = f"{len(lane.texts)} texts have the same ids" if held else f"different ids: {'; '.join(different[:3])}"
    return _judged("tokens", limit, float(len(different)), len(lane.texts), why)


def weights(lane: Lane) -> Rung:
    """Every tensor of the model, decoded by both, with its scale applied."""
    worst, where, compared = 0.0, "", 0
    found_in: tuple[str, Part] | None = None
    for tensor in decoded_tensors(lane.original, lane.reference):
        lane.progress(f"weights: {tensor.name}")
        compared += 1
        for part in tensor.parts():
            found = part.difference()
            if found.max_abs_err > worst:
                worst, where = found.max_abs_err, f"{tensor.name} row {found.worst_token} column {found.worst_index}"
                found_in = tensor.name, part
    lane.original.release()  # every page was read, and the other engine of the lane has its own
    if found_in is not None:
        lane.votes.append(_weights_vote(lane, *found_in))
    why = f"{compared} tensors decode to equal bits"
    return _judged(
        "weights", envelope.WEIGHTS, worst, compared, why if not where else f"{where} differs by {worst:.3g}"
    )


def _weights_vote(lane: Lane, name: str, part: Part) -> Vote:
    """Who decodes the most different rows of a tensor as the contract does."""
    contract: Float32 | None = None
    copied = lane.plan.engine_file != lane.plan.subject.path
    with suppress(ReferenceUnavailableError):
        oracle = Oracle(str(lane.plan.subject.path), n_layer_kept=1) if copied else lane.oracle()
        contract = scaled(oracle, name, part.asked)
    info = lane.reference.info
    witnesses = {
        "bitnet": Witness(family="bitnet", said=part.ours),
        lane.oracle_key: Witness(family="oracle", said=contract),
        lane.plan.reference: Witness(family=info.family, library_sha256=info.library_sha256, said=part.theirs),
    }
    return vote("weights", witnesses, lambda a, b: np.array_equal(a.reshape(-1), b.reshape(-1), equal_nan=True))


def logits(lane: Lane) -> Rung:
    """All positions of every prompt, evaluated in one batch."""
    for forced in _all(lane):
        lane.runs.append(_run(lane, forced))
        lane.candidates += _candidates(lane, forced)
    return _compare_logits("logits", lane, [(c, c.theirs[: c.n_prompt], c.ours[: c.n_prompt], 0) for c in _all(lane)])


def decode(lane: Lane) -> Rung:
    """The reference's continuation one token at a time, after a batch and from the first token on."""
    parts = []
    for c in _all(lane):
        parts.append((c, c.theirs[c.n_prompt :], c.ours[c.n_prompt :], c.n_prompt))
        parts.append((c, c.theirs_single, c.ours_single, 0))
    rung = _compare_logits("decode", lane, [p for p in parts if len(p[1])])
    if rung.outcome != "fail":
        return rung
    limit = lane.closeness.largest
    split = [
        side
        for side, batch, single in (
            ("the engine", [c.ours for c in _all(lane)], [c.ours_single for c in _all(lane)]),
            ("the reference", [c.theirs for c in _all(lane)], [c.theirs_single for c in _all(lane)]),
        )
        if not all(
            limit.holds(relative_l2(a[: len(b)], b).max(initial=0.0)) for a, b in zip(batch, single, strict=True)
        )
    ]
    who = split[0] if len(split) == 1 else "each side"
    told = f"; {who} differs from itself between a batch and single tokens" if split else ""
    return replace(rung, why=rung.why + told)


def _run(lane: Lane, forced: Forced) -> dict[str, object]:
    """One case as this lane computed it, and the noise that was measured on it: a row of the side table `runs`."""
    return {
        "lane": lane.plan.name,
        "case": forced.case.name,
        "ids_sha256": ids_digest((*forced.case.ids, *forced.generated)),
        "rows": len(forced.ours),
        "ours_sha256": logits_digest(forced.ours),
        "theirs_sha256": logits_digest(forced.theirs),
        "noise_median": forced.noise.median,
        "noise_running": forced.noise.running,
        "noise_largest": forced.noise.largest,
        "noise_margin": forced.noise.margin,
        "noise_nll": forced.noise.mean_nll,
    }


def _candidates(lane: Lane, forced: Forced) -> list[dict[str, object]]:
    """What both sides give the engine's most likely tokens after the prompt: rows of the side table `candidates`."""
    at = forced.n_prompt - 1
    ours, theirs = forced.ours[at], forced.theirs[at]
    place = {"lane": lane.plan.name, "case": forced.case.name, "position": at}
    return [
        place | {"rank": rank, "id": token, "ours": float(ours[token]), "theirs": float(theirs[token])}
        for rank, token in enumerate(best(ours, TOP_K))
    ]


def _all(lane: Lane) -> list[Forced]:
    return [lane.forced(case) for case in lane.cases]


def _compare_logits(
    name: RungName,
    lane: Lane,
    parts: list[tuple[Forced, Float32, Float32, int]],
) -> Rung:
    if not parts:
        return Rung(name=name, outcome="inconclusive", why="no position was compared")
    error = []
    for forced, theirs, ours, start in parts:
        rows = relative_l2(ours, theirs)
        error.append(rows)
        floor = forced.floor[start : start + len(rows)]
        columns = (rows, max_abs(ours, theirs), kl_divergence(ours, theirs), top1_margin(theirs))
        for i, (rel, largest, kl, margin) in enumerate(zip(*columns, strict=True)):
            lane.positions.append(
                {
                    "lane": lane.plan.name,
                    "case": forced.case.name,
                    "phase": "prefill" if name == "logits" else "decode",
                    "position": start + i,
                    "rel_l2": float(rel),
                    "max_abs": float(largest),
                    "kl": float(kl),
                    "top1_equal": bool(np.isfinite(rel) and ours[i].argmax() == theirs[i].argmax()),
                    "margin": float(margin),
                    "floor": float(floor[i]),
                }
            )
    found = lane.closeness.measured(error)
    (_, median), (_, running), (_, largest) = found
    worst, measured = max(found, key=lambda pair: pair[1] / pair[0].limit)
    compared = sum(map(len, error))
    same = sum(row["top1_equal"] for row in lane.positions[-compared:])
    why = (
        f"median {median:.1e}, running median {running:.1e}, largest {largest:.1e}; "
        f"the most likely token agrees at {same} of {compared} positions"
    )
    return _judged(name, worst, measured, compared, f"{why}; limit: {worst.reason}")


def greedy(lane: Lane) -> Rung:
    """The tokens each side chooses: freely, and at every step of the reference's own continuation.

    Up to the first difference the engine has evaluated the same ids both ways, and owes the same choice.
    """
    ties: list[NearTie] = []
    wrong, compared = 0, 0
    first = ""
    for c in _all(lane):
        free = lane.engine.run(Request(ids=c.case.ids, n_greedy=c.case.n_greedy)).generated
        ends = next((i for i, (a, b) in enumerate(zip(free, c.generated, strict=True)) if a != b), len(free))
        forced_choice = c.ours[c.n_prompt - 1 :].argmax(axis=1)
        lane.choices[c.case.name] = (c.generated, tuple(forced_choice.tolist()))
        for step, (ours, theirs) in enumerate(zip(forced_choice.tolist(), c.generated, strict=True)):
            compared += 1
            repeats = step > ends or free[step] == ours
            if ours == theirs and repeats:
                continue
            chosen = ours if ours != theirs else free[step]
            row = c.theirs[c.n_prompt - 1 + step].astype(np.float64)
            margin = float(row[theirs] - row[chosen])
            if repeats and 0.0 <= margin <= lane.noise.margin:
                position = c.n_prompt - 1 + step
                ties.append(
                    NearTie(
                        case=c.case.name,
                        position=position,
                        margin=margin,
                        floor=lane.noise.margin,
                        ours=chosen,
                        theirs=theirs,
                    )
                )
                continue
            wrong += 1
            said = "" if repeats else f", though the engine itself chose {ours} on the same ids"
            first = first or f"{c.case.name}, step {step}: {chosen} for {theirs}, margin {margin:.2g}{said}"
    why = f"{compared - len(ties)} of {compared} greedy tokens are equal"
    if ties:
        largest = max(tie.margin for tie in ties)
        why += f"; {len(ties)} near-tie(s): margins up to {largest:.1e} under a noise of {lane.noise.margin:.1e}"
    if wrong:
        why = f"{wrong} of {compared} greedy tokens differ by more than noise ({first})"
    if ties and len(ties) == compared:
        return Rung(
            name="greedy", outcome="inconclusive", why=f"all {compared} tokens are near-ties", compared=compared
        )
    return _judged("greedy", envelope.SAME_CHOICE, float(wrong), compared, why, tuple(ties))


def quality(lane: Lane) -> Rung:
    """Mean negative log-likelihood of one text."""
    if lane.quality_ids:
        request = Request(ids=lane.quality_ids)
        pairs = [(lane.engine.run(request).logits, lane.ask(request).logits, lane.quality_ids)]
        what = "the held-out text"
    else:
        pairs = [(c.ours, c.theirs, c.ids) for c in _all(lane)]
        what = "the prompts and their continuations"
    ours = np.concatenate([np.empty(0), *(negative_log_likelihood(mine, ids) for mine, _, ids in pairs)])
    theirs = np.concatenate([np.empty(0), *(negative_log_likelihood(other, ids) for _, other, ids in pairs)])
    if not ours.size:
        return Rung(name="quality", outcome="inconclusive", why="the text has fewer than two tokens")
    measured = abs(float(ours.mean() - theirs.mean()))
    means = f"{ours.mean():.6f} here, {theirs.mean():.6f} there"
    why = f"mean negative log-likelihood of {what}, {ours.size} tokens: {means}, in nats"
    measured = measured if np.isfinite(measured) else float("inf")
    limit = envelope.quality(lane.noise.mean_nll)
    return _judged("quality", limit, measured, int(ours.size), f"{why}; limit: {limit.reason}")


def _judged(
    name: RungName, limit: Envelope, measured: float, compared: int, why: str, near_ties: tuple[NearTie, ...] = ()
) -> Rung:
    if compared == 0:
        return Rung(name=name, outcome="inconclusive", why="nothing was compared")
    return Rung(
        name=name,
        outcome="pass" if limit.holds(measured) else "fail",
        why=why,
        metric=limit.metric,
        measured=measured if np.isfinite(measured) else None,
        limit=limit.limit,
        compared=compared,
        near_ties=near_ties,
    )


CLIMB: dict[RungName, Climb] = {
    "identity": identity,
    "tokens": tokens,
    "weights": weights,
    "operations": check_operations,
    "logits": logits,
    "decode": decode,
    "greedy": greedy,
    "quality": quality,
}
