"""Operations on locked inputs: each one alone, fed what the reference itself fed it, and the first wrong one located.

The engine runs its own forward pass, but every value is replaced by the reference's after it was recorded, so that
each operation sees the reference's captured inputs. The oracle does the same, and the three vote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from crossval import envelope
from crossval.engine import PROJECTIONS
from crossval.lane import Lane, Row
from crossval.metrics import Difference, Float32, Float64, difference, histogram
from crossval.replay import Replay
from crossval.vote import Witness, vote
from receipts.record import Located, Rung, Vote
from reference.runner import (
    Observation,
    ReferenceFailedError,
    ReferenceUnavailableError,
    Request,
    Runner,
    TapKey,
)

#: Prompt tokens whose intermediates are captured, and those captured again one token at a time.
MAX_TOKENS = 48
SINGLE_TOKENS = 8
#: Prompts checked in one batch.
MAX_CASES = 2

Taps = Mapping[TapKey, Float32]
#: How two values of an operation differ, measured as its inputs allow.
Judge = Callable[[TapKey, Float32, Float32], Difference]


def check_operations(lane: Lane) -> Rung:
    """Every captured operation of up to two prompts, in a batch and one token at a time."""
    if not lane.cases:
        return Rung(name="operations", outcome="inconclusive", why="there is no prompt to evaluate")
    checked = 0
    worst, worst_at = 0.0, ""
    unequal = 0
    sums = 0
    covered: set[TapKey] = set()
    for name, request in _requests(lane):
        try:
            theirs = lane.ask(request)
        except ReferenceUnavailableError:
            continue  # a recording has the intermediates of one prompt only
        covered |= set(theirs.taps)
        _check_capture(theirs)
        lane.progress(f"operations of {name}")
        locked = Request(ids=request.ids, n_batch=request.n_batch, taps=True, lock=theirs.taps)
        ours = lane.engine.run(locked).taps
        replay = Replay(lane.oracle(), request.ids, theirs.taps, n_batch=request.n_batch)
        count, ratio, where = _compare(lane, name, ours, replay)
        checked += count
        if ratio > worst or not worst_at:
            worst, worst_at = ratio, where
        equal, tried, first = _integers(lane, ours, theirs.taps)
        unequal, sums = unequal + tried - equal, sums + tried
        if first is not None and lane.located is None:
            lane.located = first
        if not lane.votes:
            _self_check(lane, ours, theirs.taps)
        if not lane.votes or lane.located is not None:
            further = {} if lane.located is None else lane.witnesses()
            lane.votes = [_vote(lane, locked, ours, theirs.taps, further, replay.judged)]
        if lane.located is not None:
            lane.locked = locked
            break
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
    cases = lane.cases if lane.plan.subject.recording else lane.cases[:MAX_CASES]
    batches = [
        (c.name, Request(ids=c.ids if lane.plan.subject.recording else c.ids[:MAX_TOKENS], taps=True)) for c in cases
    ]
    ids = lane.cases[0].ids[:SINGLE_TOKENS]
    return [*batches, (f"{lane.cases[0].name}, one token at a time", Request(ids=ids, n_batch=1, taps=True))]


def _compare(lane: Lane, case: str, ours: Taps, replay: Replay) -> tuple[int, float, str]:
    """Enter every captured operation; returns how many there were, and the largest ratio with its place."""
    limit = envelope.LOCKED_OPERATION
    count, worst, where = 0, 0.0, ""
    for key in replay.keys:
        if key not in ours:
            continue
        found = replay.judged(key, ours[key], replay.outputs[key])
        count += 1
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
        lane.profiles.append(_profile(lane.plan.name, case, key, found, ours[key], replay.outputs[key]))
        if found.ratio > worst or not where:
            worst, where = found.ratio, place(tap, layer)
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
    return count, worst, where


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


def _integers(lane: Lane, ours: Taps, theirs: Taps) -> tuple[int, int, Located | None]:
    """Ternary × int8 sums of the engine against the oracle's int64 ones, on the reference's inputs."""
    equal = tried = 0
    first: Located | None = None
    for layer in range(lane.engine.model.config.n_layer):
        for tap, (_, sources) in PROJECTIONS.items():
            x = next((t[s, layer] for s in sources for t in (theirs, ours) if (s, layer) in t), None)
            if x is None or not np.isfinite(x).all():
                continue  # NaN has no integer; `_compare` has failed it
            mine = lane.engine.integer_sums(tap, layer, x)
            if mine is None:
                continue
            exact = lane.integer_oracle().integer_sums(tap, layer, x)
            tried += 1
            wrong = np.abs(mine.astype(np.int64) - exact)
            if not wrong.any():
                equal += 1
            elif first is None:
                token, index = np.unravel_index(int(wrong.argmax()), wrong.shape)
                first = Located(
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
    return equal, tried, first


def _vote(
    lane: Lane,
    locked: Request,
    ours: Taps,
    theirs: Taps,
    further: Mapping[str, Runner | None] = MappingProxyType({}),
    judged: Judge = lambda _, a, b: difference(a, b),
) -> Vote:
    """Engine, oracle, reference and further witnesses on the same inputs: who agrees, over every captured operation."""
    third = lane.reference.info.family == "oracle"
    oracle = theirs if third else lane.oracle().run(locked).taps
    limit = envelope.LOCKED_OPERATION

    def agree(a: Taps, b: Taps) -> bool:
        keys = [k for k in theirs if k in a and k in b]
        return bool(keys) and all(limit.holds(judged(k, a[k], b[k]).ratio) for k in keys)

    if third:
        word = "agrees" if agree(ours, theirs) else "differs"
        return Vote(rung="operations", witnesses={"bitnet": "agrees", lane.plan.reference: word})  # type: ignore[dict-item]  # two literals
    info = lane.reference.info
    return vote(
        "operations",
        {
            "bitnet": Witness(family="bitnet", said=ours),
            lane.oracle_key: Witness(family="oracle", said=oracle),
            lane.plan.reference: Witness(family=info.family, library_sha256=info.library_sha256, said=theirs),
            **{name: _heard(lane, runner, locked) for name, runner in further.items()},
        },
        agree,
    )


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


def _self_check(lane: Lane, ours: Taps, theirs: Taps) -> None:
    """Which activation, rotary style and head the reference computes, from its own intermediates."""
    config = lane.engine.model.config
    if ("ffn_gate", 0) in theirs and ("ffn_up", 0) in theirs:
        gate, up = theirs["ffn_gate", 0].astype(np.float64), theirs["ffn_up", 0]
        with np.errstate(over="ignore"):
            forms = {"relu2": np.maximum(gate, 0) ** 2, "silu": gate / (1 + np.exp(-gate)), "relu": np.maximum(gate, 0)}
        after = next((tap for tap in ("ffn_act", "ffn_sub_norm", "ffn_down") if (tap, 0) in theirs), None)
        if after is not None:
            values = {name: _feed_forward(lane, form * up, after) for name, form in forms.items()}
            lane.self_check["activation"] = (config.activation, _nearest(values, theirs[after, 0]))
    if ("q_rope", 0) in theirs and ("q", 0) in ours:
        q = theirs.get(("q", 0), ours["q", 0])
        styles = {style: _rotated(lane, q, style) for style in ("half_split", "interleaved")}
        lane.self_check["rotary style"] = (config.rope_style, _nearest(styles, theirs["q_rope", 0]))
    if ("result_norm", -1) in theirs and ("result_output", -1) in theirs:
        heads = {"token_embd.weight": True, "output.weight": False}
        x = theirs["result_norm", -1][-1:].astype(np.float64)
        values = {name: x @ _matrix(lane, name).T for name in heads if name in lane.engine.model.gguf.tensors}
        declared = "token_embd.weight" if config.tied_head else "output.weight"
        lane.self_check["head"] = (declared, _nearest(values, theirs["result_output", -1][-1:]))


def _feed_forward(lane: Lane, act: Float64, tap: str) -> Float64:
    """act(gate) · up of layer 0 carried on to the tap that was captured after it, in this lane's numerics."""
    if tap == "ffn_act":
        return act
    layer = lane.engine.model.weights.layers[0]
    if layer.ffn_sub_norm is not None:
        act = (
            act / np.sqrt((act**2).mean(axis=1, keepdims=True) + lane.engine.model.config.rms_eps) * layer.ffn_sub_norm
        )
    if tap == "ffn_sub_norm":
        return act
    rounded = lane.engine.model.network.backend.activations(act.astype(np.float32)).rounded(lane.numerics.activation)
    down: Float64 = rounded.astype(np.float64) @ _matrix(lane, layer.down.name).T
    return down


def _matrix(lane: Lane, name: str) -> Float64:
    matrix: Float64 = lane.engine.weights(name).astype(np.float64)
    scale = name.removesuffix(".weight") + ".scale"
    return matrix * lane.engine.weights(scale).item() if scale in lane.engine.model.gguf.tensors else matrix


def _rotated(lane: Lane, q: Float32, style: str) -> Float64:
    from bitnet.rope import rotary_tables

    config = lane.engine.model.config
    cos, sin = rotary_tables(config, lane.numerics, 0, len(q), lane.engine.model.weights.rope_factors)
    heads = q.astype(np.float64).reshape(len(q), -1, config.head_dim)
    half = config.head_dim // 2
    a, b = (slice(0, half), slice(half, None)) if style == "half_split" else (slice(0, None, 2), slice(1, None, 2))
    out = np.empty_like(heads)
    out[..., a] = heads[..., a] * cos[:, None] - heads[..., b] * sin[:, None]
    out[..., b] = heads[..., a] * sin[:, None] + heads[..., b] * cos[:, None]
    return out.reshape(q.shape)


def _nearest(candidates: Mapping[str, Float64], found: Float32 | Float64) -> str:
    """The candidate that lands on a value, or that none does (1 % of its size is far from any of them)."""
    size = float(np.linalg.norm(found)) or 1.0
    errors = {name: float(np.linalg.norm(value - found)) / size for name, value in candidates.items()}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < 0.01 else f"none of {', '.join(candidates)}"


def _verdict(lane: Lane, checked: int, sums: int, unequal: int, worst: float, worst_at: str) -> Rung:
    limit = envelope.LOCKED_OPERATION
    if not checked:
        return Rung(
            name="operations", outcome="unsupported", why="the reference offers no intermediates of these prompts"
        )
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
    return f"the first wrong one is {place(lane.located.tap, lane.located.layer)}"


def _finite(value: float) -> float:
    """JSON has no infinity; the largest float says "not a number" plainly enough."""
    return value if np.isfinite(value) else float(np.finfo(np.float64).max)


def place(tap: str, layer: int) -> str:
    """A tap as people say it."""
    return tap if layer < 0 else f"{tap} of layer {layer}"
