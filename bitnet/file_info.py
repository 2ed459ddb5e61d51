"""What a model file is, from its header alone: quick for a file of any size, since no weight is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from os import fspath
from typing import Any

from bitnet.architecture import read_config
from bitnet.codecs import CODECS, codec_of
from bitnet.config import ModelConfig
from bitnet.errors import BitNetError, TokenizerError
from bitnet.gguf import GGUF, GGMLType

_PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCount:
    """Tensors of one type.

    Attributes:
        n_tensors: How many.
        n_weights: Their elements.
        n_bytes: Their size in the file.
    """

    n_tensors: int
    n_weights: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedTokenizer:
    """What a header says of its tokenizer.

    Attributes:
        model: Kind ("gpt2" is byte-level BPE, "llama" SentencePiece), or None where the file holds none.
        pre: Splitting rules, or None where the file does not say.
        n_tokens: Entries of its vocabulary.
        chat_template: Whether there is one.
    """

    model: str | None
    pre: str | None
    n_tokens: int
    chat_template: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A model file.

    Attributes:
        path: As given.
        n_bytes: Its size, all shards together.
        name: What it calls itself, or None.
        config: Hyper-parameters.
        types: Its tensors by type, the most weights first.
        n_weights: All of them.
        bytes_per_token: Read from memory for each token: every projection and the head.
        tokenizer: What it holds.
        fault: Why this engine cannot read its tensors, or None.
        notices: What its user should know about how it was read.
    """

    path: str
    n_bytes: int
    name: str | None
    config: ModelConfig
    types: dict[str, TypeCount]
    n_weights: int
    bytes_per_token: int
    tokenizer: EmbeddedTokenizer
    fault: str | None
    notices: tuple[str, ...]

    @property
    def main_type(self) -> str:
        """The type of most projections."""
        ternary = [t for t in self.types if CODECS[GGMLType[t]].ternary] if self.fault is None else []
        return ternary[0] if ternary else next(iter(self.types))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self) | {"notices": list(self.notices), "main_type": self.main_type}


def describe(gguf: GGUF) -> FileInfo:
    """What an open file is.

    Raises:
        ModelFileError: Unknown architecture, or hyper-parameters that are missing or contradict each other.
    """
    config, notices = read_config(gguf)
    types: dict[str, TypeCount] = {}
    for info in gguf.tensors.values():
        before = types.get(info.type.name, TypeCount(n_tensors=0, n_weights=0, n_bytes=0))
        types[info.type.name] = TypeCount(
            n_tensors=before.n_tensors + 1,
            n_weights=before.n_weights + math.prod(info.shape),
            n_bytes=before.n_bytes + info.n_bytes,
        )
    types = dict(sorted(types.items(), key=lambda item: -item[1].n_weights))
    head = "token_embd.weight" if config.tied_head else "output.weight"
    every_token = [i for n, i in gguf.tensors.items() if n == head or is_projection(n)]
    name = gguf.metadata.get("general.name")
    return FileInfo(
        path=fspath(gguf.path),
        n_bytes=gguf.n_bytes,
        name=name if isinstance(name, str) else None,
        config=config,
        types=types,
        n_weights=sum(t.n_weights for t in types.values()),
        bytes_per_token=sum(i.n_bytes for i in every_token),
        tokenizer=embedded_tokenizer(gguf),
        fault=_fault(gguf),
        notices=(*gguf.notices, *notices),
    )


def is_projection(name: str) -> bool:
    """Whether a tensor is one of the seven matrices of a layer, the ternary ones."""
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "blk" and parts[2] in _PROJECTIONS and parts[3] == "weight"


def embedded_tokenizer(gguf: GGUF) -> EmbeddedTokenizer:
    """What a header says of its tokenizer, unchecked."""
    keys = gguf.metadata
    try:
        model, pre, tokens = (keys.get(f"tokenizer.ggml.{k}") for k in ("model", "pre", "tokens"))
    except TokenizerError:  # of a checkpoint, whose tokenizer is a file beside it
        return EmbeddedTokenizer(model=None, pre=None, n_tokens=0, chat_template=False)
    return EmbeddedTokenizer(
        model=model if isinstance(model, str) else None,
        pre=pre if isinstance(pre, str) else None,
        n_tokens=len(tokens) if tokens is not None and hasattr(tokens, "__len__") else 0,
        chat_template="tokenizer.chat_template" in keys,
    )


def _fault(gguf: GGUF) -> str | None:
    for type_ in {info.type for info in gguf.tensors.values()}:
        try:
            codec_of(type_)
        except BitNetError as error:
            return error.what
    return None
