"""What the compiled pass needs of a network, laid out once; and the threads that run it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig, Numerics
from bitnet.kernels import barrier, graph, row_tiles
from bitnet.kernels.variants import TILE_COLUMNS, Variant
from bitnet.linear import Backend, Float32, TernaryMatrix
from bitnet.weights import Weights

if TYPE_CHECKING:
    from bitnet.model import Segment


class CompiledLayers:
    """All layers of a network in one call.

    Raises:
        ValueError: `suits` said no.
    """

    def __init__(self, config: ModelConfig, weights: Weights, backend: Backend, numerics: Numerics, v: Variant) -> None:
        self.config, self.backend, self.numerics, self.variant = config, backend, numerics, v
        matrices = [list(layer.projections()) for layer in weights.layers]
        self._tiles = [[row_tiles.pack(m.codes, v.layout, n_threads=backend.n_threads) for m in layer] for layer in matrices]
        total = sum(t.data.nbytes for layer in self._tiles for t in layer)
        self._arena = row_tiles.aligned((total,), 4096)
        at = 0
        for layer in self._tiles:
            for i, t in enumerate(layer):
                part = self._arena[at : at + t.data.nbytes].reshape(t.data.shape)
                part[:] = t.data
                layer[i] = row_tiles.Tiles(data=part, n_row=t.n_row, n_col=t.n_col, layout=t.layout)
                at += t.data.nbytes
        self._addresses = np.array([[t.data.ctypes.data for t in layer] for layer in self._tiles], np.int64)
        self._shapes = np.array([[t.data.shape[:2] for t in layer] for layer in self._tiles], np.int64)
        self._scales = np.array([[m.scale for m in layer] for layer in matrices], np.float32)
        self._norms = [
            np.stack([_vector(getattr(layer, name)) for layer in weights.layers])
            for name in ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")
        ]
        c = config
        self._sizes = np.array(
            [
                c.head_dim,
                c.rope_style == "half_split",
                c.activation == "relu2",
                numerics.query == "f16",
                c.sub_norms,
            ],
            np.int64,
        )
        self._lock = Lock()

    def run(self, x: Float32, cos: Float32, sin: Float32, segments: Sequence[Segment]) -> None:
        """All layers, in place: x [T, n_embd]."""
        n_threads = self.backend.n_threads
        pool = segments[0].cache.pool
        width = max(len(s.cache.pages) for s in segments)
        tables = np.full((len(segments), width), -1, np.int32)
        for row, s in zip(tables, segments, strict=True):
            row[: len(s.cache.pages)] = s.cache.pages
        round_probs = [
            self.numerics.probs == "f16" or (self.numerics.probs == "f16_decode" and s.n_token == 1) for s in segments
        ]
        arguments = (
            self._sizes,
            np.float32(self.config.rms_eps),
            np.float32(1.0 / math.sqrt(self.config.head_dim)),
            self._addresses,
            self._shapes,
            self._scales,
            *self._norms,
            cos,
            sin,
            np.array([*(s.begin for s in segments), len(x)], np.int64),
            np.array([s.cache.n_past for s in segments], np.int64),
            np.array(round_probs),
            tables,
            pool.keys,
            pool.values,
            *self._scratch(len(x), n_threads),
            x,
        )
        with self._lock:
            state = barrier.new_barrier()
            self.backend.together(
                lambda thread, n: graph.layers(self.variant, thread, n, state, *arguments),
            )

    def _scratch(self, n_token: int, n_threads: int) -> list[NDArray[Any]]:
        c = self.config
        rows = max(n_token, n_threads)
        made: list[NDArray[Any]] = []
        for n in (c.n_embd, c.n_q, c.n_ff):
            made += [np.empty((rows, n), np.float32), np.zeros((rows, self._padded(n)), np.int8)]
        made += [np.empty(rows, np.float32), np.empty(rows, np.int32)]
        widths = (c.n_q, c.n_kv, c.n_kv, c.n_q, c.n_ff, c.n_ff, c.n_ff, c.n_embd)
        return [*made, *(np.empty((n_token, n), np.float32) for n in widths)]

    def _padded(self, n: int) -> int:
        columns = TILE_COLUMNS[self.variant.layout]
        return -(-n // columns) * columns


def _vector(norm: Float32 | None) -> Float32:
    return np.empty(0, np.float32) if norm is None else norm


def suits(weights: Weights, numerics: Numerics) -> bool:
    """Whether every projection is ternary with one scale, and activations are int8 by token."""
    return numerics.activation == "int8_token" and all(
        isinstance(m, TernaryMatrix) and m.block_scale is None and m.width == m.n_col for m in weights.projections()
    )
