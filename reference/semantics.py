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
from typing import Any, Literal

#: Weight of each two-bit code; None refuses a file that holds the code.
CodeMap = tuple[int, int, int, int | None]

_FLOATS = ("f32", "f16", "bf16")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "activation": (None, "relu2", "silu", "gelu", "gelu_erf", "gelu_quick", "relu"),
    "gating": ("gate", "swapped", "none"),
    "rope_style": (None, "half_split", "interleaved"),
    "rope_target": ("qk", "q", "none"),
    "rope_direction": (1, -1),
    "norm": ("rms", "layernorm", "l2"),
    "norm_weight": ("multiply", "ignore", "plus_one"),
    "norm_eps": ("inside", "outside"),
    "norm_type": _FLOATS,
    "skipped_norm": (None, "attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm", "result_norm"),
    "sub_norms": (None, True, False),
    "residual": ("sequential", "parallel", "normed", "none"),
    "residual_type": _FLOATS,
    "activation_rounding": ("half_even", "away", "truncate", "floor"),
    "activation_scale": ("token", "tensor"),
    "accumulator": ("int32", "int16"),
    "projections": ("computed", "empty"),
    "weight_scale": ("multiply", "divide", "drop", "twice"),
    "scale_type": _FLOATS,
    "unpack_order": ("interleaved", "interleaved_64", "sequential", "sequential_reversed"),
    "head_grouping": ("block", "stride", "first"),
    "head": (None, "declared", "tied"),
    "ffn_type": _FLOATS,
}
_POSITIVE = (
    "rope_theta_factor",
    "rope_position_factor",
    "rope_share",
    "attention_scale_factor",
    "embedding_scale",
    "logit_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChange:
    """One tensor that is not what the file says.

    Attributes:
        tensor: Its name.
        kind: `scaled` by `factor`; `zero`; `negated`; `transposed` (square matrices); `rows` taken in `order`;
            `other`, another tensor of the same shape in its place.
        factor: Of `scaled`.
        order: Of `rows`: row i of the changed matrix is row order[i] of the file's.
        other: Name of the tensor in its place.
    """

    tensor: str
    kind: Literal["scaled", "zero", "negated", "transposed", "rows", "other"]
    factor: float = 1.0
    order: tuple[int, ...] = ()
    other: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Semantics:
    """How a model file is understood. Unknown values are a `ValueError` that lists the known ones.

    Attributes:
        activation: Of the gated feed-forward: `relu2`, `silu`, `gelu` (tanh form), `gelu_erf`, `gelu_quick`, `relu`.
        gating: act(gate) · up; `swapped` is act(up) · gate, `none` is act(gate).
        rope_style: `half_split` rotates (i, i + d/2), `interleaved` rotates (2i, 2i + 1).
        rope_target: What is rotated.
        rope_direction: −1 rotates the other way.
        rope_share: Share of each head that is rotated, its first elements.
        rope_theta_factor: Multiplies the rotary base.
        rope_position_factor: Multiplies every position.
        position_offset: Added to every position (equivalent end to end; visible at `q_rope`).
        token_offset: Added to every token id before its embedding is read, modulo the vocabulary.
        rms_eps: Replaces the epsilon of every norm.
        norm: `layernorm` subtracts the mean first, `l2` divides by the root of the sum, not of the mean.
        norm_weight: `ignore` leaves the weight out, `plus_one` multiplies by 1 + weight.
        norm_eps: `outside` adds epsilon to the root, not under it.
        norm_type: What a norm's result is stored in.
        skipped_norm: The one norm that is left out in every layer.
        sub_norms: False skips `attn_sub_norm` and `ffn_sub_norm` though the file has them.
        residual: `parallel` feeds the feed-forward what attention was fed, `normed` adds attention to the normed
            input, `none` adds nothing.
        residual_type: What the residual stream is stored in.
        activation_quantised: False leaves the inputs of the projections in float32.
        activation_rounding: Of the int8 quantisers: nearest with ties to even, with ties away from zero, truncated
            towards zero, or down.
        activation_scale: `tensor` shares one int8 scale between all tokens evaluated together (`int8_token` only).
        activation_levels: What the largest magnitude of a token is mapped to; integers stay in −128 … 127.
        accumulator: Width of the sums of `int8_token`; `int16` wraps around.
        projections: `empty` is a kernel without a body: every projection is zero.
        batch_rows: A batch kernel that computes this many tokens and leaves the others zero.
        weight_scale: What is done with a tensor's scale, its own and that of its `.scale` tensor.
        scale_type: What scales are rounded to.
        weights: Tensors that are not what the file says.
        code_map: Weights of the codes 0, 1, 2, 3 of every ternary type.
        unpack_order: Of I2_S. `interleaved`: byte b of 32 holds elements b, b + 32, b + 64, b + 96, first in the high
            bits; `interleaved_64`: 64 elements in 16 bytes; `sequential`: byte b holds 4b … 4b + 3, first in the high
            bits; `sequential_reversed`: first in the low bits.
        reternarised: Ternary weights are quantised again by absmean, which shrinks them by their density.
        head_grouping: Query head h uses key head h ÷ group (`block`), h mod n_head_kv (`stride`) or 0 (`first`).
        attention_scale_factor: Multiplies 1/√head_dim.
        causal: False lets each token see all tokens evaluated with it.
        mask_offset: Later tokens that each token sees nevertheless.
        window: Tokens that each token sees, itself included; None for all.
        head: `declared` uses `output.weight` wherever the file has one, `tied` never.
        embedding_scale: Multiplies the embedding.
        ffn_type: What act(gate) · up is stored in; `f16` overflows above 65504.
        logit_scale: Multiplies the logits.
        logit_softcap: c · tanh(logits / c); None for none.
    """

    activation: str | None = None
    gating: str = "gate"
    rope_style: str | None = None
    rope_target: str = "qk"
    rope_direction: int = 1
    rope_share: float = 1.0
    rope_theta_factor: float = 1.0
    rope_position_factor: float = 1.0
    position_offset: int = 0
    token_offset: int = 0
    rms_eps: float | None = None
    norm: str = "rms"
    norm_weight: str = "multiply"
    norm_eps: str = "inside"
    norm_type: str = "f32"
    skipped_norm: str | None = None
    sub_norms: bool | None = None
    residual: str = "sequential"
    residual_type: str = "f32"
    activation_quantised: bool = True
    activation_rounding: str = "half_even"
    activation_scale: str = "token"
    activation_levels: int = 127
    accumulator: str = "int32"
    projections: str = "computed"
    batch_rows: int | None = None
    weight_scale: str = "multiply"
    scale_type: str = "f32"
    weights: tuple[WeightChange, ...] = ()
    code_map: CodeMap = (-1, 0, 1, None)
    unpack_order: str = "interleaved"
    reternarised: bool = False
    head_grouping: str = "block"
    attention_scale_factor: float = 1.0
    causal: bool = True
    mask_offset: int = 0
    window: int | None = None
    head: str | None = None
    embedding_scale: float = 1.0
    ffn_type: str = "f32"
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"semantics.{name} is {getattr(self, name)!r}, not one of {choices}")
        for name in _POSITIVE:
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"semantics.{name} is {getattr(self, name)!r}, not a positive number")
        if self.rope_share > 1.0:
            raise ValueError(f"semantics.rope_share is {self.rope_share!r}, more than the whole head")
        for name in ("batch_rows", "window", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"semantics.{name} is {value!r}, neither None nor a number above 0")
        if not 1 <= self.activation_levels <= 128 or self.mask_offset < 0:
            raise ValueError(
                f"semantics.activation_levels is {self.activation_levels!r} (1 … 128 are levels), "
                f"semantics.mask_offset {self.mask_offset!r} (0 or more later tokens)"
            )
        if self.rms_eps is not None and not 0.0 <= self.rms_eps < math.inf:
            raise ValueError(f"semantics.rms_eps is {self.rms_eps!r}, neither None nor a number from 0 up")
        if len(self.code_map) != 4 or not all(c is None or -8 <= c <= 8 for c in self.code_map):
            raise ValueError(f"semantics.code_map is {self.code_map!r}, not four small weights (None refuses a code)")

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the contract, by name: the defect this record stands for."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


#: The contract itself.
CONTRACT = Semantics()
