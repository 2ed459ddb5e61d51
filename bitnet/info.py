"""What a loaded model is, in one record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from bitnet import html
from bitnet.config import ModelConfig, Numerics
from bitnet.gguf import GGUF
from bitnet.model import Network
from bitnet.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model is and how it runs.

    Attributes:
        path: The file or folder.
        n_bytes: Its size.
        config: Its hyper-parameters.
        parameters: Weights, all tensors together.
        tensor_types: How many tensors there are of each type.
        bytes_per_token: Weight bytes read for one token.
        numerics: What it computes in.
        device: The kernels it runs on.
        threads: How many.
        notices: What its user should know about how it was read.
    """

    path: str
    n_bytes: int
    config: ModelConfig
    parameters: int
    tensor_types: Mapping[str, int]
    bytes_per_token: int
    numerics: Numerics
    device: str
    threads: int
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "path": self.path,
            "n_bytes": self.n_bytes,
            "config": asdict(self.config),
            "parameters": self.parameters,
            "tensor_types": dict(self.tensor_types),
            "bytes_per_token": self.bytes_per_token,
            "numerics": self.numerics.to_dict(),
            "device": self.device,
            "threads": self.threads,
            "notices": list(self.notices),
        }

    def rows(self) -> dict[str, str]:
        """The same for a reader."""
        c = self.config
        heads = f"{c.n_head} query heads, {c.n_head_kv} key heads, width {c.head_dim}"
        rotary = c.rope_style.replace("_", " ")
        rows = {
            "file": f"{self.path}, {self.n_bytes / 1e6:.1f} MB",
            "architecture": f"{c.arch}: {c.activation} ({c.activation_source}), rotary {rotary}",
            "parameters": f"{self.parameters:,}",
            "layers": f"{c.n_layer} × ({heads}; n_embd {c.n_embd}, n_ff {c.n_ff})",
            "vocabulary": f"{c.n_vocab}, head {'tied to the embedding' if c.tied_head else 'of its own'}",
            "context": f"{c.n_ctx} tokens, rope_theta {c.rope_theta:g}, rms_eps {c.rms_eps:g}",
            "tensors": ", ".join(f"{n} {name}" for name, n in self.tensor_types.items()),
            "weights": f"{self.bytes_per_token / 1e6:.1f} MB read for each token",
            "numerics": ", ".join(f"{k} {v}" for k, v in self.numerics.to_dict().items()),
            "device": f"{self.device}, {self.threads} threads",
        }
        return rows | ({"notices": "; ".join(self.notices)} if self.notices else {})

    def _repr_html_(self) -> str:
        return html.table("model", self.rows())


def describe(gguf: GGUF, weights: Weights, network: Network, notices: tuple[str, ...]) -> ModelInfo:
    """The record of a loaded model."""
    types = Counter(tensor.type.name for tensor in gguf.tensors.values())
    return ModelInfo(
        path=str(gguf.path),
        n_bytes=gguf.n_bytes,
        config=network.config,
        parameters=sum(prod(tensor.shape) for tensor in gguf.tensors.values()),
        tensor_types=dict(types.most_common()),
        bytes_per_token=weights.n_bytes,
        numerics=network.numerics,
        device=network.backend.device,
        threads=network.backend.n_threads,
        notices=notices,
    )
