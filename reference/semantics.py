"""What a model means, as one record: every field is a thing that some engine has got wrong.

The default value of each field is the contract (the architecture table and the formats' specifications), so
`Semantics()` is the right answer and any other record is a hypothesis about a defect. Attribution replays a case
with one or two fields changed and asks which replay lands on the odd engine's numbers.

`None` means "what the file and its architecture say". Where a defect is a matter of degree (a wrong theta, a slightly
wrong attention scale) the field is a factor or a replacement value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

#: Weight of each two-bit code; None refuses a file that holds the code.
CodeMap = tuple[int, int, int, int | None]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "activation": (None, "relu2", "silu", "gelu", "relu"),
    "rope_style": (None, "half_split", "interleaved"),
    "norm": ("rms", "layernorm"),
    "sub_norms": (None, True, False),
    "activation_rounding": ("half_even", "away", "truncate"),
    "activation_scale": ("token", "tensor"),
    "weight_scale": ("multiply", "divide", "drop"),
    "unpack_order": ("interleaved", "interleaved_64", "sequential", "sequential_reversed"),
    "head_grouping": ("block", "stride"),
    "head": (None, "declared", "tied"),
    "ffn_type": ("f32", "f16"),
}
_POSITIVE = ("rope_theta_factor", "attention_scale_factor", "embedding_scale", "logit_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Semantics:
    """How a model file is understood. Unknown values are a `ValueError` that lists the known ones.

    Attributes:
        activation: Of the gated feed-forward: `relu2`, `silu`, `gelu` (tanh form), `relu`.
        rope_style: `half_split` rotates (i, i + d/2), `interleaved` rotates (2i, 2i + 1).
        rope_theta_factor: Multiplies the rotary base.
        position_offset: Added to every position (equivalent end to end; visible at `q_rope`).
        rms_eps: Replaces the epsilon of every norm.
        norm: `layernorm` subtracts the mean first.
        sub_norms: False skips `attn_sub_norm` and `ffn_sub_norm` though the file has them.
        activation_quantised: False leaves the inputs of the projections in float32.
        activation_rounding: Of the int8 quantisers: nearest with ties to even, with ties away from zero, or truncated.
        activation_scale: `tensor` shares one int8 scale between all tokens evaluated together (`int8_token` only).
        weight_scale: What is done with a tensor's scale, its own and that of its `.scale` tensor.
        code_map: Weights of the codes 0, 1, 2, 3 of every ternary type.
        unpack_order: Of I2_S. `interleaved`: byte b of 32 holds elements b, b + 32, b + 64, b + 96, first in the high
            bits; `interleaved_64`: 64 elements in 16 bytes; `sequential`: byte b holds 4b … 4b + 3, first in the high
            bits; `sequential_reversed`: first in the low bits.
        reternarised: Ternary weights are quantised again by absmean, which shrinks them by their density.
        head_grouping: Query head h uses key head h ÷ group (`block`) or h mod n_head_kv (`stride`).
        attention_scale_factor: Multiplies 1/√head_dim.
        causal: False lets each token see all tokens evaluated with it.
        head: `declared` uses `output.weight` wherever the file has one, `tied` never.
        embedding_scale: Multiplies the embedding.
        ffn_type: `f16` stores act(gate) · up as float16, which overflows above 65504.
        logit_scale: Multiplies the logits.
    """

    activation: str | None = None
    rope_style: str | None = None
    rope_theta_factor: float = 1.0
    position_offset: int = 0
    rms_eps: float | None = None
    norm: str = "rms"
    sub_norms: bool | None = None
    activation_quantised: bool = True
    activation_rounding: str = "half_even"
    activation_scale: str = "token"
    weight_scale: str = "multiply"
    code_map: CodeMap = (-1, 0, 1, None)
    unpack_order: str = "interleaved"
    reternarised: bool = False
    head_grouping: str = "block"
    attention_scale_factor: float = 1.0
    causal: bool = True
    head: str | None = None
    embedding_scale: float = 1.0
    ffn_type: str = "f32"
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"semantics.{name} is {getattr(self, name)!r}, not one of {choices}")
        for name in _POSITIVE:
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"semantics.{name} is {getattr(self, name)!r}, not a positive number")
        if self.rms_eps is not None and not 0.0 <= self.rms_eps < math.inf:
            raise ValueError(f"semantics.rms_eps is {self.rms_eps!r}, neither None nor a number from 0 up")
        if len(self.code_map) != 4 or not all(c is None or -8 <= c <= 8 for c in self.code_map):
            raise ValueError(f"semantics.code_map is {self.code_map!r}, not four small weights (None refuses a code)")

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the contract, by name: the defect this record stands for."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


#: The contract itself.
CONTRACT = Semantics()
