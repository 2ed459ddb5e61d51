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
from bitnet.formats import KERNEL_CONFIG_KEY
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

#: Hyper-parameters of other graphs, each with the values that change nothing. Any other value asks for what is not
#: computed here; llama.cpp heeds some of them under every architecture.
_WITHOUT_EFFECT: dict[str, tuple[float, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "swin_norm": (False,),
    "use_parallel_residual": (False,),
}
#: The hyper-parameters that are read, and those that are only information.
_KNOWN = frozenset(
    {
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.scale"),
        *("attention.sliding_window", "block_count", "context_length", "embedding_length", "expert_used_count"),
        *("feed_forward_length", "hidden_act", "hidden_activation", "pooling_type", "rope.dimension_count"),
        *("rope.freq_base", "rope.scale_linear", "rope.scaling.factor", "rope.scaling.finetuned"),
        *("rope.scaling.original_context_length", "rope.scaling.type", "tie_word_embeddings", "vocab_size"),
        *_WITHOUT_EFFECT,
    }
)
_SHOWN = 5
_OTHER_ENGINE = "run the file with the engine that it was made for"


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
    tied_head, head_notices = _ties(gguf, str(arch), contract)
    config = ModelConfig(
        arch=str(arch),
        activation=activation,
        activation_source=source,
        rope_style=contract.rope_style,
        sub_norms=contract.sub_norms,
        tied_head=tied_head,
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
    _check_vocabulary(gguf, config)
    _check_supported(gguf, config)
    return config, (*notices, *head_notices, *_unknown(gguf, config.arch))


def _ties(gguf: GGUF, arch: str, contract: Contract) -> tuple[bool, tuple[str, ...]]:
    """Whether the head is the embedding: there is no other, or the contract says so and the file does not deny it.

    A file that says it has a head of its own must have it.
    """
    key, own = f"{arch}.tie_word_embeddings", "output.weight" in gguf.tensors
    declared = gguf.get(key, bool, None)
    if declared is False and not own:
        raise GGUFError(
            "is false, so the model has a head of its own, but tensor output.weight is missing",
            path=gguf.path,
            field=key,
            remedy="the file is incomplete; convert it again from the original checkpoint",
        )
    if not own or contract.always_tied:
        return not own or declared is not False, ()
    note = f"{key} is true, but the file has an output.weight, which is the head of every {arch} file that has one"
    return False, (note,) if declared else ()


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


def _unknown(gguf: GGUF, arch: str) -> tuple[str, ...]:
    """What is worth telling of hyper-parameters that nobody here knows."""
    known = {KERNEL_CONFIG_KEY, *(f"{arch}.{key}" for key in _KNOWN)}  # the first has the name of an architecture
    keys = sorted(key for key in gguf.metadata if key.startswith(f"{arch}.") and key not in known)
    if not keys:
        return ()
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return (f"hyper-parameters that are unknown here and change nothing: {', '.join(keys[:_SHOWN])}{more}",)


def _or_nothing(gguf: GGUF, key: str, kind: type, nothing: float) -> Any:  # noqa: ANN401  # as `kind` says
    """A hyper-parameter that asks for nothing where it is absent, or 0, as llama.cpp takes it."""
    value = gguf.metadata.get(key)
    return nothing if isinstance(value, (int, float)) and value == 0 else _number(gguf, key, kind, nothing)


def _check(gguf: GGUF, c: ModelConfig) -> None:
    """Relations between hyper-parameters, and the widths that the kernels read."""
    arch = c.arch
    value_length = _number(gguf, f"{arch}.attention.value_length", int, c.head_dim)
    rotary = _number(gguf, f"{arch}.rope.dimension_count", int, c.head_dim)
    rules = (
        (
            "attention.layer_norm_rms_epsilon",
            2.0**-149 <= c.rms_eps < 2.0**128,
            f"{c.rms_eps:g} is no number of float32",
        ),
        ("attention.head_count_kv", c.n_head % c.n_head_kv == 0, f"{c.n_head} heads do not divide by {c.n_head_kv}"),
        ("block_count", c.n_layer <= 1024, f"{c.n_layer} layers are more than any model has"),
        ("context_length", c.n_ctx <= 1 << 24, f"{c.n_ctx} tokens are more than any model has"),
    )
    for key, ok, reason in rules:
        if not ok:
            raise GGUFError(reason, path=gguf.path, field=f"{arch}.{key}")
    widths = (
        ("attention.key_length", c.head_dim % 16 == 0, f"head_dim {c.head_dim} is not a multiple of 16"),
        ("attention.value_length", value_length == c.head_dim, f"{value_length} differs from key_length {c.head_dim}"),
        ("rope.dimension_count", rotary == c.head_dim, f"{rotary} differs from head_dim {c.head_dim}"),
        ("embedding_length", c.n_embd % 16 == 0, f"{c.n_embd} is not a multiple of 16"),
        ("feed_forward_length", c.n_ff % 16 == 0, f"{c.n_ff} is not a multiple of 16"),
    )
    for key, ok, reason in widths:
        if not ok:
            what = f"{reason}, which is not supported"
            raise GGUFError(what, path=gguf.path, field=f"{arch}.{key}", remedy=_OTHER_ENGINE)


def _check_vocabulary(gguf: GGUF, c: ModelConfig) -> None:
    """The declared size of the vocabulary: fewer tokens than the embedding has rows are padding, more are a fault."""
    key = f"{c.arch}.vocab_size"
    size = _or_nothing(gguf, key, int, c.n_vocab)
    if size > c.n_vocab:
        raise GGUFError(
            f"is {size}, but the embedding has {c.n_vocab} rows",
            path=gguf.path,
            field=key,
            remedy="keys and tensors are of different models; convert it again from the original checkpoint",
        )


def _check_supported(gguf: GGUF, c: ModelConfig) -> None:
    """Whether the file asks for nothing that the forward pass does not compute."""
    arch = c.arch
    scaling = gguf.get(f"{arch}.rope.scaling.type", str, "")
    # the second is the older spelling of the first
    factors = {k: _or_nothing(gguf, f"{arch}.{k}", float, 1.0) for k in ("rope.scaling.factor", "rope.scale_linear")}
    window = _or_nothing(gguf, f"{arch}.attention.sliding_window", int, c.n_ctx)
    usual = 1 / math.sqrt(c.head_dim)
    scale = _or_nothing(gguf, f"{arch}.attention.scale", float, usual)
    rules = [
        ("rope.scaling.type", scaling in ("", "none", "linear"), f"rotary scaling {scaling!r}"),
        *((key, factor == 1 or scaling == "none", f"rotary scaling by {factor:g}") for key, factor in factors.items()),
        ("attention.sliding_window", window >= c.n_ctx, f"attention to the last {window} tokens alone"),
        ("attention.scale", math.isclose(scale, usual, rel_tol=1e-6), f"scaling scores by {scale:g}"),
    ]
    for key, without_effect in _WITHOUT_EFFECT.items():
        value = gguf.metadata.get(f"{arch}.{key}", without_effect[0])
        rules.append((key, isinstance(value, (int, float)) and value in without_effect, f"{value!r}"))
    for key, ok, what in rules:
        if not ok:
            raise GGUFError(
                f"{what} is not supported",
                path=gguf.path,
                field=f"{arch}.{key}",
                remedy=_OTHER_ENGINE,
            )
