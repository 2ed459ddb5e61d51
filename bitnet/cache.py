"""The KV cache: keys after rotary and values of every layer, with one position."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig, Numerics
from bitnet.errors import ResourceLimitError
from bitnet.linear import Float32, round_f16


class KVCache:
    """Keys and values of up to `n_ctx` tokens, each [n_head_kv, n_ctx, head_dim] for one layer.

    Attributes:
        keys, values: [n_layer, n_head_kv, n_ctx, head_dim], float32, or binary16 as uint16 (`Numerics.kv`).
        n_past: Tokens held; the position of the next one.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics, n_ctx: int) -> None:
        shape = (config.n_layer, config.n_head_kv, n_ctx, config.head_dim)
        dtype: type[np.generic] = np.uint16 if numerics.kv == "f16" else np.float32
        try:
            self.keys: NDArray[Any] = np.zeros(shape, dtype)
            self.values: NDArray[Any] = np.zeros(shape, dtype)
        except MemoryError as error:
            gigabytes = 2 * np.prod(shape, dtype=np.float64) * np.dtype(dtype).itemsize / 1e9
            raise ResourceLimitError(
                f"a KV cache of {n_ctx} tokens needs {gigabytes:.1f} GB", remedy="ask for a shorter context"
            ) from error
        self.n_past = 0

    @property
    def n_ctx(self) -> int:
        """Capacity, tokens."""
        return int(self.keys.shape[2])

    def reserve(self, n_token: int) -> int:
        """The position where `n_token` more tokens begin. Raises `ResourceLimitError` if they do not fit."""
        if self.n_past + n_token > self.n_ctx:
            raise ResourceLimitError(
                f"{self.n_past} + {n_token} tokens exceed the context of {self.n_ctx}",
                remedy="shorten the prompt, ask for fewer tokens, or load the model with a larger n_ctx",
            )
        return self.n_past

    def put(self, il: int, k: Float32, v: Float32) -> None:
        """Store keys and values [n_token, n_head_kv · head_dim] of layer `il` at the current position."""
        for store, new in ((self.keys, k), (self.values, v)):
            heads = new.reshape(new.shape[0], store.shape[1], store.shape[3]).transpose(1, 0, 2)
            if store.dtype == np.uint16:
                heads = round_f16(heads).view(np.uint16)
            store[il, :, self.n_past : self.n_past + new.shape[0]] = heads

    def truncate(self, n_past: int) -> None:
        """Forget everything from position `n_past` on."""
        self.n_past = min(self.n_past, max(n_past, 0))
