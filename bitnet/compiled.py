"""What the compiled pass needs of a network, laid out once; and the threads that run it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bitnet.config import ModelConfig, Numerics
from bitnet.kernels.alignment import aligned
from bitnet.kernels.ledger import KernelUse
from bitnet.kernels.variants import TILES
from bitnet.linear import Backend, Float32, TernaryMatrix
from bitnet.weights import Weights

if TYPE_CHECKING:
    from bitnet.model import Segment


class CompiledLayers:
    """All layers of a network in one call; see `compile_layers`."""

    def __init__(self, config: ModelConfig, weights: Weights, backend: Backend, numerics: Numerics) -> None:
        from bitnet.kernels import graph  # numba, which a caller that only looks at a file need not load

        self.config, self.backend, self.numerics = config, backend, numerics
        matrices = [[m for m in layer.projections() if isinstance(m, TernaryMatrix)] for layer in weights.layers]
        self._tiles = [[m.tiles for m in layer] for layer in matrices]  # what the addresses point into
        first = matrices[0]
        self._padded = tuple(m.tiles.width for m in (first[graph.Q], first[graph.O], first[graph.DOWN]))
        self._most_tiles = max(t.data.shape[1] for t in self._tiles[0])  # along the columns
        self._addresses = np.array([t.data.ctypes.data for layer in self._tiles for t in layer], np.int64)
        self._shapes = np.array(
            [[(*m.tiles.data.shape[:2], m.n_row) for m in layer] for layer in matrices], np.int64
        ).reshape(-1)
        self._scales = np.array([m.scale for layer in matrices for m in layer], np.float32)
        self._norms = [
            np.concatenate([_vector(getattr(layer, name)) for layer in weights.layers])
            for name in ("attn_norm", "attn_sub_norm", "ffn_norm", "ffn_sub_norm")
        ]
        self._sizes = np.zeros(graph.N_SIZE, np.int64)
        for index, value in {
            graph.N_LAYER: config.n_layer,
            graph.N_EMBD: config.n_embd,
            graph.N_Q: config.n_q,
            graph.N_KV: config.n_kv,
            graph.N_FF: config.n_ff,
            graph.HEAD_DIM: config.head_dim,
            graph.HALF_SPLIT: config.rope_style == "half_split",
            graph.RELU2: config.activation == "relu2",
            graph.ROUND_QUERY: numerics.query == "f16",
        }.items():
            self._sizes[index] = value
        self._lock = Lock()
        self._uses: dict[KernelUse, tuple[int, int, int]] = {}  # calls, rows of one token, bytes
        for m in weights.projections():
            use = KernelUse(
                kernel=f"{backend.device}.ternary_int8_token.int8_token",
                role="projection",
                weight_type=m.type_name,
                isa=backend.variant.isa,
            )
            calls, rows, n_bytes = self._uses.get(use, (0, 0, 0))
            self._uses[use] = calls + 1, rows + m.n_row, n_bytes + m.n_bytes
        self._kept: tuple[list[NDArray[Any]], int] = [], 0
        self._kept_for = (0, 0)  # tokens and threads

    def run(self, x: Float32, cos: Float32, sin: Float32, segments: Sequence[Segment]) -> None:
        """All layers, in place: x [T, n_embd]."""
        n_threads = self.backend.n_threads
        width = max(len(s.cache.pages) for s in segments)
        tables = np.full((len(segments), width), -1, np.int32)
        for row, s in zip(tables, segments, strict=True):
            row[: len(s.cache.pages)] = s.cache.pages
        round_probs = [
            self.numerics.probs == "f16" or (self.numerics.probs == "f16_decode" and s.n_token == 1) for s in segments
        ]
        with self._lock:
            self._run(x, cos, sin, segments, tables, np.array(round_probs), n_threads)
        for use, (calls, rows, n_bytes) in self._uses.items():
            self.backend.ledger.add(use, rows=rows * len(x), n_bytes=n_bytes, calls=calls)

    def _run(
        self,
        x: Float32,
        cos: Float32,
        sin: Float32,
        segments: Sequence[Segment],
        tables: NDArray[np.int32],
        round_probs: NDArray[np.bool_],
        n_threads: int,
    ) -> None:
        from bitnet.kernels import barrier, graph

        pool = segments[0].cache.pool
        scratch, table_bytes = self._scratch(len(x), n_threads)
        sizes = self._sizes.copy()
        _, sizes[graph.N_PAGE], _, sizes[graph.PAGE], _ = pool.keys.shape
        sizes[graph.N_ENTRY], sizes[graph.TABLE_BYTES] = tables.shape[1], table_bytes
        arguments = (
            sizes,
            np.float32(self.config.rms_eps),
            np.float32(1.0 / math.sqrt(self.config.head_dim)),
            self._addresses,
            self._shapes,
            self._scales,
            *self._norms,
            cos.reshape(-1),
            sin.reshape(-1),
            np.array([*(s.begin for s in segments), len(x)], np.int64),
            np.array([s.cache.n_past for s in segments], np.int64),
            round_probs,
            tables.reshape(-1),
            pool.keys.reshape(-1),
            pool.values.reshape(-1),
            *scratch,
            x.reshape(-1),
        )
        state, counters = barrier.new_barrier(n_threads), barrier.new_counters(self._addresses.size)
        self.backend.together(
            lambda thread, n: graph.layers(self.backend.variant, thread, n, state, counters, *arguments),
            lambda: barrier.give_up(state),
        )

    def _product_shapes(self, n_token: int, rows: int) -> tuple[tuple[int, int], int]:
        """What products need: `ternary.inputs_shape` and `ternary.n_sums`, which are compiled for kernels alone."""
        from bitnet.kernels import by_tokens, strategies, ternary

        variant = self.backend.variant
        packed, tile = strategies.of(variant)[0], TILES[variant.layout]
        if n_token <= ternary.DIRECT:
            return (rows, packed.table_bytes * self._most_tiles), ternary.SUMS
        if by_tokens.has_triples(packed) and n_token > by_tokens.ENOUGH:
            blocks = -(-n_token // by_tokens.BLOCK)
            return (blocks * by_tokens.BLOCK, tile.columns * self._most_tiles), by_tokens.SUMS
        return (rows, 0), ternary.SUMS

    def _scratch(self, n_token: int, n_threads: int) -> tuple[list[NDArray[Any]], int]:
        """Room for all intermediates, the last pass's if it had as many tokens; and the bytes of a token's tables."""
        if self._kept_for == (n_token, n_threads):
            return self._kept
        from bitnet.kernels import ternary

        c = self.config
        rows = max(n_token, n_threads)
        inputs, n_sums = self._product_shapes(n_token, rows)
        made = [aligned((n_threads, ternary.DIGITS), np.int8), aligned((n_threads, n_sums), np.int32)]
        for n, padded in zip((c.n_embd, c.n_q, c.n_ff), self._padded, strict=True):
            made += [aligned((rows, n), np.float32), aligned((rows, padded), np.int8, zeros=True)]
        made.append(aligned(inputs, np.int8))
        made += [np.empty(rows, np.float32), np.empty(rows, np.int32)]
        widths = (c.n_q, c.n_kv, c.n_kv, c.n_q, c.n_ff, c.n_ff, c.n_ff, c.n_embd)
        made += [aligned((n_token, n), np.float32) for n in widths]
        self._kept, self._kept_for = ([a.reshape(-1) for a in made], inputs[1]), (n_token, n_threads)
        return self._kept


def _vector(norm: Float32 | None) -> Float32:
    return np.empty(0, np.float32) if norm is None else norm


class AheadOfTime:
    """A thread that compiles what a network will need, or fetches it from the cache of compiled code.

    What goes wrong there goes wrong again where it is needed, and is told there.
    """

    def __init__(self, weights: Weights, backend: Backend, numerics: Numerics) -> None:
        wanted = _suit(weights, backend, numerics)
        self._thread = Thread(target=self._run, args=(backend, numerics), name="bitnet-compile") if wanted else None

    def start(self) -> None:
        """Begin, if that has not been done."""
        if self._thread is not None and self._thread.ident is None:
            self._thread.start()

    def join(self) -> None:
        """Wait until it is done."""
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def _run(self, backend: Backend, numerics: Numerics) -> None:
        with contextlib.suppress(Exception):
            _pass_of_nothing(backend, numerics)


def _pass_of_nothing(backend: Backend, numerics: Numerics) -> None:
    """A call of the compiled pass with no layers, which compiles it for arrays of the types that it is called with."""
    from bitnet.kernels import barrier, graph

    def zeros(*dtypes: DTypeLike) -> list[NDArray[Any]]:
        return [np.zeros(1, dtype) for dtype in dtypes]

    f32, i8, i32, i64 = np.float32, np.int8, np.int32, np.int64
    sizes = np.ones(graph.N_SIZE, np.int64)
    sizes[graph.N_LAYER] = 0
    stored = np.uint16 if numerics.kv == "f16" else f32
    graph.layers(
        backend.variant, 0, 1, barrier.new_barrier(1), barrier.new_counters(1), sizes, f32(1), f32(1),
        *zeros(i64, i64, f32, *4 * [f32], f32, f32, i64, i64, np.bool_, i32, stored, stored),
        *zeros(i8, i32, *3 * [f32, i8], i8, f32, i32, *8 * [f32], f32),
    )  # fmt: skip


def compile_layers(
    config: ModelConfig, weights: Weights, backend: Backend, numerics: Numerics
) -> CompiledLayers | None:
    """All layers as one call, or None where they do not suit it.

    They do on the CPU, where every projection is ternary with one scale and activations are int8 by token.
    """
    packed = all(
        isinstance(m, TernaryMatrix) and m.tiles.layout == backend.variant.layout for m in weights.projections()
    )
    return CompiledLayers(config, weights, backend, numerics) if packed and _suit(weights, backend, numerics) else None


def _suit(weights: Weights, backend: Backend, numerics: Numerics) -> bool:
    """Whether all layers can be one call, once weights are packed."""
    return (
        backend.device == "cpu"
        and numerics.activation == "int8_token"
        and all(isinstance(m, TernaryMatrix) and m.block_scale is None for m in weights.projections())
    )
