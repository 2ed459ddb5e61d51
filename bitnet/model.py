"""The whole model, read top to bottom: `forward` is the graph; the rest holds what it needs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from bitnet.cache import KVCache
from bitnet.cache_pool import KVPool, pages_for
from bitnet.compiled import CompiledLayers, compile_layers
from bitnet.config import ModelConfig, Numerics
from bitnet.errors import ModelFileError, UsageError
from bitnet.gguf import GGUF
from bitnet.kernels.ledger import KernelUse
from bitnet.linear import Activations, Backend, DenseMatrix, Float32, Int8Matrix, Matrix, head_rounding, round_f16
from bitnet.rope import rotary_tables
from bitnet.screen import Screen, top
from bitnet.screen import build as build_screen
from bitnet.weights import Layer, Weights

#: Sees (and may replace) every intermediate: (name, layer or −1, value [n_token, width]) -> value.
Tap = Callable[[str, int, Float32], Float32]


#: Rows of logits that are screened together, in half the time of computing all of them. Each needs room for its bounds.
MAX_SCREENED = 32
#: Largest logits that are worth screening for.
MAX_TOP = 1024


def keep(_name: str, _layer: int, value: Float32) -> Float32:
    """The tap that changes nothing."""
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens of one sequence in a pass: rows [begin, end) of every intermediate, at `position` and after."""

    tokens: NDArray[np.int64]
    cache: KVCache
    position: int
    begin: int
    end: int

    @property
    def n_token(self) -> int:
        """How many."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Logits of some tokens: all of them (`ids` is None), or the largest, by falling logit."""

    ids: NDArray[np.int64] | None
    logits: Float32


@dataclass(slots=True, kw_only=True)
class Network:
    """A model's weights on a backend, with the numerics it computes in.

    Attributes:
        release: Gives back pages of its file.
        check_unchanged: Raises `ModelFileError` once its file was written to: passes read the embedding, the head and
            float projections where the file is mapped, and with the kernels of numpy ternary ones too.
        screened: Whether the largest logits may be found by bounds; to be set before they are first asked for.
    """

    config: ModelConfig
    weights: Weights
    backend: Backend
    numerics: Numerics = field(default_factory=Numerics)
    release: Callable[[], None] = lambda: None
    check_unchanged: Callable[[], None] = lambda: None
    screened: bool = True
    _compiled: CompiledLayers | None = None
    _screen: Screen | None = None
    _prepared: set[str] = field(default_factory=set)
    _preparing: Lock = field(default_factory=Lock)

    @property
    def compiled(self) -> CompiledLayers | None:
        """All layers in one compiled call, where weights and numerics allow it; made when it is first asked for."""
        with self._preparing:
            if "layers" not in self._prepared:
                self._compiled = compile_layers(self.config, self.weights, self.backend, self.numerics)
                self._prepared.add("layers")
            return self._compiled

    @property
    def screen(self) -> Screen | None:
        """The output head as small integers that bound it, where it has such; made when it is first asked for."""
        with self._preparing:
            if "screen" not in self._prepared:
                self._screen = build_screen(self.weights.head, self.backend) if self.screened else None
                self.release()  # every row was read once, and few will be again
                self._prepared.add("screen")
            return self._screen

    def new_cache(self, n_ctx: int | None = None) -> KVCache:
        """An empty KV cache for `n_ctx` tokens (default: the trained context), in a pool of its own."""
        n_ctx = n_ctx or self.config.n_ctx
        return KVCache(KVPool(self.config, self.numerics, pages_for(n_ctx)), n_ctx)

    def forward(self, ids: Sequence[int], cache: KVCache, *, tap: Tap = keep, last_only: bool = False) -> Float32:
        """Logits [n_token, n_vocab] after each token ([1, n_vocab] after the last, with `last_only`).

        The tokens take the positions from `cache.position` on, and the cache advances.

        Raises:
            UsageError: No tokens, or an id outside the vocabulary.
            ResourceLimitError: The context is full.
        """
        return self.forward_batch([(ids, cache)], tap=tap, last_only=last_only)[0]

    @np.errstate(over="ignore", invalid="ignore")  # NaN and infinity travel to the logits; the sampler refuses them
    def forward_batch(
        self, batch: Sequence[tuple[Sequence[int], KVCache]], *, tap: Tap = keep, last_only: bool = False
    ) -> list[Float32]:
        """Logits of independent sequences, evaluated together: for each what `forward` gives, to the bit.

        A tap sees the tokens of all sequences, one sequence after another.
        """
        segments = self._segments(batch)
        x = self._graph(segments, tap)
        last = [s.end - 1 for s in segments]
        x = x[last] if last_only else x
        lengths = [s.n_token for s in segments for _ in range(1 if last_only else s.n_token)]
        logits = tap("result_output", -1, self._head(x, lengths))
        self.backend.ledger.add_pass(tokens=segments[-1].end, head_rows=len(logits))
        if last_only:
            return [logits[i : i + 1] for i in range(len(segments))]
        return [logits[s.begin : s.end] for s in segments]

    @np.errstate(over="ignore", invalid="ignore")
    def forward_top(
        self, batch: Sequence[tuple[Sequence[int], KVCache]], counts: Sequence[Sequence[int | None]]
    ) -> list[list[Candidates]]:
        """The largest logits after the last tokens of each sequence: exactly those of `forward_batch`.

        Args:
            batch: As for `forward_batch`.
            counts: For each sequence, for each of its last tokens, how many of the largest; None for all.
        """
        segments = self._segments(batch)
        x = self._graph(segments, keep)
        rows = [s.end - len(wanted) + i for s, wanted in zip(segments, counts, strict=True) for i in range(len(wanted))]
        lengths = [s.n_token for s, wanted in zip(segments, counts, strict=True) for _ in wanted]
        found = iter(self._top(x[rows], lengths, [k for wanted in counts for k in wanted]))
        self.backend.ledger.add_pass(tokens=segments[-1].end, head_rows=len(rows))
        return [[next(found) for _ in wanted] for wanted in counts]

    def _top(self, x: Float32, lengths: Sequence[int], counts: Sequence[int | None]) -> list[Candidates]:
        """The largest logits of each row of x, screened where that is proven and pays."""
        few = [k for k in counts if k is not None and k <= MAX_TOP]
        built = "screen" in self._prepared or max(lengths) == 1  # the first token does not wait for it
        screen = self.screen if built and len(few) == len(counts) <= MAX_SCREENED else None
        roundings = {head_rounding(self.numerics, n) for n in lengths}
        if screen is None or len(roundings) > 1:
            return [Candidates(ids=None, logits=row) for row in self._head(x, lengths)]
        (rounding,) = roundings
        best = top(screen, self.backend.activations(x).rounded(rounding), few, self.backend)
        head = self.weights.head
        use = KernelUse(
            kernel=f"{self.backend.device}.screen.{rounding}",
            role="head",
            weight_type=head.type_name,
            isa=self.backend.variant.isa,
        )
        n_bytes = screen.n_bytes + sum(b.n_bytes for b in best)
        self.backend.ledger.add(use, rows=len(best) * head.n_row, n_bytes=n_bytes)
        return [Candidates(ids=b.ids, logits=b.logits) for b in best]

    @np.errstate(over="ignore", invalid="ignore")
    def hidden(self, ids: Sequence[int], cache: KVCache) -> Float32:
        """States after the last norm, [n_token, n_embd] f32: what the head would turn into logits. As `forward`."""
        x = self._graph(self._segments([(ids, cache)]), keep)
        self.backend.ledger.add_pass(tokens=len(x), head_rows=0)
        return x

    def _graph(self, segments: Sequence[Segment], tap: Tap) -> Float32:
        """The layers: states after the last norm, [T, n_embd] of all tokens of all segments."""
        w = self.weights
        tokens = np.concatenate([s.tokens for s in segments])
        tables = [rotary_tables(self.config, self.numerics, s.position, s.n_token, w.rope_factors) for s in segments]
        cos, sin = (np.concatenate(parts) for parts in zip(*tables, strict=True))

        x = tap("embd", -1, _rows(w.embd, tokens))  # [T, n_embd]
        one_pool = len({id(s.cache.pool) for s in segments}) == 1
        compiled = self.compiled if tap is keep and one_pool else None
        if compiled is not None:
            compiled.run(x, cos, sin, segments)
        else:
            for il, layer in enumerate(w.layers):
                x = self._layer(il, layer, x, cos, sin, segments, tap)
        for s in segments:
            s.cache.advance(s.tokens)
        return tap("result_norm", -1, self._norm(x, w.output_norm))

    def _layer(
        self, il: int, layer: Layer, x: Float32, cos: Float32, sin: Float32, segments: Sequence[Segment], tap: Tap
    ) -> Float32:
        """One layer: x [T, n_embd] before it to after it."""
        h = tap("attn_norm", il, self._norm(x, layer.attn_norm))
        a = self.backend.activations(h)
        q = tap("q", il, self._project(layer.q, a))  # [T, n_head · head_dim]
        k = tap("k", il, self._project(layer.k, a))  # [T, n_head_kv · head_dim]
        v = tap("v", il, self._project(layer.v, a))
        q = tap("q_rope", il, self._rotate(q, cos, sin))
        k = tap("k_rope", il, self._rotate(k, cos, sin))
        h = tap("kqv_out", il, self._attend(q, k, v, segments, il))
        if layer.attn_sub_norm is not None:
            h = tap("attn_sub_norm", il, self._norm(h, layer.attn_sub_norm))
        h = tap("attn_out", il, self._project(layer.o, self.backend.activations(h)))
        x = tap("ffn_inp", il, x + h)

        h = tap("ffn_norm", il, self._norm(x, layer.ffn_norm))
        a = self.backend.activations(h)
        gate = tap("ffn_gate", il, self._project(layer.gate, a))  # [T, n_ff]
        up = tap("ffn_up", il, self._project(layer.up, a))
        h = tap("ffn_act", il, self._gated(gate, up))
        if layer.ffn_sub_norm is not None:
            h = tap("ffn_sub_norm", il, self._norm(h, layer.ffn_sub_norm))
        h = tap("ffn_down", il, self._project(layer.down, self.backend.activations(h)))
        return tap("l_out", il, x + h)

    def embed(self, ids: Sequence[int]) -> Float32:
        """Rows of the token embedding, [n_token, n_embd] f32. Raises `UsageError` for an id outside the vocabulary."""
        return _rows(self.weights.embd, self._check(ids))

    def _segments(self, batch: Sequence[tuple[Sequence[int], KVCache]]) -> list[Segment]:
        """The batch, checked, with room in every cache."""
        if not batch or len({id(cache) for _, cache in batch}) < len(batch):
            raise UsageError("a batch is of one or more sequences, each with a cache of its own")
        segments, end = [], 0
        for ids, cache in batch:
            tokens = self._check(ids)
            position = cache.reserve(len(tokens))
            begin, end = end, end + len(tokens)
            segments.append(Segment(tokens=tokens, cache=cache, position=position, begin=begin, end=end))
        return segments

    def check_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids as plain numbers. Raises `UsageError` for none, or for one that is not a token of this model."""
        return tuple(self._check(ids).tolist())

    # --- the operations: allocate, call the kernel, return --------------------------------------------------------

    def _check(self, ids: Sequence[int]) -> NDArray[np.int64]:
        if not len(ids):
            raise UsageError("there are no tokens to evaluate")
        if bool in map(type, ids):
            raise UsageError("token ids are whole numbers, not True or False")
        try:
            tokens = np.array([operator.index(i) for i in ids], np.int64)
        except (TypeError, OverflowError) as error:
            raise UsageError(f"token ids are whole numbers: {error}") from error
        if tokens.min() < 0 or tokens.max() >= self.config.n_vocab:
            bad = int(tokens[(tokens < 0) | (tokens >= self.config.n_vocab)][0])
            raise UsageError(f"token id {bad} is outside the vocabulary of {self.config.n_vocab}")
        return tokens

    def _norm(self, x: Float32, weight: Float32) -> Float32:
        out = np.empty_like(x)
        self.backend.kernels.rms_norm(x, weight, np.float32(self.config.rms_eps), out)
        return out

    def _project(self, matrix: Matrix, a: Activations) -> Float32:
        return self.backend.product(matrix, a, self.numerics.activation, "projection")

    def _rotate(self, x: Float32, cos: Float32, sin: Float32) -> Float32:
        out = np.empty_like(x)
        half_split = self.config.rope_style == "half_split"
        self.backend.kernels.rotate(x, cos, sin, self.config.head_dim, half_split, out)
        return out

    def _attend(self, q: Float32, k: Float32, v: Float32, segments: Sequence[Segment], il: int) -> Float32:
        out = np.empty_like(q)
        for s in segments:
            rows = slice(s.begin, s.end)
            s.cache.put(il, k[rows], v[rows])
            self._attend_one(q[rows], s.cache, il, out[rows])
        return out

    def _attend_one(self, q: Float32, cache: KVCache, il: int, out: Float32) -> None:
        c, n = self.config, self.numerics
        if n.query == "f16":
            q = round_f16(q).astype(np.float32)
        round_probs = n.probs == "f16" or (n.probs == "f16_decode" and len(q) == 1)
        scale = np.float32(1.0 / math.sqrt(c.head_dim))
        keys, values, pages, start = cache.keys[il], cache.values[il], cache.pages, cache.n_past
        attention = self.backend.kernels.attention
        self.backend.split(
            c.n_head,
            2 * q.size * (start + len(q)),
            lambda head, end: attention(q, keys, values, pages, start, scale, round_probs, head, end, out),
        )

    def _head(self, x: Float32, lengths: Sequence[int]) -> Float32:
        """Logits of rows that belong to passes of the given lengths, on which the rounding of the input may depend."""
        head, roundings = self.weights.head, [head_rounding(self.numerics, n) for n in lengths]
        if len(set(roundings)) == 1:
            return self.backend.product(head, self.backend.activations(x), roundings[0], "head")
        logits = np.empty((len(x), self.config.n_vocab), np.float32)
        for rounding in sorted(set(roundings)):
            rows = [i for i, r in enumerate(roundings) if r == rounding]
            logits[rows] = self.backend.product(head, self.backend.activations(x[rows]), rounding, "head")
        return logits

    def _gated(self, gate: Float32, up: Float32) -> Float32:
        out = np.empty_like(gate)
        act = self.backend.kernels.relu2_gate if self.config.activation == "relu2" else self.backend.kernels.silu_gate
        act(gate, up, out)
        return out


def _rows(embd: Matrix, tokens: NDArray[np.int64]) -> Float32:
    """Rows of the token embedding, [n_token, n_embd] f32."""
    if isinstance(embd, DenseMatrix):
        rows = embd.data[tokens]
        if rows.dtype == np.uint16:
            value = rows.view(np.float16).astype(np.float32)
        elif rows.dtype == np.int16:
            value = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            value = rows.astype(np.float32)
        return value * embd.scale if embd.scale != 1 else value
    assert isinstance(embd, Int8Matrix)  # `network` refused every other kind
    scale = np.repeat(embd.block_scale[tokens], 32, axis=1)
    return (embd.data[tokens].astype(np.float32) * scale * embd.scale).astype(np.float32)


def network(gguf: GGUF, config: ModelConfig, weights: Weights, backend: Backend, numerics: Numerics) -> Network:
    """Put the pieces together, refusing numerics that the matrices' widths do not allow."""
    if not isinstance(weights.embd, (DenseMatrix, Int8Matrix)):
        raise ModelFileError(
            f"a token embedding of type {weights.embd.type_name} is not supported",
            where=f"{gguf.path} ({weights.embd.name})",
            remedy="convert the model with its embedding in F16, BF16, F32 or Q8_0",
        )
    blocks = {"q8_k": 256, "q8_0": 32}.get(numerics.activation, 1)
    for matrix in weights.projections():
        if matrix.n_col % blocks:
            raise UsageError(
                f"numerics.activation {numerics.activation} needs rows of a multiple of {blocks}; "
                f"{matrix.name} has {matrix.n_col}",
                where=gguf.path,
            )
    return Network(
        config=config,
        weights=weights,
        backend=backend,
        numerics=numerics,
        release=gguf.release,
        check_unchanged=gguf.check_unchanged,
    )
