"""`config.json` of a Hugging Face checkpoint: checked, and told in the keys of GGUF.

Two families have a graph here: BitNet (sub-norms, half-split rotary) and Llama (no sub-norms; Falcon3 and Llama-3
1.58 are of it). What the configuration asks for beyond them is refused by name: a rotary scaling that is not computed,
a bias, an extra norm inside the linear layers, another quantisation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.architecture import ACTIVATIONS
from bitnet.errors import ModelFileError
from bitnet.gguf_types import ValueType

Family = Literal["bitnet", "llama"]
LinearClass = Literal["bitlinear", "autobitlinear", "none"]

MAX_SIZE = 1 << 24  #: no width, count or context of a model is beyond it; nothing is allocated by a larger one

_LARGEST = sys.float_info.max  #: JSON has whole numbers of any length

#: What transformers takes where a configuration is silent.
_DEFAULT_ACTIVATION = {"bitnet": "relu2", "llama": "silu"}
_DEFAULT_THETA = {"bitnet": 500_000.0, "llama": 10_000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class HFConfig:
    """What a configuration says.

    Attributes:
        family: Which graph.
        arch: The architecture name that graph and activation have in GGUF.
        metadata: `general.*` and `ARCH.*` keys, each with its type in the file.
        tied: Whether the head is the embedding; None where the configuration does not say.
        linear_class: Whose convention `weight_scale` follows: `bitlinear` divides by it, `autobitlinear` multiplies.
            `none` where nothing is quantised.
        online: Whether the weights are master weights, to be made ternary by mean|w|.
        rope_factors: [head_dim / 2] divisors of the rotary frequencies, or None.
        notices: What its user should know.
    """

    family: Family
    arch: str
    metadata: Mapping[str, tuple[ValueType, Any]]
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    tied: bool | None
    linear_class: LinearClass
    online: bool
    rope_factors: NDArray[np.float32] | None
    notices: tuple[str, ...]


class _Fields:
    """Typed access to the configuration, with errors that name the field."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values = values
        self.path = path

    def error(self, field: str, what: str, remedy: str | None = None) -> ModelFileError:
        return ModelFileError(f"{field} {what}", where=self.path, remedy=remedy)

    def unsupported(self, field: str, what: str) -> ModelFileError:
        """Nothing is wrong with the file; this engine does not compute what it asks for."""
        return self.error(field, what, "run the checkpoint with transformers")

    def integer(self, field: str, default: int | None = None) -> int:
        value = self._value(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE:
            raise self.error(field, f"is {value!r}, not a positive integer up to {MAX_SIZE}")
        return value

    def number(self, field: str, default: float | None = None, *, inside: Mapping[str, Any] | None = None) -> float:
        value = self._value(field, default, inside)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self.error(field, f"is {value!r:.50}, not a positive number")
        return float(value)

    def mapping(self, field: str) -> dict[str, Any]:
        value = self.values.get(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(field, f"is a {type(value).__name__}, not an object")
        return value

    def _value(self, field: str, default: float | None, inside: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  # JSON
        value = (self.values if inside is None else inside).get(field)
        if value is None and default is None:
            raise self.error(field, "is missing", "the file is incomplete; download it again")
        return default if value is None else value


def read_config(values: Mapping[str, Any], path: Path) -> HFConfig:
    """Check a configuration.

    Args:
        values: The object of `config.json`.
        path: That file, for messages.

    Raises:
        ModelFileError: A field is missing, has no meaning, or asks for what this engine does not compute.
    """
    c = _Fields(values, path)
    family = _family(c)
    notices: list[str] = []
    for field in ("attention_bias", "mlp_bias"):
        if values.get(field):
            raise c.unsupported(field, "is true; biases are not supported")
    n_embd, n_head = c.integer("hidden_size"), c.integer("num_attention_heads")
    if "head_dim" not in values and n_embd % n_head:
        raise c.error("num_attention_heads", f"is {n_head}, which does not divide hidden_size {n_embd}")
    head_dim = c.integer("head_dim", n_embd // n_head or None)
    if n_head * head_dim > MAX_SIZE:
        raise c.error("head_dim", f"is {head_dim}, which makes queries {n_head * head_dim} wide")
    rope = _rope(c, family)
    theta = _theta(c, rope, family, notices)
    declared = values.get("hidden_act")
    activation = ACTIVATIONS.get(str(declared or _DEFAULT_ACTIVATION[family]).lower())
    if activation is None:
        raise c.error("hidden_act", f"is {declared!r}, which is not supported", "known are relu2 and silu")
    arch = "llama" if family == "llama" else "bitnet-b1.58" if activation == "relu2" else "bitnet"
    linear_class, online = _quantisation(c, family, notices)
    tied = values.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise c.error("tie_word_embeddings", f"is {tied!r}, not a boolean")
    sizes = {
        "n_layer": c.integer("num_hidden_layers"),
        "n_embd": n_embd,
        "n_ff": c.integer("intermediate_size"),
        "n_head": n_head,
        "n_head_kv": c.integer("num_key_value_heads", n_head),
        "head_dim": head_dim,
        "n_vocab": c.integer("vocab_size"),
    }
    if n_head % sizes["n_head_kv"]:
        raise c.error("num_key_value_heads", f"is {sizes['n_head_kv']}, which does not divide {n_head} heads")
    uint, real = ValueType.UINT32, ValueType.FLOAT32
    entries: dict[str, tuple[ValueType, Any]] = {
        "vocab_size": (uint, sizes["n_vocab"]),
        "context_length": (uint, c.integer("max_position_embeddings", 2048)),
        "embedding_length": (uint, n_embd),
        "block_count": (uint, sizes["n_layer"]),
        "feed_forward_length": (uint, sizes["n_ff"]),
        "rope.dimension_count": (uint, head_dim),
        "attention.head_count": (uint, n_head),
        "attention.head_count_kv": (uint, sizes["n_head_kv"]),
        "attention.layer_norm_rms_epsilon": (real, c.number("rms_norm_eps")),
        "rope.freq_base": (real, theta),
    }
    if n_head * head_dim != n_embd:
        entries |= {"attention.key_length": (uint, head_dim), "attention.value_length": (uint, head_dim)}
    if declared is not None:
        entries["hidden_activation"] = (ValueType.STRING, activation)
    return HFConfig(
        family=family,
        arch=arch,
        metadata={f"{arch}.{key}": value for key, value in entries.items()},
        tied=tied,
        linear_class=linear_class,
        online=online,
        rope_factors=_rope_factors(c, rope, theta, head_dim),
        notices=tuple(notices),
        **sizes,
    )


def _family(c: _Fields) -> Family:
    names = c.values.get("architectures") or [""]
    if isinstance(names, list) and str(names[0]).lower() == "bitnetforcausallm":
        return "bitnet"  # some earlier checkpoints of that graph say model_type llama
    model_type = c.values.get("model_type")
    if model_type in ("bitnet", "llama"):
        return "bitnet" if model_type == "bitnet" else "llama"
    raise c.error("model_type", f"is {model_type!r}, which is not one this engine knows", "known are bitnet and llama")


def _quantisation(c: _Fields, family: Family, notices: list[str]) -> tuple[LinearClass, bool]:
    if c.values.get("quantization_config") is None:
        if family == "bitnet":
            notices.append(
                "no quantization_config: the weights are taken for master weights and made ternary by mean|w|, "
                "as BitNet defines; transformers would run them as they are"
            )
        return "none", family == "bitnet"
    q = c.mapping("quantization_config")
    method = q.get("quant_method")
    if method != "bitnet":
        raise c.unsupported("quantization_config.quant_method", f"is {method!r}; only bitnet is supported")
    if q.get("use_rms_norm"):
        what = "is true; a norm inside each linear layer is not supported"
        raise c.unsupported("quantization_config.use_rms_norm", what)
    linear_class, mode = q.get("linear_class", "bitlinear"), q.get("quantization_mode", "offline")
    if linear_class not in ("bitlinear", "autobitlinear"):
        raise c.error("quantization_config.linear_class", f"is {linear_class!r}", "known: bitlinear, autobitlinear")
    if mode not in ("offline", "online"):
        raise c.error("quantization_config.quantization_mode", f"is {mode!r}", "known: offline, online")
    return linear_class, linear_class == "autobitlinear" and mode == "online"


def _rope(c: _Fields, family: Family) -> dict[str, Any]:
    """The rotary parameters, which have two names: transformers 5 writes the second, and obeys the first if there."""
    said = [c.mapping(name) for name in ("rope_scaling", "rope_parameters")]
    if any(isinstance(value, dict) for one in said for value in one.values()):
        raise c.unsupported("rope_parameters", "differs between layers, which is not supported")
    if all(said):
        theta = c.values.get("rope_theta") or _DEFAULT_THETA[family]
        first, second = (
            {"rope_type": one.get("type", "default"), "rope_theta": theta}
            | {key: value for key, value in one.items() if value is not None and key != "type"}
            for one in said
        )
        different = sorted(key for key in first | second if first.get(key) != second.get(key))
        if different:
            raise c.error(
                "rope_scaling", f"differs from rope_parameters in {', '.join(different)}", "remove one of them"
            )
    return said[0] | said[1]


def _theta(c: _Fields, rope: Mapping[str, Any], family: Family, notices: list[str]) -> float:
    said = [value for value in (rope.get("rope_theta"), c.values.get("rope_theta")) if value is not None]
    if said[1:] and said[0] != said[1]:
        raise c.error("rope_theta", "differs from rope_parameters.rope_theta", "correct one of them")
    if not said:
        theta = _DEFAULT_THETA[family]
        notices.append(f"no rope_theta is declared; {theta:g} is transformers' default for {family}")
        return theta
    return c.number("rope_theta", inside={"rope_theta": said[0]})


def _rope_factors(c: _Fields, rope: Mapping[str, Any], theta: float, head_dim: int) -> NDArray[np.float32] | None:
    """What each rotary frequency is divided by."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if c.number("partial_rotary_factor", 1.0, inside={**c.values, **rope}) != 1:
        raise c.unsupported("partial_rotary_factor", "is not 1; rotating a part of each head is not supported")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise c.error("rope_scaling", f"is {kind!r}, which is not supported", "known are default, linear and llama3")
    factor = c.number("factor", inside=rope)
    if not 1 <= factor <= MAX_SIZE:  # it stretches a context, to no more than the longest
        raise c.error("factor", f"is {factor:g}, not a number from 1 to {MAX_SIZE}")
    if kind == "linear":
        return np.full(head_dim // 2, factor, np.float32)
    low, high = (c.number(f"{end}_freq_factor", inside=rope) for end in ("low", "high"))
    trained = c.number("original_max_position_embeddings", inside=rope)
    if high <= low:
        raise c.error("rope_scaling.high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}")
    wavelength = 2 * math.pi * theta ** (2 * np.arange(head_dim // 2) / head_dim)
    with np.errstate(over="ignore"):  # infinity is more than 1
        kept = (trained / wavelength - low) / (high - low)  # 1 and more: kept; 0 and less: divided; a blend between
    kept = np.clip(kept, 0, 1)
    return np.asarray(1 / ((1 - kept) / factor + kept), np.float32)
