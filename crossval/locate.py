"""Operations on locked inputs: each one alone, fed what the reference itself fed it, and the first wrong one located.

The engine runs its own forward pass, but every value is replaced by the reference's after it was recorded, so that
each operation sees the reference's captured inputs. The oracle does the same, and the three vote. It goes layer by
layer: of a model of billions of weights the oracle holds one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType

import numpy as np

from crossval import envelope
from crossval.case import ends
from crossval.engine import PROJECTIONS
from crossval.lane import Lane, Row
from crossval.metrics import Difference, Float32, difference, histogram
from crossval.replay import Replay
from crossval.self_check import self_check
from crossval.vote import Witness, vote
from crossval.watched import otherwise_unwatched
from receipts.record import Located, Rung, Vote
from reference.recorded import Recorded
from reference.runner import (
    Observation,
    ReferenceFailedError,
    ReferenceUnavailableError,
    Request,
    Runner,
    TapKey,
    tap_order,
)

#: Prompt tokens whose intermediates are captured, those of a large model, and those captured one token at a time.
MAX_TOKENS, MAX_TOKENS_LARGE = 128, 56
SINGLE_TOKENS = 8

_LARGEST = float(np.finfo(np.float64).max)

Taps = Mapping[TapKey, Float32]
#: How two values of an operation differ, measured as its inputs allow.
Judge = Callable[[TapKey, Float32, Float32], Difference]


@dataclass(slots=True)
class _Walk:
    """What one request showed.

    Attributes:
        count, worst, where: Operations compared, the largest ratio among them, and its place.
        sums, unequal, integer: Products of integers, how many are wrong, and the first of those.
        contract: What the contract computes, by operation.
    """

    count: int = 0
    worst: float = 0.0
    where: str = ""
    sums: int = 0
    unequal: int = 0
    integer: Located | None = None
    contract: dict[TapKey, Float32] = field(default_factory=dict)


def check_operations(lane: Lane) -> Rung:
    """Every captured operation of the first and the longest prompt, in a batch and one token at a time.

    First of all the engine must be itself when it is watched.
    """
    if not lane.cases:
        return Rung(name="operations", outcome="inconclusive", why="there is no prompt to evaluate")
    if (contradiction := otherwise_unwatched(lane, _requests(lane))) is not None:
        return contradiction
    checked, refused = 0, ""
    worst, worst_at = 0.0, ""
    unequal = 0
    sums = 0
    covered: set[TapKey] = set()
    itself = lane.reference.info.family == "oracle"
    for name, request in _requests(lane):
        try:
            theirs = lane.ask(request)
        except ReferenceUnavailableError as error:
            refused = error.what
            continue  # a recording has the intermediates of one prompt only
        covered |= set(theirs.taps)
        _check_capture(theirs)
        locked = Request(ids=request.ids, n_batch=request.n_batch, taps=True, lock=theirs.taps)
        ours = lane.engine.run(locked).taps
        replay = Replay(lane.oracle(), request.ids, theirs.taps, n_batch=request.n_batch)
        walk = _walk(lane, name, ours, replay, listen=not lane.votes and not itself)
        checked += walk.count
        if walk.worst > worst or not worst_at:
            worst, worst_at = walk.worst, walk.where
        unequal, sums = unequal + walk.unequal, sums + walk.sums
        if lane.located is None:
            lane.located = walk.integer
        if not lane.votes:
            self_check(lane, ours, theirs.taps)
        if not lane.votes or lane.located is not None:
            further = {} if lane.located is None else lane.witnesses()
            contract = walk.contract if walk.contract or itself else _contract(replay)
            lane.votes = [_vote(lane, locked, ours, theirs.taps, contract, further, replay.judged)]
        if lane.located is not None:
            lane.locked = locked
            break
    if not checked:
        said = f": {refused}" if refused else ""
        why = f"the reference offers no intermediates of these prompts{said}"
        return Rung(name="operations", outcome="unsupported", why=why)
    rung = _verdict(lane, checked, sums, unequal, worst, worst_at)
    layers = set(range(lane.engine.model.config.n_layer)) - {layer for _, layer in covered}
    if rung.outcome == "pass" and (layers or ("result_output", -1) not in covered):
        missed = ", ".join([f"layer {il}" for il in sorted(layers)] or ["the head"])
        why = f"{rung.why}; nothing was captured of {missed}"
        return Rung(name="operations", outcome="inconclusive", why=why, compared=rung.compared)
    return rung


def _check_capture(seen: Observation) -> None:
    """The head's tap and the logits are one thing: a reference that shows two is not showing what it computed."""
    shown = seen.taps.get(("result_output", -1))
    if shown is not None and not np.array_equal(shown, seen.logits, equal_nan=True):
        raise ReferenceFailedError("its captured result_output is not the logits that it returned")


def _requests(lane: Lane) -> list[tuple[str, Request]]:
    singles = lane.cases[0].ids[:SINGLE_TOKENS]
    single = (f"{lane.cases[0].name}, one token at a time", Request(ids=singles, n_batch=1, taps=True))
    if isinstance(lane.reference, Recorded):  # it has every prompt whole
        return [*((c.name, Request(ids=c.ids, taps=True)) for c in lane.cases), single]
    most = MAX_TOKENS_LARGE if lane.plan.subject.large else MAX_TOKENS
    first, *longest = ends(lane.cases)
    made = [(first.name, Request(ids=first.ids[:most], taps=True))]
    for case in longest:
        ids = case.ids[:most]
        n_batch = max(len(ids) - SINGLE_TOKENS, 1)
        made.append((f"{case.name}, the last one at a time", Request(ids=ids, n_batch=n_batch, taps=True)))
    return [*made, single]


def _walk(lane: Lane, case: str, ours: Taps, replay: Replay, *, listen: bool) -> _Walk:
    """Every captured operation and every product of integers, layer by layer.

    All that is asked of the contract in a layer is asked while its weights are at hand, so that a large model is
    decoded once a request, and no more than one layer of it is held.

    Args:
        lane: Whose rows are entered.
        case: Its name in them.
        ours: What the engine computed on the inputs of the reference.
        replay: What the reference did, for the contract.
        listen: Whether what the contract computes is kept for a vote.
    """
    walk = _Walk()
    n_layer = lane.engine.model.config.n_layer
    made: dict[TapKey, Float32] = {}
    for layer, keys in groupby(tap_order(n_layer), key=lambda key: key[1]):
        lane.progress(f"operations of {case}" + (f", layer {layer} of {n_layer}" if layer >= 0 else ""))
        for key in keys:
            if key not in replay.outputs:
                continue
            if key in ours:
                _compare(lane, case, key, ours[key], replay, walk)
            if listen and key[0] not in replay.oracle.absent:
                value = walk.contract[key] = replay.operation(key, replay.oracle, made)
                for other in (ours.get(key), replay.outputs[key]):
                    if other is not None:
                        replay.judged(key, other, value)  # whose noise, if it matters, is known from here on
        if layer >= 0:
            _integers(lane, layer, ours, replay.inputs, walk)
    return walk


def _contract(replay: Replay) -> Taps:
    """What the contract computes of every captured operation."""
    absent = replay.oracle.absent
    return {key: replay.operation(key, replay.oracle) for key in replay.keys if key[0] not in absent}


def _compare(lane: Lane, case: str, key: TapKey, ours: Float32, replay: Replay, walk: _Walk) -> None:
    """Enter one captured operation."""
    limit = envelope.LOCKED_OPERATION
    found = replay.judged(key, ours, replay.outputs[key])
    walk.count += 1
    held = limit.holds(found.ratio)
    tap, layer = key
    lane.operations.append(
        {
            "lane": lane.plan.name,
            "case": case,
            "tap": tap,
            "layer": layer,
            "compared": found.compared,
            "max_abs_err": found.max_abs_err,
            "max_abs_ref": found.max_abs_ref,
            "ratio": found.ratio,
            "limit": limit.limit,
            "outcome": "pass" if held else "fail",
            "worst_token": found.worst_token,
            "worst_index": found.worst_index,
        }
    )
    lane.profiles.append(_profile(lane.plan.name, case, key, found, ours, replay.outputs[key]))
    if found.ratio > walk.worst or not walk.where:
        walk.worst, walk.where = found.ratio, place(tap, layer)
    if not held and lane.located is None:
        lane.located = Located(
            tap=tap,
            layer=layer,
            max_abs_err=_finite(found.max_abs_err),
            max_abs_ref=found.max_abs_ref,
            limit=limit.limit,
            positions=found.positions(limit.limit),
            worst_token=found.worst_token,
            worst_index=found.worst_index,
        )


def _profile(lane: str, case: str, key: TapKey, found: Difference, ours: Float32, theirs: Float32) -> Row:
    """Errors by position to three digits, and histograms of both sides."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(found.by_token == 0.0, 0.0, found.by_token / found.max_abs_ref)
    largest = difference(theirs, theirs).max_abs_ref  # of the values themselves, whatever errors are measured against
    return {
        "lane": lane,
        "case": case,
        "tap": key[0],
        "layer": key[1],
        "errors": [float(f"{error:.3g}") if np.isfinite(error) else None for error in errors],
        "ours": histogram(ours, largest),
        "theirs": histogram(theirs, largest),
    }


def _integers(lane: Lane, layer: int, ours: Taps, theirs: Taps, walk: _Walk) -> None:
    """Ternary × int8 sums of the engine in one layer against the oracle's exact ones, on the reference's inputs."""
    for tap, (_, sources) in PROJECTIONS.items():
        x = next((t[s, layer] for s in sources for t in (theirs, ours) if (s, layer) in t), None)
        if x is None or not np.isfinite(x).all():
            continue  # NaN has no integer; `_compare` has failed it
        mine = lane.engine.integer_sums(tap, layer, x)
        if mine is None:
            continue
        exact = lane.integer_oracle().integer_sums(tap, layer, x)
        walk.sums += 1
        wrong = np.abs(mine.astype(np.int64) - exact)
        if not wrong.any():
            continue
        walk.unequal += 1
        if walk.integer is None:
            token, index = np.unravel_index(int(wrong.argmax()), wrong.shape)
            walk.integer = Located(
                tap=tap,
                layer=layer,
                max_abs_err=float(wrong.max()),
                max_abs_ref=float(np.abs(exact).max()),
                limit=0.0,
                positions=tuple(int(t) for t in np.flatnonzero(wrong.any(axis=1))),
                worst_token=int(token),
                worst_index=int(index),
                integer=True,
            )


def _vote(
    lane: Lane,
    locked: Request,
    ours: Taps,
    theirs: Taps,
    contract: Taps,
    further: Mapping[str, Runner | None] = MappingProxyType({}),
    judged: Judge = lambda _, a, b: difference(a, b),
) -> Vote:
    """Engine, oracle, reference and further witnesses on the same inputs: who agrees, over every captured operation."""
    third = lane.reference.info.family == "oracle"
    limit = envelope.LOCKED_OPERATION

    def agree(a: Taps, b: Taps) -> bool:
        keys = [k for k in theirs if k in a and k in b]
        return bool(keys) and all(limit.holds(judged(k, *_but_equally_infinite(a[k], b[k])).ratio) for k in keys)

    if third:
        word = "agrees" if agree(ours, theirs) else "differs"
        return Vote(rung="operations", witnesses={"bitnet": "agrees", lane.plan.reference: word})  # type: ignore[dict-item]  # two literals
    info = lane.reference.info
    return vote(
        "operations",
        {
            "bitnet": Witness(family="bitnet", said=ours),
            lane.oracle_key: Witness(family="oracle", said=contract),
            lane.plan.reference: Witness(family=info.family, library_sha256=info.library_sha256, said=theirs),
            **{name: _heard(lane, runner, locked) for name, runner in further.items()},
        },
        agree,
    )


def _but_equally_infinite(a: Float32, b: Float32) -> tuple[Float32, Float32]:
    """Two values of an operation that was fed NaN or infinity: what both make of it alike is zero in both."""
    if a.shape != b.shape:
        return a, b
    alike = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    return np.where(alike, np.float32(0.0), a), np.where(alike, np.float32(0.0), b)


def _heard(lane: Lane, runner: Runner | None, locked: Request) -> Witness[Taps]:
    """A further witness on the locked inputs, silent about what it computes in other numerics than the lane."""
    if runner is None:
        return Witness(family="unknown")
    try:
        taps, info = runner.run(locked).taps, runner.info
    except (ReferenceUnavailableError, ReferenceFailedError):
        return Witness(family="unknown")
    silent = _incomparable(lane, runner)
    said = {key: value for key, value in taps.items() if key[0] not in silent}
    return Witness(family=info.family, library_sha256=info.library_sha256, said=said)


def _incomparable(lane: Lane, witness: Runner) -> frozenset[str]:
    """Taps that a witness computes in other numerics than the lane: of these it says nothing."""
    wanted, has = lane.numerics.to_dict(), witness.info.numerics
    touched = {
        "activation": frozenset(PROJECTIONS),
        "kv": frozenset({"kqv_out"}),
        "query": frozenset({"kqv_out"}),
        "probs": frozenset({"kqv_out"}),
        "head": frozenset({"result_output"}),
        "rope": frozenset({"q_rope", "k_rope"}),
    }
    return frozenset().union(*(taps for name, taps in touched.items() if wanted[name] != has.get(name)))


def _verdict(lane: Lane, checked: int, sums: int, unequal: int, worst: float, worst_at: str) -> Rung:
    limit = envelope.LOCKED_OPERATION
    if unequal:
        return Rung(
            name="operations",
            outcome="fail",
            why=f"{unequal} of {sums} ternary × int8 products differ from the exact integers",
            metric=envelope.INTEGER_SUMS.metric,
            measured=float(unequal),
            limit=envelope.INTEGER_SUMS.limit,
            compared=checked + sums,
        )
    exact = f"; {sums} ternary products are equal integers" if sums else ""
    where = f"{worst_at} is the largest" if limit.holds(worst) else _first(lane)
    return Rung(
        name="operations",
        outcome="pass" if limit.holds(worst) else "fail",
        why=f"{checked} operations on locked inputs, {where}{exact}",
        metric=limit.metric,
        measured=_finite(worst) if np.isfinite(worst) else None,
        limit=limit.limit,
        compared=checked + sums,
    )


def _first(lane: Lane) -> str:
    assert lane.located is not None
    said = "" if lane.located.max_abs_err < _LARGEST else ", which is not finite"
    return f"the first wrong one is {place(lane.located.tap, lane.located.layer)}{said}"


def _finite(value: float) -> float:
    """JSON has no infinity; the largest float says "not a number" plainly enough."""
    return value if np.isfinite(value) else _LARGEST


def place(tap: str, layer: int) -> str:
    """A tap as people say it."""
    return tap if layer < 0 else f"{tap} of layer {layer}"
