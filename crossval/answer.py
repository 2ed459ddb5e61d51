"""What a person asks of a lane that is wrong: where, what it looks like, what it computes instead, who agrees.

The values that are looked at are the odd side's: the engine's where it is blamed or faces the contract itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossval.cause import engine_is_odd
from crossval.finding import Finding, finding
from crossval.lane import Lane
from crossval.minimise import Minimal, minimise
from crossval.replay import Replay
from crossval.repro import write_repro
from receipts import record as r
from reference.oracle import Oracle
from reference.runner import Runner, TapKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Repro:
    """A smallest case, written down.

    Attributes:
        folder: `case.npz`, `case.json` and `repro.py`.
        script: The last of them.
        ids: The tokens that are left, of `n_before`.
        n_batch: How they are evaluated; None in one batch.
        key: Operation and layer that show it.
        tried: Candidates that were evaluated.
    """

    folder: Path
    script: Path
    ids: tuple[int, ...]
    n_before: int
    n_batch: int | None
    key: TapKey
    tried: int


def where(key: TapKey) -> str:
    """`blk.0 ffn_act`, as tensors are named."""
    return key[0] if key[1] < 0 else f"blk.{key[1]} {key[0]}"


def stopped_at(record: r.Lane) -> r.Rung | None:
    """The first rung that did not hold; what the reference cannot offer, and need not, is stepped over."""
    return next(
        (
            rung
            for rung in record.rungs
            if rung.outcome != "pass" and (rung.outcome != "unsupported" or rung.name in record.required_rungs)
        ),
        None,
    )


def located(lane: Lane, record: r.Lane) -> Finding | None:
    """The first wrong operation of a lane in detail; None where none is wrong, or its sums are integers."""
    if record.located is None or record.located.integer or lane.locked is None:
        return None
    key = record.located.tap, record.located.layer
    replay = _replay(lane, record)
    return finding(key, replay.operation(key, replay.oracle), replay.outputs[key], replay)


def shrunk(lane: Lane, record: r.Lane, folder: Path, progress: Callable[[int], None] = lambda _: None) -> Repro | None:
    """The smallest case of a lane's first wrong operation, written into a folder; None where there is none."""
    if record.located is None or record.located.integer or lane.locked is None:
        return None
    key = record.located.tap, record.located.layer
    odd: Runner = lane.engine if engine_is_odd(lane, record.blame) else lane.reference
    request = lane.locked
    small: Minimal = minimise(odd, lane.oracle(), request.ids, key, n_batch=request.n_batch, progress=progress)
    story = record.cause.explanation if record.cause is not None else ""
    title = f"{record.name}: {where(small.finding.key)} is wrong."
    script = write_repro(folder, lane.oracle(), small, title=title, story=story)
    return Repro(
        folder=folder,
        script=script,
        ids=small.ids,
        n_before=len(request.ids),
        n_batch=small.n_batch,
        key=small.finding.key,
        tried=small.tried,
    )


def _replay(lane: Lane, record: r.Lane) -> Replay:
    request = lane.locked
    assert request is not None
    assert request.lock is not None
    outputs = lane.engine.run(request).taps if engine_is_odd(lane, record.blame) else request.lock
    return Replay(lane.oracle(), request.ids, request.lock, outputs, n_batch=request.n_batch)


def lane_fields(record: r.Lane) -> dict[str, Any]:
    """A lane as JSON has it: how far it climbed, what stopped it, and what is known of that."""
    stop, cause = stopped_at(record), record.cause
    agree, differ = heard(record)
    return {
        "name": record.name,
        "model": record.model,
        "reference": record.reference,
        "required": record.required,
        "outcome": record.outcome,
        "as_declared": record.deviates_as_declared,
        "climbed": record.climbed,
        "stopped_at": None if stop is None else stop.name,
        "why": "" if stop is None else stop.why,
        "blame": record.blame,
        "cause": None if cause is None else cause_fields(cause),
        "agree": agree,
        "differ": differ,
    }


def finding_dict(found: Finding) -> dict[str, Any]:
    """As JSON has it."""
    plain = {k: v for k, v in asdict(found).items() if k not in ("key", "worst", "expected", "found")}
    lists = {name: list(plain[name]) for name in ("positions", "rows", "heads")}
    worst = {
        "token": found.worst[0],
        "column": found.worst[1],
        "expected": _number(found.expected),
        "found": _number(found.found),
    }
    return {
        "tap": found.key[0],
        "layer": found.key[1],
        **plain,
        **lists,
        "ratio": _number(found.ratio),
        "worst": worst,
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


#: What a file declares, by the field of a hypothesis.
_DECLARED: dict[str, Callable[[Oracle], str]] = {
    "activation": lambda o: o.hyper.activation,
    "rope_style": lambda o: f"{o.hyper.rope_style} rotation",
    "rope_theta": lambda o: f"a rotary base of {o.hyper.rope_theta:g}",
    "rms_eps": lambda o: f"an epsilon of {float(o.hyper.rms_eps):.4g}",
    "head": lambda o: f"{o.hyper.head} as the head",
}
_NAMES = {"relu2": "squared ReLU", "silu": "SiLU", "half_split rotation": "rotation of halves"}


def declared(lane: Lane, record: r.Lane) -> str:
    """What the file says of the thing that the cause is about; "" where it says nothing."""
    if record.cause is None or not record.cause.name:
        return ""
    known = _DECLARED.get(record.cause.name.split("=")[0])
    said = "" if known is None else known(lane.oracle())
    return _NAMES.get(said, said)


def heard(record: r.Lane) -> tuple[list[str], list[str]]:
    """Witnesses that agree with each other, and those that differ, in the last vote."""
    if not record.votes:
        return [], []
    words = record.votes[-1].witnesses
    return [n for n, w in words.items() if w == "agrees"], [n for n, w in words.items() if w == "differs"]


def sentence(record: r.Lane, *, n_token: int = 0, file_says: str = "", repro: str = "") -> str:
    """The whole answer in one sentence.

    Args:
        record: The lane.
        n_token: Tokens of the request that shows the fault, to say "all positions".
        file_says: As `declared` has it.
        repro: Where the smallest case lies.
    """
    stop = stopped_at(record)
    if stop is None:
        return f"lane {record.name}: every rung holds."
    clauses = [f"lane {record.name}, rung {stop.name}"]
    found, cause = record.located, record.cause
    if found is None and cause is None:
        return "; ".join((f"{clauses[0]}: {stop.outcome}", stop.why.rstrip("."), *_vote(record))) + "."
    if found is not None:
        clauses[0] += f", {where((found.tap, found.layer))}, {_positions(found.positions, n_token)}"
    if cause is not None and cause.name:
        said = cause.explanation.rstrip(".") + (f" where the file declares {file_says}" if file_says else "")
        after = (
            f", next best {cause.runner_up} {cause.runner_up_explained:.1%}"
            if cause.runner_up
            else ", and nothing else explains any"
        )
        clauses += [said, f"replaying with {cause.name} explains {cause.explained:.1%} of the difference{after}"]
    elif found is not None and found.integer:
        clauses.append("its integer sums are not the exact ones")
    elif cause is not None:
        clauses.append(cause.explanation.rstrip("."))
    if cause is not None and cause.caveat:
        clauses.append(cause.caveat)
    clauses += _vote(record)
    if repro:
        clauses.append(f"repro in {repro}")
    return "; ".join(clauses) + "."


def _positions(positions: tuple[int, ...], n_token: int) -> str:
    if n_token and len(positions) == n_token:
        return "all positions"
    shown = ", ".join(map(str, positions[:6])) + (" …" if len(positions) > 6 else "")
    return f"position{'s' * (len(positions) != 1)} {shown}"


def _vote(record: r.Lane) -> list[str]:
    agree, differ = heard(record)
    total = len(agree) + len(differ)
    if record.blame == "reference":
        return [f"{len(agree)} of {total} engines agree with you"]
    if record.blame == "engine":
        return [f"the odd one is this engine: the other {len(agree)} of {total} agree with each other"]
    return ["no majority says who is wrong"] if differ else []


def cause_fields(cause: r.Cause) -> dict[str, Any]:
    """What the schemas of `validate explain` and `validate infer` hold of a cause."""
    return {
        "name": cause.name,
        "explained": cause.explained,
        "runner_up": cause.runner_up,
        "runner_up_explained": cause.runner_up_explained,
        "explanation": cause.explanation,
        "evidence": cause.evidence,
        "touches": list(cause.touches),
    }
