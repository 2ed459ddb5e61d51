"""Lanes against what has to be asked for, or happens to be installed: transformers, a bitnet.cpp tree, recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from bitnet.codecs import CODECS
from bitnet.errors import UsageError
from crossval.plan import ALL_RUNGS, ORACLE_RUNGS, SERVER_RUNGS, TIMEOUT, LanePlan, Subject, Witness
from reference.bitnet_cpp_way import Wish, choose
from reference.ggml import file_sha256
from reference.process import ProcessRunner
from reference.recording import Recording
from reference.runner import ReferenceUnavailableError, Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Which references are tried beside the oracle, llama.cpp and the shipped recordings.

    Attributes:
        hf: transformers, in both of its linear layers; it is a witness in the lanes of llama.cpp too.
        bitnet_cpp: Tree of bitnet.cpp.
        bitnet_cpp_wish: How it is spoken to.
        recordings: Files of `reference.recording`.
    """

    hf: bool = False
    bitnet_cpp: Path | None = None
    bitnet_cpp_wish: Wish = "auto"
    recordings: tuple[Path, ...] = ()


def with_live(planned: Sequence[LanePlan], live: Live) -> list[LanePlan]:
    """The lanes of a plan, and those that `live` adds to each model.

    Raises:
        UsageError: A recording was made from a model that the plan does not have.
        ReferenceUnavailableError: A recording cannot be read.
    """
    lanes: list[LanePlan] = []
    for _, of_one_model in groupby(planned, key=lambda lane: lane.subject.name):
        ours = list(of_one_model)
        subject = ours[0].subject
        shown = any(lane.as_default for lane in ours)  # not one that is there for its recorded outputs alone
        lanes += [_witnessed(lane) for lane in ours] if live.hf else ours
        lanes += _hf_lanes(subject) if live.hf and shown else []
        if live.bitnet_cpp is not None:
            lanes.append(_bitnet_cpp_lane(subject, live.bitnet_cpp, live.bitnet_cpp_wish))
    return lanes + [replayed(path, planned) for path in live.recordings]


def _hf_lanes(subject: Subject) -> list[LanePlan]:
    """In transformers, each of its linear layers; a large model in the one that keeps weights packed."""
    ternary = any(t in CODECS and CODECS[t].ternary for t in subject.projection_types())
    classes = ("bitlinear", "autobitlinear") if ternary and not subject.large else ("bitlinear",)
    labels = {"bitlinear": "transformers BitLinear", "autobitlinear": "transformers AutoBitLinear"}
    labels |= {} if ternary else {"bitlinear": "transformers"}
    return [
        LanePlan(
            name=f"{subject.name} · {labels[name]}",
            subject=subject,
            engine_file=subject.path,
            reference_file=subject.path,
            reference=f"{labels[name]} · {subject.name}",
            open=_transformers(subject.path, name),
            required_rungs=ORACLE_RUNGS,
        )
        for name in classes
    ]


def _transformers(file: Path, linear_class: str) -> Callable[[], Runner]:
    kwargs = {"model": str(file), "linear_class": linear_class}
    return lambda: ProcessRunner("reference.hf:Transformers", kwargs, timeout=TIMEOUT)


def _witnessed(lane: LanePlan) -> LanePlan:
    """A lane with transformers as a further witness, on the file that the engine reads."""
    if lane.impossible or not lane.reference.startswith("llama.cpp"):
        return lane
    witness = Witness(name=f"transformers · {lane.name}", open=_transformers(lane.engine_file, "autobitlinear"))
    return replace(lane, witnesses=(witness,))


def _bitnet_cpp_lane(subject: Subject, tree: Path, wish: Wish) -> LanePlan:
    """Through our interface; through a server, which shows neither weights nor operations, where that cannot be had."""
    kwargs = {"model": str(subject.path), "directory": str(tree), "wish": wish}
    try:
        by_server = choose(tree, wish).kind == "server"
    except ReferenceUnavailableError:
        by_server = False  # it is told when the lane is opened
    label = "bitnet.cpp (server)" if by_server else "bitnet.cpp"
    return LanePlan(
        name=f"{subject.name} · {label}",
        subject=subject,
        engine_file=subject.path,
        reference_file=subject.path,
        reference=f"{label} · {subject.name}",
        open=lambda: ProcessRunner("reference.bitnet_cpp_way:open_bitnet_cpp", kwargs, timeout=TIMEOUT),
        required_rungs=SERVER_RUNGS if by_server else ALL_RUNGS,
    )


def replayed(path: Path, planned: Iterable[LanePlan]) -> LanePlan:
    """The lane of a recording, on the file among those of the run that it was made from.

    Raises:
        UsageError: The run has no such file.
        ReferenceUnavailableError: The recording cannot be read.
    """
    with Recording(path) as opened:
        info, offered = opened.info, opened.rungs()
    of = {lane.reference_file: lane for lane in planned}
    lane = next((of[file] for file in of if file.is_file() and file_sha256(file) == info.model_sha256), None)
    if lane is None:
        raise UsageError(
            "was made from a model that is not among those compared",
            where=path,
            remedy=f"name that model with --model (its sha256 is {info.model_sha256})",
        )
    name = f"{lane.subject.name} · {info.name} (recording {path.name})"
    return LanePlan(
        name=name,
        subject=lane.subject,
        engine_file=lane.engine_file,
        reference_file=lane.reference_file,
        reference=f"{info.name} (recorded) · {name}",
        open=lambda: Recording(path),
        required_rungs=tuple(rung for rung in ALL_RUNGS if rung in offered),
        deviation=lane.deviation,
    )
