"""Which lanes there are: models, the references that can read them, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from bitnet import gguf as container
from bitnet.architecture import read_config
from bitnet.codecs import CODECS
from bitnet.config import ModelConfig
from bitnet.errors import UsageError
from bitnet.gguf import GGUF, GGMLType
from crossval.case import PROMPTS, Prompt, read_prompts
from crossval.copies import LLAMA_CPP_ARCH, lossless_copy
from receipts.record import RungName
from reference.oracle import Oracle
from reference.process import ProcessRunner
from reference.recorded import Recorded
from reference.runner import ReferenceUnavailableError, Runner

ALL_RUNGS: tuple[RungName, ...] = (
    "identity",
    "tokens",
    "weights",
    "operations",
    "logits",
    "decode",
    "greedy",
    "quality",
)
#: The oracle reads ids only.
ORACLE_RUNGS: tuple[RungName, ...] = tuple(r for r in ALL_RUNGS if r != "tokens")
#: A recording holds logits, ids and nodes, not decoded weights, and texts for one model only.
RECORDED_RUNGS: tuple[RungName, ...] = tuple(r for r in ALL_RUNGS if r not in ("tokens", "weights"))
#: A server tells ids and probabilities, and shows neither weights nor operations.
SERVER_RUNGS: tuple[RungName, ...] = tuple(r for r in ALL_RUNGS if r not in ("weights", "operations"))

#: Above this many weights a float32 copy (4 bytes each) is not made, and fewer tokens are run.
LARGE_MODEL = 300_000_000
#: Seconds one request to a reference may take before it counts as hung.
TIMEOUT = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """A fault of a reference, declared beforehand, that every run has to prove again.

    Attributes:
        name: Of the declaration.
        tap, layer: The operation that must be the first wrong one.
        cause: The hypothesis that must explain it.
        reason: For people.
    """

    name: str
    tap: str
    layer: int
    cause: str
    reason: str


LLAMA_CPP_SILU = Deviation(
    name="llama.cpp-silu",
    tap="ffn_act",
    layer=0,
    cause="activation=silu",
    reason="llama.cpp computes SiLU for arch bitnet whatever the file declares; this model declares relu²",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Another engine that is heard where the two sides of a lane disagree.

    Attributes:
        name: Key of the reference, unique in the run.
        open: Starts it; raises `ReferenceUnavailableError`.
    """

    name: str
    open: Callable[[], Runner]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model file to be judged.

    Attributes:
        name: Unique in the run.
        path: The file.
        prompts: Texts to continue.
        recording: Folder of recorded outputs, if there is one for it.
        quality_text: Text whose likelihood is compared.
        shipped: Whether this project made the file, and the copies that lie beside it.
    """

    name: str
    path: Path
    prompts: tuple[Prompt, ...] = PROMPTS
    recording: Path | None = None
    quality_text: str = ""
    shipped: bool = False

    @cached_property
    def gguf(self) -> GGUF:
        """The open file."""
        return container.read(self.path)

    @cached_property
    def config(self) -> ModelConfig:
        """Its hyper-parameters."""
        return read_config(self.gguf)[0]

    @cached_property
    def n_weights(self) -> int:
        """Number of weights in its matrices."""
        return sum(int(np.prod(t.shape)) for t in self.gguf.tensors.values())

    @property
    def large(self) -> bool:
        """Whether to spare time and memory."""
        return self.n_weights > LARGE_MODEL

    def projection_types(self) -> set[GGMLType]:
        """Types of the seven projections."""
        ends = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
        return {t.type for n, t in self.gguf.tensors.items() if n.endswith(tuple(f"{e}.weight" for e in ends))}


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """One lane to climb.

    Attributes:
        name: Unique in the run.
        subject: The model.
        engine_file: What the engine loads; the reference's own file where both read it the same way.
        reference_file: What the reference loads.
        reference: Unique key of the reference.
        open: Starts the reference; raises `ReferenceUnavailableError`.
        required: Whether the gate needs this lane.
        required_rungs: The rungs it needs.
        deviation: Declared fault of the reference.
        as_default: The engine computes in the model's own numerics and the reference follows (the oracle).
        impossible: Why it cannot run, known beforehand.
        witnesses: Who else votes where the sides disagree.
    """

    name: str
    subject: Subject
    engine_file: Path
    reference_file: Path
    reference: str
    open: Callable[[], Runner]
    required: bool = True
    required_rungs: tuple[RungName, ...] = ALL_RUNGS
    deviation: Deviation | None = None
    as_default: bool = False
    impossible: str = ""
    witnesses: tuple[Witness, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def oracle_key(self) -> str:
        """Key of the oracle as a witness in this lane."""
        return f"oracle · {self.name}"

    def references(self) -> tuple[str, ...]:
        """Keys of all who may be heard in this lane."""
        return (self.reference, self.oracle_key, *(witness.name for witness in self.witnesses))


def shipped_subjects(fixtures: Path) -> list[Subject]:
    """The models in `fixtures/`: three trained ones, and those with recorded outputs of bitnet.cpp."""
    quality = fixtures / "texts" / "heldout.txt"
    text = quality.read_text("utf-8") if quality.is_file() else ""
    subjects = [
        Subject(
            name=path.name.removesuffix(".i2_s.gguf"),
            path=path,
            prompts=read_prompts(fixtures / "prompts.json", path.name.removesuffix(".i2_s.gguf")),
            quality_text=text,
            shipped=True,
        )
        for path in sorted((fixtures / "models").glob("*.i2_s.gguf"))
    ]
    goldens = fixtures / "goldens"
    return subjects + [Subject(name=p.stem, path=p, recording=goldens) for p in sorted(goldens.glob("*.gguf"))]


def user_subject(path: Path, fixtures: Path) -> Subject:
    """A model of the user's own; recorded outputs are used if they were made from exactly this file."""
    quality = fixtures / "texts" / "heldout.txt"
    return Subject(
        name=path.name.removesuffix(".gguf"),
        path=path,
        recording=fixtures / "goldens" if (fixtures / "goldens").is_dir() else None,
        quality_text=quality.read_text("utf-8") if quality.is_file() else " ".join(p.text for p in PROMPTS),
        shipped=path.resolve().parent == (fixtures / "models").resolve(),
    )


def lanes(subjects: Iterable[Subject], copies: Path, *, shipped: bool) -> list[LanePlan]:
    """Every lane of every model.

    Args:
        subjects: The models.
        copies: Folder for transcoded copies.
        shipped: Whether these are the project's fixtures: then a model with a recording is judged by it alone.
    """
    planned: list[LanePlan] = []
    for subject in subjects:
        if subject.recording is None or not shipped:
            planned.append(_oracle_lane(subject))
            planned += _llama_cpp_lanes(subject, copies, both=not (shipped and subject.config.activation == "relu2"))
        if subject.recording is not None:
            planned.append(_recorded_lane(subject, required=shipped))
    return planned


def _oracle_lane(subject: Subject) -> LanePlan:
    return LanePlan(
        name=f"{subject.name} · oracle",
        subject=subject,
        engine_file=subject.path,
        reference_file=subject.path,
        reference=f"oracle · {subject.name}",
        open=lambda: Oracle(str(subject.path)),
        required_rungs=ORACLE_RUNGS,
        as_default=True,
    )


def _recorded_lane(subject: Subject, *, required: bool) -> LanePlan:
    folder = subject.recording
    assert folder is not None

    def replay() -> Runner:
        return Recorded(str(subject.path), str(folder))

    impossible = ""
    if not required:  # a user's file: whether it was recorded decides if the lane exists
        try:
            replay()
        except ReferenceUnavailableError as error:
            impossible = error.what
    return LanePlan(
        name=f"{subject.name} · bitnet.cpp (recorded)",
        subject=subject,
        engine_file=subject.path,
        reference_file=subject.path,
        reference=f"bitnet.cpp (recorded) · {subject.name}",
        open=replay,
        required=not impossible,
        required_rungs=RECORDED_RUNGS,
        impossible=impossible,
    )


def _llama_cpp_lanes(subject: Subject, copies: Path, *, both: bool) -> list[LanePlan]:
    types = subject.projection_types()
    if any(t not in CODECS or not CODECS[t].ternary for t in types):
        return [_llama_cpp_lane(subject, "llama.cpp", subject.path, same_graph=True)]
    wanted = [GGMLType.F32, GGMLType.TQ2_0] if both else [GGMLType.TQ2_0]
    return [_copied_lane(subject, copies, to) for to in wanted]


def _copied_lane(subject: Subject, copies: Path, to: GGMLType) -> LanePlan:
    """A lane on a lossless copy in a type that llama.cpp reads, under the name it knows the graph by."""
    arch = LLAMA_CPP_ARCH[subject.config.arch]
    renamed = None if arch == subject.config.arch else arch
    label = f"llama.cpp {to.name}" + (f" (as {renamed})" if renamed else "")
    if to == GGMLType.F32 and subject.large:
        size = 4 * subject.n_weights / 1e9
        return _llama_cpp_lane(
            subject, label, subject.path, impossible=f"a float32 copy of this model would take {size:.1f} GB"
        )
    try:
        copy = _copy(subject, copies, to, renamed)
    except UsageError as error:
        return _llama_cpp_lane(subject, label, subject.path, impossible=f"no lossless copy as {to.name}: {error.what}")
    return _llama_cpp_lane(subject, label, copy, same_graph=renamed is None)


def _llama_cpp_lane(
    subject: Subject, label: str, file: Path, *, same_graph: bool = False, impossible: str = ""
) -> LanePlan:
    silu = subject.config.activation == "relu2" and subject.config.sub_norms and not impossible
    return LanePlan(
        name=f"{subject.name} · {label}",
        subject=subject,
        engine_file=file if same_graph else subject.path,
        reference_file=file,
        reference=f"{label} · {subject.name}",
        open=lambda: ProcessRunner("reference.llama_cpp:LlamaCpp", {"model": str(file)}, timeout=TIMEOUT),
        required=not impossible,
        deviation=LLAMA_CPP_SILU if silu else None,
        impossible=impossible,
    )


def _copy(subject: Subject, copies: Path, to: GGMLType, arch: str | None) -> Path:
    """A lossless copy: the one shipped beside the model, or one made once in the folder for copies.

    What lies beside a model of the user's own may be called as a copy of it and be another model.
    """
    stem = subject.path.name.removesuffix(".gguf").removesuffix(".i2_s")
    shipped = subject.path.with_name(f"{stem}.{to.name.lower()}.gguf")
    if subject.shipped and arch is None and shipped.is_file():
        return shipped
    if subject.projection_types() == {to} and arch is None:
        return subject.path
    return lossless_copy(subject.gguf, copies, to, arch=arch)
