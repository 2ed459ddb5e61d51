"""The operations of a transformer in plain float64 numpy: what the oracle computes, one at a time.

Every sum (of squares, of a dot product, of a softmax) is float64, so no order of summation is preferred. What every
engine stores in float32 is stored in float32: the factor of a norm and its two multiplications, the activation before
it meets `up`, the rotary table, and a product with int8 activations, (Σ / s) · scale, whose Σ is an exact integer.
Without these declared roundings a norm differs from every engine by one unit in the last place in half of its values,
and int8 quantisation turns about one in 10⁵ of those into a difference of 10⁻².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reference import rounding
from reference.activations import ACTIVATIONS
from reference.contract import PROJECTIONS, HyperParameters
from reference.decode import Matrix
from reference.graph import sources
from reference.matrices import Matrices
from reference.runner import ReferenceUnavailableError, TapKey
from reference.semantics import Semantics

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Operations:
    """Every operation of one model file, as its semantics and numerics have it.

    Attributes:
        semantics: What the file means.
        numerics: Roundings by name, as `rounding.NUMERICS` lists them.
        hyper: Hyper-parameters of the file.
        absent: Taps that this model does not have.
    """

    semantics: Semantics
    numerics: Mapping[str, str]
    hyper: HyperParameters
    absent: frozenset[str]
    _weights: Matrices

    def _norm(self, x: Float64, name: str) -> Float64:
        """Squares in float32, their sum in float64, then 1/√(mean + eps), · x, · weight, each in float32."""
        s, one = self.semantics, np.float32(1)
        weight = self._weights[f"{name}.weight"].values.reshape(-1).astype(np.float32)
        weight = {"multiply": weight, "ignore": np.ones_like(weight), "plus_one": one + weight}[s.norm_weight]
        if s.norm == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        x32 = x.astype(np.float32)
        mean = self._mean_square(x32)
        if s.norm == "l2":
            mean = mean * np.float32(x.shape[-1])
        eps = self.hyper.rms_eps
        factor = one / (np.sqrt(mean) + eps if s.norm_eps == "outside" else np.sqrt(mean + eps))
        return _round(x32 * factor * weight, s.norm_type)

    def _mean_square(self, x: Float32) -> Float32:
        """Over the last axis, kept."""
        mean: Float32 = (x * x).mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        return mean

    def _project(self, x: Float64, il: int, tap: str) -> Float32:
        """One of the seven quantised projections. x: [T, K] → [T, rows] f32."""
        w, s, kind = self._weights[f"blk.{il}.{PROJECTIONS[tap]}.weight"], self.semantics, self.numerics["activation"]
        x32 = x.astype(np.float32)
        if not s.activation_quantised or kind == "none":
            y = self._product(w, x).astype(np.float32)
        elif kind in rounding.INT8_TOKEN:
            q, divisor = rounding.int8_token(x32, s, kind)
            y = self._divided(rounding.wrapped(self._product(w, q), s.accumulator), divisor)
        elif kind in rounding.BLOCK:
            q, d = rounding.int8_blocks(self._blocked(x32, kind), kind, s)
            y = self._product(w, (q * d).reshape(x.shape)).astype(np.float32)  # an int8 times a float32 is exact here
        else:
            y = self._product(w, rounding.float_type(x32, kind).astype(np.float64)).astype(np.float32)
        y = w.scaled(y, s)
        if s.projections == "empty":
            return np.zeros_like(y)
        if s.batch_rows is not None and len(y) > 1:
            y[s.batch_rows :] = 0.0
        return y

    @staticmethod
    def _blocked(x: Float32, kind: str) -> Float32:
        if x.shape[-1] % rounding.BLOCK[kind]:
            raise ReferenceUnavailableError(
                f"{kind} needs rows of a multiple of {rounding.BLOCK[kind]}, not {x.shape[-1]}"
            )
        return x

    def _rotate(self, x: Float64, positions: NDArray[np.int64]) -> Float64:
        """x: [T, heads · head_dim] → the same, rotated."""
        d, s = self.hyper.head_dim, self.semantics
        heads = x.reshape(len(x), -1, d)
        turned = 2 * round(s.rope_share * d / 2)
        angles = rounding.rope_angles(positions, turned, self.hyper.rope_theta, self.numerics["rope"])
        angles = angles * (s.rope_position_factor * s.rope_direction)
        cos, sin = _round(np.cos(angles), "f32")[:, None, :], _round(np.sin(angles), "f32")[:, None, :]
        if self.hyper.rope_style == "half_split":
            first, second = slice(0, turned // 2), slice(turned // 2, turned)
        else:
            first, second = slice(0, turned, 2), slice(1, turned, 2)
        out = heads.copy()
        out[..., first] = heads[..., first] * cos - heads[..., second] * sin
        out[..., second] = heads[..., first] * sin + heads[..., second] * cos
        return out.reshape(x.shape)

    def attention_scores(self, q: Float64, k: Float64, start: int) -> Float64:
        """Query · key / √d, −∞ where masked. q: [T, n_q], k: [S, n_kv] → [n_head, T, S]; q[0] is at `start`."""
        queries = q.reshape(len(q), self.hyper.n_head, -1).transpose(1, 0, 2)  # [n_head, T, d]
        keys = self.per_query_head(k).transpose(0, 2, 1)  # [n_head, d, S]
        scores = queries @ keys
        scores *= self.semantics.attention_scale_factor / np.sqrt(self.hyper.head_dim)  # in the width that q and k have
        behind = start + np.arange(len(q))[:, None] - np.arange(len(k))  # [T, S] tokens from key to query
        if self.semantics.causal:
            scores[:, behind < -self.semantics.mask_offset] = -np.inf
        if self.semantics.window is not None:
            scores[:, behind >= self.semantics.window] = -np.inf
        masked: Float64 = scores
        return masked

    def attention_probabilities(self, q: Float64, k: Float64, start: int) -> Float64:
        """Softmax of the scores, shapes as there."""
        scores = self.attention_scores(q, k, start)
        p: Float64 = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return p

    def _attend(self, q: Float64, k: Float64, v: Float64, start: int) -> Float64:
        """q: [T, n_q], k and v: [S, n_kv] as cached → [T, n_q]."""
        p = self.attention_probabilities(_round(q, self.numerics["query"]), k, start)
        p = _round(p, self._when_single(self.numerics["probs"], len(q)))
        out: Float64 = p @ self.per_query_head(v)  # [n_head, T, d]
        return out.transpose(1, 0, 2).reshape(len(q), -1)

    def per_query_head(self, cached: Float64) -> Float64:
        """The key or value head that each query head uses. [S, n_kv] → [n_head, S, d]."""
        h, n_kv = np.arange(self.hyper.n_head), self.hyper.n_head_kv
        use = {"block": h // (self.hyper.n_head // n_kv), "stride": h % n_kv, "first": 0 * h}[
            self.semantics.head_grouping
        ]
        return cached.reshape(len(cached), n_kv, -1).transpose(1, 0, 2)[use]

    def _activate(self, gate: Float64) -> Float64:
        return _round(ACTIVATIONS[self.hyper.activation](gate), "f32")

    def _gated(self, gate: Float64, up: Float64) -> Float64:
        if self.semantics.gating == "swapped":
            gate, up = up, gate
        act = self._activate(gate)
        return _round(act if self.semantics.gating == "none" else act * up, self.semantics.ffn_type)

    def _embed(self, ids: NDArray[np.int64]) -> Float64:
        table = self._weights["token_embd.weight"].values
        read = (ids + self.semantics.token_offset) % len(table)
        return table[read].astype(np.float64) * self.semantics.embedding_scale

    def _head(self, x: Float64) -> Float64:
        """x: [T, n_embd] → [T, n_vocab]."""
        x = _round(x, self._when_single(self.numerics["head"], len(x)))
        logits, cap = (
            self._product(self._weights[self.hyper.head], x) * self.semantics.logit_scale,
            self.semantics.logit_softcap,
        )
        return logits if cap is None else cap * np.tanh(logits / cap)

    # How a sum is ordered and a quotient is written is each engine's own; the oracle does neither in float32.

    def _product(self, w: Matrix, x: Float64) -> Float64:
        return w.product(x)

    def _divided(self, sums: Float64, divisor: Float32) -> Float32:
        return sums.astype(np.float32) / divisor

    @staticmethod
    def _when_single(kind: str, n_token: int) -> str:
        return kind if not kind.endswith("_decode") else "f16" if n_token == 1 else "f32"

    def inputs(self, key: TapKey) -> tuple[TapKey, ...]:
        """The taps that an operation reads."""
        return sources(key, self.hyper.n_layer, self.semantics, self.absent)

    def operation(
        self, key: TapKey, inputs: Sequence[Float64], ids: NDArray[np.int64], start: int
    ) -> Float64 | Float32:
        """One operation on tokens `ids`, which are at positions start, start + 1, ….

        Args:
            key: Which.
            inputs: Values of the taps that `inputs` names, [T, width]; for `kqv_out` the keys and values of all
                positions so far, rounded as they are cached.
            ids: The tokens evaluated together.
            start: Position of the first.
        """
        tap, il = key
        if tap == "embd":
            return self._embed(ids)
        if tap == "result_norm":
            return self._norm(inputs[0], "output_norm")
        if tap.endswith("norm"):
            return self._norm(inputs[0], f"blk.{il}.{tap}")
        if tap in PROJECTIONS:
            return self._project(inputs[0], il, tap)
        if tap in ("q_rope", "k_rope"):
            target = self.semantics.rope_target
            positions = np.arange(start, start + len(ids)) + self.semantics.position_offset
            turned = target == "qk" or (target == "q" and tap == "q_rope")
            return self._rotate(inputs[0], positions) if turned else inputs[0]
        if tap == "kqv_out":
            q, k, v = inputs
            return self._attend(q, k, v, start)
        if tap == "ffn_act":
            return self._gated(inputs[0], inputs[1])
        if tap == "result_output":
            return self._head(inputs[0])
        x, branch = inputs  # ffn_inp, l_out
        return _round(branch if self.semantics.residual == "none" else x + branch, self.semantics.residual_type)

    def cached(self, value: Float64) -> Float64:
        """Keys or values as the cache holds them."""
        return _round(value, self.numerics["kv"])

    def matrix(self, name: str) -> Matrix:
        """A tensor of the model as this oracle understands it, its scales beside it."""
        return self._weights[name]

    def integer_sums(self, tap: str, layer: int, x: Float32) -> NDArray[np.int64]:
        """The exact ternary × int8 sums of one projection, before any scale.

        Args:
            tap: `q`, `k`, `v`, `attn_out`, `ffn_gate`, `ffn_up` or `ffn_down`.
            layer: Its layer.
            x: [T, K] f32, the projection's input.

        Returns:
            [T, rows] for the int8 quantisers; [T, rows, K / block] for the block quantisers, one sum a block.

        Raises:
            ReferenceUnavailableError: The weights are not ternary or the numerics quantise to no integers.
        """
        w, kind = self._weights[f"blk.{layer}.{PROJECTIONS[tap]}.weight"], self.numerics["activation"]
        if not w.ternary or kind not in (*rounding.INT8_TOKEN, *rounding.BLOCK):
            raise ReferenceUnavailableError(f"{tap} of layer {layer} has no integer sums (activation {kind})")
        if kind in rounding.INT8_TOKEN:
            q, _ = rounding.int8_token(x, self.semantics, kind)
            bare = replace(w, block_scale=None)  # integers below 2⁵³ are exact in float64, in any order
            return bare.product(q).astype(np.int64)
        trits = w.values.astype(np.int64)
        q, _ = rounding.int8_blocks(self._blocked(x, kind), kind, self.semantics)
        blocked = trits.reshape(len(trits), -1, rounding.BLOCK[kind])
        sums: NDArray[np.int64] = np.einsum("tbk,rbk->trb", q.astype(np.int64), blocked)
        return sums


def _round(x: Float64, kind: str) -> Float64:
    return rounding.float_type(x, kind).astype(np.float64)
