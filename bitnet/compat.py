"""Which engines can run a model file, and whether they compute what it declares.

What is known of the others is written down here as rules, one sentence each; it was found out by running them, which
`python -m crossval run` does again. An engine that runs a file but computes something else is the worst answer, so it
is one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from bitnet.codecs import CODECS
from bitnet.config import ModelConfig
from bitnet.file_info import EmbeddedTokenizer, embedded_tokenizer, is_projection
from bitnet.gguf import GGUF, GGMLType
from bitnet.hf import Checkpoint

#: From best to worst. `depends`: on the build of the engine; `wrong`: it runs and computes something else.
Answer = Literal["yes", "depends", "wrong", "no"]
_ORDER: tuple[Answer, ...] = get_args(Answer)

_RETIRED = {GGMLType.I2_S, GGMLType.I8_S, GGMLType.TL1}
_TABLES = {GGMLType.TL1, GGMLType.TL2}
_BITNET_CPP = {GGMLType.I2_S, *_TABLES}
_FLOATS = {GGMLType.F32, GGMLType.F16, GGMLType.BF16}
_TQ = {GGMLType.TQ1_0, GGMLType.TQ2_0}
#: What bitnet.cpp computes under each name, with the squared ReLU of its good tree.
_BITNET_CPP_ACTIVATION = {"bitnet-b1.58": "relu2", "bitnet-25": "relu2", "bitnet": "silu", "llama": "silu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One fact about a file and an engine.

    Attributes:
        answer: What it alone allows at best.
        what: One sentence.
        remedy: What the user can do, or None.
    """

    answer: Answer
    what: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compatibility:
    """One engine's answer.

    Attributes:
        engine: Its name.
        runs: The worst that any reason allows.
        reasons: Why, the decisive ones first; for `yes`, how it runs.
    """

    engine: str
    runs: Answer
    reasons: tuple[Reason, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"engine": self.engine, "runs": self.runs, "reasons": [asdict(r) for r in self.reasons]}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """What the rules look at."""

    gguf: GGUF
    config: ModelConfig
    tokenizer: EmbeddedTokenizer

    @property
    def checkpoint(self) -> bool:
        return isinstance(self.gguf, Checkpoint)

    @property
    def weight_types(self) -> set[GGMLType]:
        return {i.type for n, i in self.gguf.tensors.items() if is_projection(n)}

    @property
    def narrow(self) -> bool:
        """Whether a projection is no multiple of 256 wide, the block of the TQ types."""
        return any(i.shape[-1] % 256 for n, i in self.gguf.tensors.items() if is_projection(n))

    def convert(self, to: str, more: str = "") -> str:
        return f"bitnet model convert {self.gguf.path} OUT --type {to}{more}"


def compatibility(gguf: GGUF, config: ModelConfig) -> tuple[Compatibility, ...]:
    """What each engine makes of a file: this one, llama.cpp, bitnet.cpp, transformers."""
    file = _File(gguf=gguf, config=config, tokenizer=embedded_tokenizer(gguf))
    return tuple(_answer(engine, rules(file)) for engine, rules in _ENGINES.items())


def _answer(engine: str, reasons: Iterator[Reason]) -> Compatibility:
    ordered = sorted(reasons, key=lambda r: -_ORDER.index(r.answer))
    return Compatibility(engine=engine, runs=ordered[0].answer if ordered else "yes", reasons=tuple(ordered))


def _names(types: set[GGMLType]) -> str:
    return ", ".join(sorted(t.name for t in types))


def _bitnet(f: _File) -> Iterator[Reason]:
    unknown = {i.type for i in f.gguf.tensors.values()} - set(CODECS)
    if unknown:
        yield Reason(answer="no", what=f"{_names(unknown)} is no type for weights", remedy=f.convert("i2_s"))
    ternary = {t for t in f.weight_types - unknown if CODECS[t].ternary}
    if ternary:
        yield Reason(answer="yes", what=f"{_names(ternary)} weights and int8 activations, summed as exact integers")
    floats = f.weight_types - unknown - ternary
    if floats:
        what = f"{_names(floats)} weights are multiplied as floats; int8 activations too where their values are ternary"
        yield Reason(answer="yes", what=what)
    if f.tokenizer.model is None:
        what = "the file has no tokenizer; one beside it, in a cache or named with --tokenizer is taken"
        yield Reason(answer="depends", what=what)


def _llama_cpp(f: _File) -> Iterator[Reason]:
    c, types = f.config, f.weight_types
    known = c.arch in ("bitnet", "llama")
    convert = f.convert("f16" if f.narrow else "tq2_0", "" if known else " --arch bitnet")
    if f.checkpoint:
        yield Reason(answer="no", what="it reads GGUF files only", remedy=convert)
    if not known:
        yield Reason(answer="no", what=f"it does not know the architecture {c.arch}", remedy=convert)
    retired = types & (_RETIRED | {GGMLType.TL2})
    if retired and not f.checkpoint:
        numbers = ", ".join(f"{t.name} ({t.value})" for t in sorted(retired))
        what = f"types 36 to 38 are retired in ggml and 39 is MXFP4 there: it cannot read {numbers}"
        wide = "; TQ types need widths that are multiples of 256, which these are not" if f.narrow else ""
        yield Reason(answer="no", what=what + wide, remedy=convert)
    if c.activation == "relu2":
        what = "it computes SiLU in every feed-forward, where the file declares a squared ReLU"
        yield Reason(answer="wrong", what=what, remedy="run it with bitnet; no conversion changes this")
    if c.arch == "bitnet" and "output.weight" in f.gguf.tensors:
        yield Reason(answer="no", what="it refuses an output.weight: the head of bitnet is the embedding there")
    yield from _tokenizer_of_llama_cpp(f)
    if f.checkpoint:
        return
    if types & _TQ:
        yield Reason(
            answer="yes", what="activations are rounded to int8 in blocks of 256, which is not BitNet's own rounding"
        )
    if types & _FLOATS:
        yield Reason(answer="yes", what="float weights: activations are not rounded to int8, as the model was trained")


def _tokenizer_of_llama_cpp(f: _File) -> Iterator[Reason]:
    t = f.tokenizer
    if t.model is None:
        yield Reason(answer="no", what="the file has no tokenizer, and it looks for none elsewhere")
    elif t.pre is None and t.model == "gpt2":
        what = "tokenizer.ggml.pre is missing, so it splits text by its default rules, not the model's"
        yield Reason(answer="wrong", what=what, remedy="convert the original checkpoint with a current converter")
    elif t.pre == "falcon_e":
        yield Reason(answer="no", what="it does not know the splitting rules falcon_e", remedy="set them to falcon3")


def _bitnet_cpp(f: _File) -> Iterator[Reason]:
    c, types = f.config, f.weight_types
    others = types - _BITNET_CPP - _FLOATS
    if f.checkpoint:
        yield Reason(answer="no", what="it reads GGUF files only", remedy=f.convert("i2_s"))
    elif others:
        what = f"its kernels are for I2_S, TL1 and TL2, not {_names(others)}"
        yield Reason(answer="no", what=what, remedy=f.convert("i2_s"))
    if GGMLType.I2_S in types and not f.checkpoint:
        yield Reason(answer="yes", what="I2_S as it is, if its build has the layout of the file (x86 and ARM differ)")
    if types & _TABLES:
        what = f"{_names(types & _TABLES)} needs a build whose kernel_config.ini has the tiles of this file"
        yield Reason(answer="depends", what=what, remedy=f"{f.convert('i2_s')}, which needs none")
    if types & _FLOATS:
        yield Reason(answer="yes", what="float weights: activations are not rounded to int8, as the model was trained")
    computed = _BITNET_CPP_ACTIVATION[c.arch]
    if computed != c.activation:
        what = f"it computes {computed} under the name {c.arch}, where the file declares {c.activation}"
        yield Reason(answer="wrong", what=what, remedy="run it with bitnet")
    elif c.activation == "relu2":
        what = "trees pinned since July 2026 compute SiLU; the tree at 40ed0f29 computes the squared ReLU"
        yield Reason(answer="depends", what=what, remedy="build that tree, and check it with `python -m crossval run`")
    if c.arch != "llama" and not c.tied_head:
        yield Reason(answer="wrong", what="it ignores output.weight and takes the embedding as the head")
    if f.tokenizer.model is None:
        yield Reason(answer="no", what="the file has no tokenizer, and it looks for none elsewhere")


def _transformers(f: _File) -> Iterator[Reason]:
    c, types = f.config, f.weight_types
    if f.checkpoint:
        yield Reason(answer="yes", what="its own form; needs the `hf` extra of this project, or torch and accelerate")
        return
    scaled = any(name.endswith(".scale") for name in f.gguf.tensors)
    if c.arch != "llama":
        what = f"it reads no GGUF of architecture {c.arch}"
        yield Reason(answer="no", what=what, remedy=f.convert("hf"))
    elif types & _BITNET_CPP:
        what = f"its reader of GGUF does not know {_names(types & _BITNET_CPP)}"
        yield Reason(answer="no", what=what, remedy=f.convert("hf"))
    elif scaled:
        what = "it drops the .scale tensors of this file"
        yield Reason(answer="wrong", what=what, remedy=f.convert("hf"))
    else:
        what = "it unpacks the weights to floats and does not round activations to int8, as the model was trained"
        yield Reason(answer="wrong", what=what, remedy=f.convert("hf"))


_ENGINES: dict[str, Callable[[_File], Iterator[Reason]]] = {
    "bitnet": _bitnet,
    "llama.cpp": _llama_cpp,
    "bitnet.cpp": _bitnet_cpp,
    "transformers": _transformers,
}
