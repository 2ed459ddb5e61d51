"""The oracle: a transformer in plain float64 numpy, written from the papers and the formats, to judge the others by.

It shares no arithmetic with the engine and is never edited to agree with anyone. What an engine may choose is its
`numerics` (roundings); what an engine may get wrong is its `Semantics`. Every sum (of squares, of a dot product, of a
softmax) is float64, so no order of summation is preferred. What every engine stores in float32 is stored in float32:
each tap, the factor of a norm and its two multiplications, the activation before it meets `up`, the rotary table, and
a product with int8 activations, (Σ / s) · scale, whose Σ is an exact integer. Without these declared roundings a norm
differs from every engine by one unit in the last place in half of its values, and int8 quantisation turns about one
in 10⁵ of those into a difference of 10⁻².
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet import gguf as container
from reference import rounding
from reference.contract import PROJECTIONS, hyper_parameters, weight_names
from reference.decode import Matrix, decode
from reference.runner import (
    FIRST_TAPS,
    LAST_TAPS,
    LAYER_TAPS,
    Observation,
    ReferenceUnavailableError,
    Request,
    RunnerInfo,
    TapKey,
    tap_order,
)
from reference.semantics import CONTRACT, Semantics

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Tap = Callable[[str, int, NDArray[Any]], Float64]

#: Models up to this many weights are held as float64 (512 MiB); larger ones are widened product by product.
_WIDE_LIMIT = 1 << 26


def _silu(x: Float64) -> Float64:
    return x / (1.0 + np.exp(-x))  # e^−x overflows to infinity where the quotient is 0


ACTIVATIONS: dict[str, Callable[[Float64], Float64]] = {
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": _silu,
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
}


class Oracle:
    """A `Runner` in this process.

    Args:
        model: GGUF file.
        semantics: What the file means; the contract by default.
        numerics: Roundings by name, as `rounding.NUMERICS` lists them; the defaults are BitNet's own.

    Raises:
        ReferenceUnavailableError: An architecture, tensor type or tensor that the contract does not know.
        bitnet.errors.ModelFileError: The file is not a readable GGUF (from the container reader).
        ValueError: Unknown numerics.
    """

    def __init__(
        self, model: str, *, semantics: Semantics | None = None, numerics: Mapping[str, str] | None = None
    ) -> None:
        self.semantics = semantics or CONTRACT
        self.numerics = rounding.resolve(numerics)
        self._gguf = container.read(model)
        tensors = self._gguf.tensors
        self.hyper = hyper_parameters(self._gguf.metadata, tensors, self.semantics)
        wide = sum(int(np.prod(t.shape)) for t in tensors.values()) <= _WIDE_LIMIT
        names = weight_names(self.hyper, {name: t.shape for name, t in tensors.items()})
        self._weights: dict[str, Matrix] = {n: decode(self._gguf, n, self.semantics, wide=wide) for n in names}
        self.info = RunnerInfo(
            name="oracle",
            family="oracle",
            version="1",
            library_sha256=_own_sha256(),
            obtained="live",
            numerics=dict(self.numerics),
            model_sha256=self._gguf.sha256(),
            detail={"numpy": np.__version__, **{k: str(v) for k, v in self.semantics.changes().items()}},
        )

    # ---- the operations ---------------------------------------------------------------------------------------

    def _norm(self, x: Float64, name: str) -> Float64:
        """Squares in float32, their sum in float64, then 1/√(mean + eps), · x, · weight, each in float32."""
        weight = self._weights[f"{name}.weight"].values.reshape(-1).astype(np.float32)
        if self.semantics.norm == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        x32 = x.astype(np.float32)
        mean = (x32 * x32).mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        factor = np.float32(1) / np.sqrt(mean + self.hyper.rms_eps)
        y: Float64 = (x32 * factor * weight).astype(np.float64)
        return y

    def _project(self, x: Float64, il: int, tap: str) -> Float32:
        """One of the seven quantised projections. x: [T, K] → [T, rows] f32."""
        w, s, kind = self._weights[f"blk.{il}.{PROJECTIONS[tap]}.weight"], self.semantics, self.numerics["activation"]
        x32 = x.astype(np.float32)
        if not s.activation_quantised or kind == "none":
            y = w.product(x).astype(np.float32)
        elif kind in rounding.INT8_TOKEN:
            q, divisor = rounding.int8_token(x32, s, kind)
            y = w.product(q).astype(np.float32) / divisor
        elif kind in rounding.BLOCK:
            q, d = rounding.int8_blocks(self._blocked(x32, kind), kind, s)
            y = w.product((q * d).reshape(x.shape)).astype(np.float32)  # an int8 times a float32 is exact here
        else:
            y = w.product(rounding.float_type(x32, kind).astype(np.float64)).astype(np.float32)
        return w.scaled(y, s)

    @staticmethod
    def _blocked(x: Float32, kind: str) -> Float32:
        if x.shape[-1] % rounding.BLOCK[kind]:
            raise ReferenceUnavailableError(
                f"{kind} needs rows of a multiple of {rounding.BLOCK[kind]}, not {x.shape[-1]}"
            )
        return x

    def _rotate(self, x: Float64, positions: NDArray[np.int64]) -> Float64:
        """x: [T, heads · head_dim] → the same, rotated."""
        d = self.hyper.head_dim
        heads = x.reshape(len(x), -1, d)
        angles = rounding.rope_angles(positions, d, self.hyper.rope_theta, self.numerics["rope"])
        cos, sin = _round(np.cos(angles), "f32")[:, None, :], _round(np.sin(angles), "f32")[:, None, :]
        if self.hyper.rope_style == "half_split":
            first, second = slice(0, d // 2), slice(d // 2, None)
        else:
            first, second = slice(0, None, 2), slice(1, None, 2)
        out = np.empty_like(heads)
        out[..., first] = heads[..., first] * cos - heads[..., second] * sin
        out[..., second] = heads[..., first] * sin + heads[..., second] * cos
        return out.reshape(x.shape)

    def attention_probabilities(self, q: Float64, k: Float64, start: int) -> Float64:
        """Softmax of the masked scores. q: [T, n_q], k: [S, n_kv] → [n_head, T, S]; q[0] is at position `start`."""
        queries = q.reshape(len(q), self.hyper.n_head, -1).transpose(1, 0, 2)  # [n_head, T, d]
        keys = self._per_query_head(k).transpose(0, 2, 1)  # [n_head, d, S]
        scores = queries @ keys * (self.semantics.attention_scale_factor / np.sqrt(self.hyper.head_dim))
        if self.semantics.causal:
            scores[:, np.arange(len(k)) > start + np.arange(len(q))[:, None]] = -np.inf
        p: Float64 = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return p

    def _attend(self, q: Float64, k: Float64, v: Float64, start: int) -> Float64:
        """q: [T, n_q], k and v: [S, n_kv] as cached → [T, n_q]."""
        p = self.attention_probabilities(_round(q, self.numerics["query"]), k, start)
        p = _round(p, self._when_single(self.numerics["probs"], len(q)))
        out: Float64 = p @ self._per_query_head(v)  # [n_head, T, d]
        return out.transpose(1, 0, 2).reshape(len(q), -1)

    def _per_query_head(self, cached: Float64) -> Float64:
        """The key or value head that each query head uses. [S, n_kv] → [n_head, S, d]."""
        h, n_kv = np.arange(self.hyper.n_head), self.hyper.n_head_kv
        use = h // (self.hyper.n_head // n_kv) if self.semantics.head_grouping == "block" else h % n_kv
        return cached.reshape(len(cached), n_kv, -1).transpose(1, 0, 2)[use]

    def _activate(self, gate: Float64) -> Float64:
        return _round(ACTIVATIONS[self.hyper.activation](gate), "f32")

    def _head(self, x: Float64) -> Float64:
        """x: [T, n_embd] → [T, n_vocab]."""
        x = _round(x, self._when_single(self.numerics["head"], len(x)))
        return self._weights[self.hyper.head].product(x)

    @staticmethod
    def _when_single(kind: str, n_token: int) -> str:
        return kind if not kind.endswith("_decode") else "f16" if n_token == 1 else "f32"

    # ---- the forward pass -------------------------------------------------------------------------------------

    def _forward(self, ids: NDArray[np.int64], start: int, cache: list[tuple[Float64, Float64]], tap: Tap) -> Float32:
        """Tokens `ids` at positions start, start + 1, …; `cache` holds K and V of the earlier ones and grows."""
        s = self.semantics
        positions = np.arange(start, start + len(ids)) + s.position_offset
        x = tap("embd", -1, self._weights["token_embd.weight"].values[ids] * np.float64(s.embedding_scale))
        for il in range(self.hyper.n_layer):
            h = tap("attn_norm", il, self._norm(x, f"blk.{il}.attn_norm"))
            q = tap("q", il, self._project(h, il, "q"))
            k = tap("k", il, self._project(h, il, "k"))
            v = tap("v", il, self._project(h, il, "v"))
            q = tap("q_rope", il, self._rotate(q, positions))
            k = tap("k_rope", il, self._rotate(k, positions))
            past_k, past_v = cache[il]
            all_k = np.concatenate([past_k, _round(k, self.numerics["kv"])])
            all_v = np.concatenate([past_v, _round(v, self.numerics["kv"])])
            cache[il] = all_k, all_v
            h = tap("kqv_out", il, self._attend(q, all_k, all_v, start))
            if self.hyper.sub_norms:
                h = tap("attn_sub_norm", il, self._norm(h, f"blk.{il}.attn_sub_norm"))
            x = tap("ffn_inp", il, x + tap("attn_out", il, self._project(h, il, "attn_out")))

            h = tap("ffn_norm", il, self._norm(x, f"blk.{il}.ffn_norm"))
            gate = tap("ffn_gate", il, self._project(h, il, "ffn_gate"))
            up = tap("ffn_up", il, self._project(h, il, "ffn_up"))
            h = tap("ffn_act", il, _round(self._activate(gate) * up, s.ffn_type))
            if self.hyper.sub_norms:
                h = tap("ffn_sub_norm", il, self._norm(h, f"blk.{il}.ffn_sub_norm"))
            x = tap("l_out", il, x + tap("ffn_down", il, self._project(h, il, "ffn_down")))
        x = tap("result_norm", -1, self._norm(x, "output_norm"))
        logits = self._head(x) * s.logit_scale
        return tap("result_output", -1, logits).astype(np.float32)

    # ---- the protocol -----------------------------------------------------------------------------------------

    def run(self, request: Request) -> Observation:
        """Compute. Raises `ValueError` for no ids, an id outside the vocabulary, or a lock of wrong name or shape."""
        lock = self._checked(request)
        n_token = len(request.ids)
        n_first = n_token if request.n_batch is None else request.n_batch
        ids, rows, seconds = list(request.ids), [], {"prefill": 0.0, "decode": 0.0}
        empty = np.empty((0, self.hyper.n_head_kv * self.hyper.head_dim))
        cache = [(empty, empty)] * self.hyper.n_layer
        recorded: dict[TapKey, list[Float32]] = {}
        start = 0
        while start < n_token + max(request.n_greedy - 1, 0):
            stop = n_first if start == 0 else start + 1

            def tap(name: str, il: int, value: NDArray[Any], start: int = start, stop: int = stop) -> Float64:
                stored = value.astype(np.float32)
                if request.taps and start < n_token:
                    recorded.setdefault((name, il), []).append(stored)
                if (name, il) in lock and start < n_token:
                    stored = _locked(lock[name, il], (name, il), stored.shape[-1], start, stop)
                return stored.astype(np.float64)

            began = time.perf_counter()
            with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are findings, not accidents
                rows.append(self._forward(np.array(ids[start:stop]), start, cache, tap))
            seconds["prefill" if start == 0 else "decode"] += time.perf_counter() - began
            start = stop
            if len(ids) == start < n_token + request.n_greedy:
                ids.append(int(rows[-1][-1].argmax()))
        taps = {key: np.concatenate(parts) for key, parts in recorded.items()}
        return Observation(
            ids=tuple(ids), logits=np.concatenate(rows), generated=tuple(ids[n_token:]), taps=taps, seconds=seconds
        )

    def _checked(self, request: Request) -> Mapping[TapKey, Float32]:
        n_token = len(request.ids)
        if not n_token:
            raise ValueError("a request needs at least one token id")
        if request.n_batch is not None and not 1 <= request.n_batch <= n_token:
            raise ValueError(f"n_batch is {request.n_batch}, not 1 … {n_token}")
        if request.n_greedy < 0:
            raise ValueError(f"n_greedy is {request.n_greedy}, not 0 or more")
        if bad := [i for i in request.ids if not 0 <= i < self.n_vocab]:
            raise ValueError(f"token id {bad[0]} is outside the vocabulary of {self.n_vocab}")
        lock = request.lock or {}
        known = set(tap_order(self.hyper.n_layer))
        for key, value in lock.items():
            if key not in known:
                raise ValueError(f"no tap {key}; names are {', '.join((*FIRST_TAPS, *LAYER_TAPS, *LAST_TAPS))}")
            if value.ndim != 2 or len(value) != n_token:
                raise ValueError(f"lock {key} has shape {value.shape}, not [{n_token}, width]")
        return lock

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
        trits = w.values.astype(np.int64)
        if kind in rounding.INT8_TOKEN:
            q, _ = rounding.int8_token(x, self.semantics, kind)
            return q.astype(np.int64) @ trits.T
        q, _ = rounding.int8_blocks(self._blocked(x, kind), kind, self.semantics)
        blocked = trits.reshape(len(trits), -1, rounding.BLOCK[kind])
        sums: NDArray[np.int64] = np.einsum("tbk,rbk->trb", q.astype(np.int64), blocked)
        return sums

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return self.hyper.n_layer

    @property
    def n_vocab(self) -> int:
        """Width of a row of logits."""
        return int(self._weights[self.hyper.head].values.shape[0])

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """The oracle reads ids only: always a `ReferenceUnavailableError`."""
        del text, add_special, parse_special
        raise ReferenceUnavailableError("the oracle has no tokenizer", remedy="give it token ids")

    def weights(self, name: str) -> Float32:
        """A tensor decoded, [rows, columns], with its own scale and without its `.scale` tensor."""
        if name not in self._gguf.tensors:
            raise ReferenceUnavailableError(f"the file has no tensor {name!r}")
        return decode(self._gguf, name, self.semantics).dense(self.semantics)

    def close(self) -> None:
        """Drop the weights."""
        self._weights = {}


def _round(x: Float64, kind: str) -> Float64:
    return rounding.float_type(x, kind).astype(np.float64)


def _locked(value: Float32, key: TapKey, width: int, start: int, stop: int) -> Float32:
    if value.shape[-1] != width:
        raise ValueError(f"lock {key} has width {value.shape[-1]}, not {width}")
    return value[start:stop].astype(np.float32)


def _own_sha256() -> str:
    """Over the oracle's own source files, in order of name."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for name in ("contract.py", "decode.py", "oracle.py", "rounding.py", "semantics.py"):
        digest.update((here / name).read_bytes())
    return digest.hexdigest()
