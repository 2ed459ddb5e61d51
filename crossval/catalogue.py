"""What goes wrong in engines, converters and harnesses of this field: each entry is one changed field.

An entry changes one field of the oracle's `Semantics` (what a file means), of its numerics (what is rounded where), or
the weights of one tensor. Entries whose value is a number (a base, a factor, an epsilon) have it measured from the
engine's own values by `crossval.fits`; the others have the value written here. The oracle itself is right by default
and is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal["semantics", "numerics", "weights"]

PROJECTIONS = frozenset(("q", "k", "v", "attn_out", "ffn_gate", "ffn_up", "ffn_down"))
NORMS = frozenset(("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm", "result_norm"))
ROTATED = frozenset(("q_rope", "k_rope"))
ATTENTION = frozenset(("kqv_out",))
GATED = frozenset(("ffn_act",))
RESIDUAL = frozenset(("ffn_inp", "l_out"))
HEAD = frozenset(("result_output",))
EMBEDDING = frozenset(("embd",))
#: What reads a norm, and so is wrong on locked inputs where the norm is left out.
READERS = {
    "attn_norm": frozenset(("q", "k", "v")),
    "attn_sub_norm": frozenset(("attn_out",)),
    "ffn_norm": frozenset(("ffn_gate", "ffn_up")),
    "ffn_sub_norm": frozenset(("ffn_down",)),
    "result_norm": HEAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """One known way to be wrong.

    Attributes:
        name: `field=value`, or the field alone where the value is measured.
        part: What is changed.
        field: Its field.
        value: The wrong value; None where it is measured, or stands in the tensor's place.
        taps: Operations that it can move on locked inputs.
        explanation: What an engine with it does, as the end of "it …".
        remedy: What to do about it.
        link: A public report of it, where there is one.
    """

    name: str
    part: Part
    field: str
    taps: frozenset[str]
    explanation: str
    remedy: str
    value: Any = None
    link: str = ""

    @property
    def measured(self) -> bool:
        """Whether the value comes from the engine's own numbers."""
        return self.value is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """An entry with its value, ready to be replayed.

    Attributes:
        entry: Of the catalogue.
        name: With the value and the tensor.
        semantics, numerics: Changed fields.
        cost: Decades that it must explain to be worth its freedom: measured numbers and single tensors fit more.
    """

    entry: Intervention
    name: str
    semantics: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, str] = field(default_factory=dict)
    cost: float = 0.0


_REPORTS = "https://github.com/microsoft/BitNet/issues/"


def _s(field_: str, value: Any, taps: frozenset[str], says: str, remedy: str, link: str = "") -> Intervention:  # noqa: ANN401  # of any field
    shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
    if isinstance(value, tuple):
        shown = ",".join(str(v) for v in value)
    name = field_ if value is None else f"{field_}={shown}"
    return Intervention(
        name=name, part="semantics", field=field_, value=value, taps=taps, explanation=says, remedy=remedy, link=link
    )


def _n(field_: str, value: str, taps: frozenset[str], says: str) -> Intervention:
    remedy = f"declare numerics.{field_}={value} if it is meant, so that both sides compute the same"
    return Intervention(
        name=f"numerics.{field_}={value}",
        part="numerics",
        field=field_,
        value=value,
        taps=taps,
        explanation=says,
        remedy=remedy,
    )


def _w(kind: str, says: str, remedy: str, link: str = "") -> Intervention:
    taps = PROJECTIONS
    return Intervention(
        name=f"tensor_{kind}", part="weights", field="weights", taps=taps, explanation=says, remedy=remedy, link=link
    )


_ACT = "read hidden_act of the model's config; the architecture's name does not decide it"
_ROPE = "compare the rotary code with the checkpoint's: style, base and positions"
_NORM = "RMSNorm: x / √(mean(x²) + eps) · weight, nothing subtracted, in float32"
_QUANT = "quantise per token: s = 127 / max(|x|max, 1e-5), q = round half to even (x · s), clamped to −128 … 127"
_PACK = "unpack as the format's specification says, and check a decoded tensor against another decoder"
_SCALE = "multiply every ternary product by its tensor's own scale, once"
_GRAPH = "wire the layer as the architecture says: pre-norm, two residual sums"
_MASK = "query t sees keys 0 … t"

CATALOGUE: tuple[Intervention, ...] = (
    # ---- feed-forward
    _s("activation", "silu", GATED, "computes SiLU in the feed-forward", _ACT, _REPORTS + "588"),
    _s("activation", "relu2", GATED, "computes squared ReLU in the feed-forward", _ACT),
    _s("activation", "gelu", GATED, "computes GELU (tanh form) in the feed-forward", _ACT),
    _s("activation", "gelu_erf", GATED, "computes GELU (erf form) in the feed-forward", _ACT),
    _s("activation", "gelu_quick", GATED, "computes x · sigmoid(1.702 x) in the feed-forward", _ACT),
    _s("activation", "relu", GATED, "computes plain ReLU in the feed-forward", _ACT),
    _s("gating", "swapped", GATED, "activates up instead of gate", "act(gate) · up"),
    _s("gating", "none", GATED, "leaves up out of the feed-forward", "act(gate) · up"),
    _s("ffn_type", "f16", GATED, "stores act(gate) · up as float16", "relu² overflows float16: store it as float32"),
    _s("ffn_type", "bf16", GATED, "stores act(gate) · up as bfloat16", "store it as float32"),
    # ---- rotary embedding
    _s("rope_style", "interleaved", ROTATED, "rotates neighbouring elements, not halves", _ROPE),
    _s("rope_style", "half_split", ROTATED, "rotates halves, not neighbouring elements", _ROPE),
    _s("rope_target", "none", ROTATED, "does not rotate queries and keys", _ROPE),
    _s("rope_target", "q", ROTATED, "rotates queries but not keys", _ROPE),
    _s("rope_direction", -1, ROTATED, "rotates the wrong way", _ROPE),
    _s("rope_share", 0.5, ROTATED, "rotates half of each head", _ROPE),
    _s("rope_theta_factor", None, ROTATED, "uses another rotary base", _ROPE),
    _s("rope_position_factor", None, ROTATED, "stretches positions", _ROPE),
    _s("position_offset", None, ROTATED, "counts positions from another number", _ROPE),
    # ---- norms
    _s("norm", "layernorm", NORMS, "subtracts the mean in the norms", _NORM),
    _s("norm", "l2", NORMS, "divides by the root of the sum of squares, not of their mean", _NORM),
    _s("norm_weight", "ignore", NORMS, "leaves out the weights of the norms", _NORM),
    _s("norm_weight", "plus_one", NORMS, "multiplies by 1 + weight in the norms", _NORM),
    _s("norm_eps", "outside", NORMS, "adds epsilon outside the root", _NORM),
    _s("norm_type", "bf16", NORMS, "stores norms as bfloat16", _NORM),
    _s("norm_type", "f16", NORMS, "stores norms as float16", _NORM),
    _s("rms_eps", None, NORMS, "uses another epsilon in the norms", "read layer_norm_rms_epsilon from the file"),
    *(
        _s("skipped_norm", tap, readers, f"skips {tap}", f"apply {tap}; its tensor is in the file")
        for tap, readers in READERS.items()
    ),
    _s(
        "sub_norms",
        False,  # noqa: FBT003  # the value of a field
        frozenset(("attn_out", "ffn_down")),
        "loads the sub-norms and never uses them",
        "norm before o_proj and down_proj",
    ),
    # ---- residual stream
    _s("residual", "parallel", frozenset(("ffn_norm",)), "feeds the feed-forward what attention was fed", _GRAPH),
    _s("residual", "normed", frozenset(("ffn_inp",)), "adds attention to the normed input", _GRAPH),
    _s("residual", "none", RESIDUAL, "leaves out the residual sums", _GRAPH),
    _s("residual_type", "bf16", RESIDUAL, "keeps the residual stream in bfloat16", "keep it in float32"),
    _s("residual_type", "f16", RESIDUAL, "keeps the residual stream in float16", "keep it in float32"),
    # ---- quantised activations
    _s("activation_quantised", False, PROJECTIONS, "does not round activations to int8", _QUANT),  # noqa: FBT003  # a field
    _s("activation_rounding", "truncate", PROJECTIONS, "truncates activations instead of rounding", _QUANT),
    _s("activation_rounding", "floor", PROJECTIONS, "rounds activations down", _QUANT),
    _s("activation_rounding", "away", PROJECTIONS, "rounds halves away from zero", _QUANT),
    _s("activation_scale", "tensor", PROJECTIONS, "shares one activation scale between tokens", _QUANT),
    _s("activation_levels", 128, PROJECTIONS, "maps the largest activation to 128 and clamps it", _QUANT),
    _s("activation_levels", 63, PROJECTIONS, "quantises activations to 7 bits", _QUANT),
    _s("activation_levels", 7, PROJECTIONS, "quantises activations to 4 bits (the a4.8 recipe)", _QUANT),
    # ---- kernels
    _s("accumulator", "int16", PROJECTIONS, "lets sums wrap at 16 bits", "widen to int32 in time", _REPORTS + "629"),
    _s(
        "projections",
        "empty",
        PROJECTIONS,
        "runs a kernel without a body",
        "build for the instruction set that runs",
        _REPORTS + "547",
    ),
    _s(
        "batch_rows",
        None,
        PROJECTIONS,
        "computes only the first tokens of a batch",
        "compare prefill of n tokens with n single steps",
        _REPORTS + "617",
    ),
    # ---- weights: codes, packing, scales
    _s("weight_scale", "divide", PROJECTIONS, "divides by the weight scale", _SCALE),
    _s("weight_scale", "drop", PROJECTIONS, "drops the weight scale", _SCALE),
    _s("weight_scale", "twice", PROJECTIONS, "multiplies by the weight scale twice", _SCALE),
    _s("scale_type", "f16", PROJECTIONS, "rounds weight scales to float16", _SCALE),
    _s("scale_type", "bf16", PROJECTIONS, "rounds weight scales to bfloat16", _SCALE),
    _s("code_map", (-2, -1, 1, 2), PROJECTIONS, "maps the codes to −2, −1, 1, 2", _PACK),
    _s("code_map", (1, 0, -1, None), PROJECTIONS, "reads the codes with the sign reversed", _PACK),
    _s("code_map", (0, 1, -1, None), PROJECTIONS, "reads the codes as 0, 1, −1", _PACK),
    _s("code_map", (0, 1, 2, None), PROJECTIONS, "forgets to subtract 1 from the codes", _PACK),
    _s("unpack_order", "sequential", PROJECTIONS, "unpacks codes in sequence", _PACK, _REPORTS + "600"),
    _s("unpack_order", "sequential_reversed", PROJECTIONS, "unpacks codes in sequence, low bits first", _PACK),
    _s("unpack_order", "interleaved_64", PROJECTIONS, "unpacks codes in blocks of 64 (ARM)", _PACK, _REPORTS + "585"),
    _s("reternarised", True, PROJECTIONS, "quantises ternary weights a second time", "take them as they are"),  # noqa: FBT003  # a field
    _w("scaled", "has a wrong scale on one tensor", _SCALE),
    _w("zero", "holds zeros in one tensor", "compare the checkpoint with its publisher's hashes", _REPORTS + "608"),
    _w("negated", "has the sign of one tensor reversed", _PACK),
    _w("transposed", "reads one square tensor transposed", "rows are outputs, columns inputs"),
    _w("rows", "has the rows of one tensor in another order", "convert without permuting rows, or permute back"),
    _w("other", "uses one tensor in the place of another", "map tensor names one to one"),
    # ---- attention
    _s("head_grouping", "stride", ATTENTION, "gives query heads the wrong key head", "query head h uses h ÷ group"),
    _s("head_grouping", "first", ATTENTION, "gives all query heads the first key head", "query head h uses h ÷ group"),
    _s("attention_scale_factor", None, ATTENTION, "scales attention by another factor", "1/√head_dim"),
    _s("causal", False, ATTENTION, "lets tokens see all later ones of their batch", _MASK),  # noqa: FBT003  # a field
    _s("mask_offset", 1, ATTENTION, "lets tokens see the next one", _MASK),
    _s("window", None, ATTENTION, "sees only the last tokens", _MASK),
    # ---- embedding and head
    _s("token_offset", None, EMBEDDING, "reads embeddings of other token ids", "feed the ids that the tokenizer gave"),
    _s("embedding_scale", None, EMBEDDING, "multiplies the embedding", "this family does not scale embeddings"),
    _s("head", "tied", HEAD, "uses the embedding as the head", "use output.weight where the architecture has one"),
    _s("head", "declared", HEAD, "uses output.weight where the head is tied", "the head is the token embedding"),
    _s("logit_scale", None, HEAD, "multiplies the logits", "this family does not scale logits"),
    _s("logit_softcap", 30.0, HEAD, "caps the logits softly at 30", "this family does not cap logits"),
    # ---- numerics that were not declared
    _n("activation", "q8_k", PROJECTIONS, "quantises activations in blocks of 256"),
    _n("activation", "q8_0", PROJECTIONS, "quantises activations in blocks of 32"),
    _n("activation", "f16", PROJECTIONS, "rounds activations to float16"),
    _n("activation", "bf16", PROJECTIONS, "rounds activations to bfloat16"),
    _n("kv", "f16", ATTENTION, "keeps keys and values as float16"),
    _n("query", "f16", ATTENTION, "rounds queries to float16"),
    _n("probs", "f16", ATTENTION, "rounds attention probabilities to float16"),
    _n("head", "f16", HEAD, "rounds the input of the head to float16"),
    _n("head", "bf16", HEAD, "rounds the input of the head to bfloat16"),
)

BY_NAME: Mapping[str, Intervention] = {entry.name: entry for entry in CATALOGUE}


def hypothesis(entry: Intervention, value: Any = None, *, name: str = "", cost: float = 0.0) -> Hypothesis:  # noqa: ANN401  # of any field
    """An entry with its own value, or with a measured one."""
    value = entry.value if value is None else value
    changes = {entry.field: value}
    return Hypothesis(
        entry=entry,
        name=name or (entry.name if not entry.measured else f"{entry.name}={value:.4g}"),
        semantics={} if entry.part == "numerics" else changes,
        numerics=changes if entry.part == "numerics" else {},
        cost=cost,
    )


def written() -> Iterator[Hypothesis]:
    """Every entry whose value is written in the catalogue."""
    for entry in CATALOGUE:
        if not entry.measured:
            yield hypothesis(entry)
