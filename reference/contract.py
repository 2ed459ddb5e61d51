"""What an architecture's name promises, and the hyper-parameters that a file fills in.

This table is the oracle's own reading of the architecture contracts: activation, sub-norms, rotary style and output
head by architecture, a declared activation winning over the default. `Semantics` may override each of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from reference.activations import ACTIVATIONS
from reference.runner import ReferenceUnavailableError
from reference.semantics import Semantics

Number = TypeVar("Number", int, float)

#: Projection tap → name of its tensor.
PROJECTIONS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "attn_out": "attn_output",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The defaults of one architecture; `output_weight` tells whether an `output.weight` is used."""

    activation: str
    sub_norms: bool
    rope_style: str
    output_weight: bool


_RELU2 = Architecture(activation="relu2", sub_norms=True, rope_style="half_split", output_weight=False)
ARCHITECTURES = {
    "bitnet-b1.58": _RELU2,
    "bitnet-25": _RELU2,
    "bitnet": Architecture(activation="silu", sub_norms=True, rope_style="half_split", output_weight=False),
    "llama": Architecture(activation="silu", sub_norms=False, rope_style="interleaved", output_weight=True),
}

#: Keys for which no architecture here has a contract, and the values by which a file says that it does without.
ABSENT: dict[str, tuple[float, ...]] = {
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.alpha": (0, 1),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "logit_scale": (0, 1),
    "expert_count": (0,),
    "nextn_predict_layers": (0,),
    "swin_norm": (False,),
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters:
    """A model as one `Semantics` understands it. `head` is the name of the tensor that makes the logits."""

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rope_theta: float
    rms_eps: np.float32
    activation: str
    rope_style: str
    sub_norms: bool
    head: str


def hyper_parameters(metadata: Mapping[str, Any], tensors: Collection[str], semantics: Semantics) -> HyperParameters:
    """Read a file's metadata under a semantics.

    Raises:
        ReferenceUnavailableError: An architecture, activation or rotary scaling without a contract, or a
            hyper-parameter that is missing or makes no sense.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise ReferenceUnavailableError(
            f"the oracle has no contract for architecture {arch!r}", remedy=f"known: {', '.join(ARCHITECTURES)}"
        )
    contract = ARCHITECTURES[arch]

    def number(key: str, kind: type[Number], default: Number | None = None) -> Number:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ReferenceUnavailableError(f"the file has no {arch}.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value > 0:
            raise ReferenceUnavailableError(f"{arch}.{key} is {value!r}, not a positive number")
        return kind(value)

    n_embd, n_head = number("embedding_length", int), number("attention.head_count", int)
    n_head_kv = number("attention.head_count_kv", int, n_head)
    head_dim = number("attention.key_length", int, max(n_embd // n_head, 1))
    if n_head % n_head_kv or head_dim % 2 or number("rope.dimension_count", int, head_dim) != head_dim:
        raise ReferenceUnavailableError(
            f"{n_head} heads, {n_head_kv} key heads of width {head_dim}: heads must share keys evenly, and the rotary "
            "must turn whole heads of even width"
        )
    _refuse_the_rest(metadata, arch, head_dim)
    declared = metadata.get(f"{arch}.hidden_activation", metadata.get(f"{arch}.hidden_act", contract.activation))
    activation = semantics.activation or declared
    if activation not in ACTIVATIONS:
        raise ReferenceUnavailableError(f"activation {activation!r}", remedy=f"known: {', '.join(ACTIVATIONS)}")
    output_weight = contract.output_weight if semantics.head is None else semantics.head == "declared"
    eps = number("attention.layer_norm_rms_epsilon", float) if semantics.rms_eps is None else semantics.rms_eps
    return HyperParameters(
        arch=arch,
        n_layer=number("block_count", int),
        n_embd=n_embd,
        n_ff=number("feed_forward_length", int),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        rope_theta=number("rope.freq_base", float, 10000.0) * semantics.rope_theta_factor,
        rms_eps=np.float32(eps),
        activation=activation,
        rope_style=semantics.rope_style or contract.rope_style,
        sub_norms=contract.sub_norms if semantics.sub_norms is None else semantics.sub_norms,
        head="output.weight" if output_weight and "output.weight" in tensors else "token_embd.weight",
    )


def _refuse_the_rest(metadata: Mapping[str, Any], arch: str, head_dim: int) -> None:
    """Refuse a file that asks for more than the contracts hold."""
    scaling = metadata.get(f"{arch}.rope.scaling.type", "linear")  # llama.cpp's default, by a factor of 1
    allowed = ABSENT | {"attention.scale": (0, head_dim**-0.5), "attention.sliding_window": (0,)}
    if (n_ctx := metadata.get(f"{arch}.context_length")) is not None:
        allowed["attention.sliding_window"] = (0, n_ctx)
    if scaling != "none":  # the older spelling of the factor is the second
        allowed |= {"rope.scaling.factor": (0, 1), "rope.scale_linear": (0, 1)}
    for key, values in allowed.items():
        value = metadata.get(f"{arch}.{key}", values[0])
        if (
            not isinstance(value, int | float | np.number)
            or not np.isclose(float(value), values, rtol=1e-6, atol=0).any()
        ):
            raise ReferenceUnavailableError(f"{arch}.{key} {value!r} has no contract")
    if scaling not in ("linear", "none"):
        raise ReferenceUnavailableError(f"{arch}.rope.scaling.type {scaling!r} has no contract")


def weight_names(hyper: HyperParameters, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of every weight the forward pass needs, sorted.

    Args:
        hyper: The model.
        shapes: Of every tensor in the file, rows first.

    Raises:
        ReferenceUnavailableError: One is missing or of another shape than the hyper-parameters say, or the file
            holds a tensor that nothing consumes.
    """
    n_q, n_kv = hyper.n_head * hyper.head_dim, hyper.n_head_kv * hyper.head_dim
    per_layer: dict[str, tuple[int, ...]] = {
        "attn_q": (n_q, hyper.n_embd),
        "attn_k": (n_kv, hyper.n_embd),
        "attn_v": (n_kv, hyper.n_embd),
        "attn_output": (hyper.n_embd, n_q),
        "ffn_gate": (hyper.n_ff, hyper.n_embd),
        "ffn_up": (hyper.n_ff, hyper.n_embd),
        "ffn_down": (hyper.n_embd, hyper.n_ff),
        "attn_norm": (hyper.n_embd,),
        "ffn_norm": (hyper.n_embd,),
    }
    if ARCHITECTURES[hyper.arch].sub_norms or hyper.sub_norms:
        per_layer |= {"attn_sub_norm": (n_q,), "ffn_sub_norm": (hyper.n_ff,)}
    n_vocab = shapes.get("token_embd.weight", (0,))[0]
    needed = {f"blk.{il}.{name}.weight": shape for il in range(hyper.n_layer) for name, shape in per_layer.items()}
    needed |= {"output_norm.weight": (hyper.n_embd,), "token_embd.weight": (n_vocab, hyper.n_embd)}
    needed[hyper.head] = (n_vocab, hyper.n_embd)
    if missing := sorted(set(needed) - set(shapes)):
        raise ReferenceUnavailableError(f"the file lacks {len(missing)} tensors of the contract, as {missing[0]}")
    for name, shape in needed.items():
        if tuple(shapes[name]) != shape:
            raise ReferenceUnavailableError(f"{name} has shape {tuple(shapes[name])}, not {shape}")
    scales = {name.removesuffix(".weight") + ".scale" for name in needed}
    if unused := sorted(set(shapes) - set(needed) - scales - {"output.weight"}):
        raise ReferenceUnavailableError(f"nothing in the contract consumes {len(unused)} tensors, as {unused[0]}")
    return sorted(needed)
