"""What each architecture name promises, and the hyper-parameters a file declares under it.

The contracts are those of the published models and of the engines that run them: which activation, which rotary
style, whether sub-norms exist, where the head comes from. What a file declares wins over its architecture's default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from bitnet.config import Activation, ModelConfig, RopeStyle
from bitnet.errors import GGUFError, ModelFileError
from bitnet.gguf import GGUF


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """Defaults of one architecture name."""

    activation: Activation
    rope_style: RopeStyle
    sub_norms: bool
    always_tied: bool


_BITNET_RELU2 = Contract(activation="relu2", rope_style="half_split", sub_norms=True, always_tied=True)

CONTRACTS: dict[str, Contract] = {
    "bitnet-b1.58": _BITNET_RELU2,
    "bitnet-25": _BITNET_RELU2,  # an older upload of the 2B model under another name
    "bitnet": Contract(activation="silu", rope_style="half_split", sub_norms=True, always_tied=True),
    "llama": Contract(activation="silu", rope_style="interleaved", sub_norms=False, always_tied=False),
}

#: Spellings of a declared activation, in GGUF files and Hugging Face configurations.
ACTIVATIONS: dict[str, Activation] = {
    "relu2": "relu2",
    "relu_squared": "relu2",
    "relu^2": "relu2",
    "squared_relu": "relu2",
    "relu_sqr": "relu2",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
}


def _number(gguf: GGUF, key: str, kind: type, default: float | None = None) -> Any:  # noqa: ANN401  # as `kind` says
    value = gguf.metadata.get(key, default)
    if value is None:
        raise GGUFError(
            "a required hyper-parameter is missing",
            path=gguf.path,
            field=key,
            remedy="the file is incomplete or was converted for another engine; convert it again",
        )
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise GGUFError(f"is {value!r}, not a number", path=gguf.path, field=key)
    if not math.isfinite(value) or value <= 0:
        raise GGUFError(f"is {value!r}, but must be positive", path=gguf.path, field=key)
    return kind(value)


def read_config(gguf: GGUF) -> tuple[ModelConfig, tuple[str, ...]]:
    """The hyper-parameters of a file, checked against each other, and what is worth telling its user.

    Raises:
        ModelFileError: Unknown architecture, or hyper-parameters that are missing or contradict each other.
    """
    arch = gguf.metadata.get("general.architecture")
    contract = CONTRACTS.get(arch) if isinstance(arch, str) else None
    if contract is None:
        raise ModelFileError(
            f"architecture {arch!r} is not one this engine knows",
            where=f"{gguf.path} (general.architecture)",
            remedy=f"known are {', '.join(sorted(CONTRACTS))}",
        )

    def integer(key: str, default: int | None = None) -> int:
        return cast("int", _number(gguf, f"{arch}.{key}", int, default))

    def real(key: str, default: float | None = None) -> float:
        return cast("float", _number(gguf, f"{arch}.{key}", float, default))

    n_embd, n_head = integer("embedding_length"), integer("attention.head_count")
    n_head_kv = integer("attention.head_count_kv", n_head)
    head_dim = integer("attention.key_length", integer("rope.dimension_count", max(1, n_embd // n_head)))
    activation, source, notices = _activation(gguf, str(arch), contract)
    if "token_embd.weight" not in gguf.tensors:
        raise ModelFileError("tensor token_embd.weight is missing", where=gguf.path)
    config = ModelConfig(
        arch=str(arch),
        activation=activation,
        activation_source=source,
        rope_style=contract.rope_style,
        sub_norms=contract.sub_norms,
        tied_head="output.weight" not in gguf.tensors or (contract.always_tied and _ties(gguf, str(arch))),
        n_layer=integer("block_count"),
        n_embd=n_embd,
        n_ff=integer("feed_forward_length"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_vocab=gguf.tensors["token_embd.weight"].shape[0],
        n_ctx=integer("context_length", 2048),
        rope_theta=real("rope.freq_base", 10000.0),
        rms_eps=real("attention.layer_norm_rms_epsilon"),
    )
    _check(gguf, config)
    return config, notices


def _ties(gguf: GGUF, arch: str) -> bool:
    """Whether the head is the embedding, although the file has another: so it is, unless the file denies it."""
    return gguf.get(f"{arch}.tie_word_embeddings", bool, default=True)


def _activation(gguf: GGUF, arch: str, contract: Contract) -> tuple[Activation, Any, tuple[str, ...]]:
    for key in (f"{arch}.hidden_activation", f"{arch}.hidden_act"):
        declared = gguf.metadata.get(key)
        if declared is None:
            continue
        known = ACTIVATIONS.get(str(declared).lower())
        if known is None:
            raise GGUFError(
                f"activation {declared!r} is unknown", path=gguf.path, field=key, remedy="known are relu2 and silu"
            )
        if known != contract.activation:
            note = f"{key} declares {known}; the default of {arch} is {contract.activation}; the declaration wins"
            return known, "declared", (note,)
        return known, "declared", ()
    note = f"no activation is declared; {contract.activation} is the default of architecture {arch}"
    return contract.activation, "architecture", (note,)


def _check(gguf: GGUF, c: ModelConfig) -> None:
    """Relations between hyper-parameters that the forward pass relies on."""
    arch = c.arch
    value_length = _number(gguf, f"{arch}.attention.value_length", int, c.head_dim)
    rotary = _number(gguf, f"{arch}.rope.dimension_count", int, c.head_dim)
    scaling = gguf.get(f"{arch}.rope.scaling.type", str, "")
    factor = _number(gguf, f"{arch}.rope.scaling.factor", float, 1.0)
    rules = (
        ("attention.head_count_kv", c.n_head % c.n_head_kv == 0, f"{c.n_head} heads do not divide by {c.n_head_kv}"),
        ("attention.key_length", c.head_dim % 16 == 0, f"head_dim {c.head_dim} is not a multiple of 16"),
        ("attention.value_length", value_length == c.head_dim, f"{value_length} differs from key_length {c.head_dim}"),
        ("rope.dimension_count", rotary == c.head_dim, f"{rotary} differs from head_dim {c.head_dim}"),
        ("rope.scaling.type", scaling in ("", "none"), f"rotary scaling {scaling!r} is not supported"),
        ("rope.scaling.factor", factor == 1 or scaling == "none", f"rotary scaling by {factor:g} is not supported"),
        ("embedding_length", c.n_embd % 16 == 0, f"{c.n_embd} is not a multiple of 16"),
        ("feed_forward_length", c.n_ff % 16 == 0, f"{c.n_ff} is not a multiple of 16"),
        ("block_count", c.n_layer <= 1024, f"{c.n_layer} layers are more than any model has"),
        ("context_length", c.n_ctx <= 1 << 24, f"{c.n_ctx} tokens are more than any model has"),
    )
    for key, ok, reason in rules:
        if not ok:
            raise GGUFError(reason, path=gguf.path, field=f"{arch}.{key}")
