"""Frozen configuration records: the model's hyper-parameters and the numerics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from bitnet.errors import UsageError

Activation = Literal["relu2", "silu"]
RopeStyle = Literal["half_split", "interleaved"]
ActivationQuantiser = Literal[
    "int8_token", "int8_token_reciprocal", "int8_token_fused", "q8_k", "q8_0", "f16", "bf16", "none"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a model is, as its file declares it.

    Attributes:
        arch: Architecture name in the file (`bitnet-b1.58`, `bitnet-25`, `bitnet`, `llama`).
        activation: Of the gated feed-forward, act(gate) · up.
        activation_source: `declared` by the file, or `architecture` when the contract's default was taken.
        rope_style: Which elements form a rotated pair: (i, i + d/2) or (2i, 2i + 1).
        sub_norms: Whether attention and feed-forward end in an RMSNorm before their last projection.
        tied_head: Whether the output head is the token embedding.
        n_ctx: Trained context length, tokens.
    """

    arch: str
    activation: Activation
    activation_source: Literal["declared", "architecture"]
    rope_style: RopeStyle
    sub_norms: bool
    tied_head: bool
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    rope_theta: float
    rms_eps: float

    @property
    def n_q(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.head_dim

    @property
    def n_kv(self) -> int:
        """Width of all key (or value) heads."""
        return self.n_head_kv * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Every rounding an engine is free to choose, named.

    The default is this engine's own: BitNet's per-token int8 activations, everything else in float32.
    The other constructors name what a reference does, so that an expected difference is computed, not tolerated.

    Attributes:
        activation: How the input of a quantised projection is rounded. `int8_token`: one scale a token (BitNet's
            own); `int8_token_reciprocal`: the same with the scale made as 127 · (1 / absmax), rounded twice, as torch
            divides a number by a tensor; `int8_token_fused`: the same with the product of activation and scale not
            rounded before it becomes an integer, as gcc compiles bitnet.cpp; `q8_k`: blocks of 256 (llama.cpp's TQ
            types); `q8_0`: blocks of 32; `f16`, `bf16`; `none`.
        kv: Type of the KV cache.
        query: Rounding of the rotated query before the dot products with the keys.
        probs: Rounding of the softmax probabilities: never, always, or only in single-token steps.
        head: Rounding of the input of the output head, likewise.
        rope: How rotary angles are made. `f64`: correctly rounded; `f32_iterated`: repeated float32
            multiplication (ggml); `f32`: float32 position times float32 frequency (transformers).
    """

    activation: ActivationQuantiser = "int8_token"
    kv: Literal["f32", "f16"] = "f32"
    query: Literal["f32", "f16"] = "f32"
    probs: Literal["f32", "f16", "f16_decode"] = "f32"
    head: Literal["f32", "f16", "bf16", "f16_decode"] = "f32"
    rope: Literal["f64", "f32_iterated", "f32"] = "f64"

    def __post_init__(self) -> None:
        for name, choices in _NUMERICS_CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(
                    f"numerics.{name} is {value!r}", where="Numerics", remedy=f"one of {', '.join(choices)}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Numerics:
        """From plain strings, as runners declare them. Unknown names are a `UsageError`."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"unknown numerics field {name!r}", remedy=f"one of {', '.join(sorted(known))}")
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every value

    def to_dict(self) -> dict[str, str]:
        """As plain strings."""
        return asdict(self)


_NUMERICS_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": get_args(ActivationQuantiser),
    "kv": ("f32", "f16"),
    "query": ("f32", "f16"),
    "probs": ("f32", "f16", "f16_decode"),
    "head": ("f32", "f16", "bf16", "f16_decode"),
    "rope": ("f64", "f32_iterated", "f32"),
}

#: bitnet.cpp's rounding points (measured on its I2_S builds: F16 KV, Q rounded always, the rest in single decodes).
BITNET_CPP = Numerics(
    activation="int8_token", kv="f16", query="f16", probs="f16_decode", head="f16_decode", rope="f32_iterated"
)
