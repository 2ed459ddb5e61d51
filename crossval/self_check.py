"""Which activation, rotary style and head a reference computes, asked of its own intermediates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitnet.rope import rotary_tables
from crossval.lane import Lane
from crossval.metrics import Float32, Float64
from reference.runner import TapKey

Taps = Mapping[TapKey, Float32]
#: Rows of a matrix that are widened to float64 at a time.
_ROWS_AT_ONCE = 8192


def self_check(lane: Lane, ours: Taps, theirs: Taps) -> None:
    """Which activation, rotary style and head the reference computes, from its own intermediates."""
    config = lane.engine.model.config
    if ("ffn_gate", 0) in theirs and ("ffn_up", 0) in theirs:
        gate, up = theirs["ffn_gate", 0].astype(np.float64), theirs["ffn_up", 0]
        with np.errstate(over="ignore"):
            forms = {"relu2": np.maximum(gate, 0) ** 2, "silu": gate / (1 + np.exp(-gate)), "relu": np.maximum(gate, 0)}
        after = next((tap for tap in ("ffn_act", "ffn_sub_norm", "ffn_down") if (tap, 0) in theirs), None)
        if after is not None:
            values = {name: _feed_forward(lane, form * up, after) for name, form in forms.items()}
            lane.self_check["activation"] = (config.activation, _nearest(values, theirs[after, 0]))
    if ("q_rope", 0) in theirs and ("q", 0) in ours:
        q = theirs.get(("q", 0), ours["q", 0])
        styles = {style: _rotated(lane, q, style) for style in ("half_split", "interleaved")}
        lane.self_check["rotary style"] = (config.rope_style, _nearest(styles, theirs["q_rope", 0]))
    if ("result_norm", -1) in theirs and ("result_output", -1) in theirs:
        heads = {"token_embd.weight": True, "output.weight": False}
        x = theirs["result_norm", -1][-1:].astype(np.float64)
        values = {name: _product(lane, name, x) for name in heads if name in lane.engine.model.gguf.tensors}
        declared = "token_embd.weight" if config.tied_head else "output.weight"
        lane.self_check["head"] = (declared, _nearest(values, theirs["result_output", -1][-1:]))


def _feed_forward(lane: Lane, act: Float64, tap: str) -> Float64:
    """act(gate) · up of layer 0 carried on to the tap that was captured after it, in this lane's numerics."""
    if tap == "ffn_act":
        return act
    layer = lane.engine.model.weights.layers[0]
    if layer.ffn_sub_norm is not None:
        act = (
            act / np.sqrt((act**2).mean(axis=1, keepdims=True) + lane.engine.model.config.rms_eps) * layer.ffn_sub_norm
        )
    if tap == "ffn_sub_norm":
        return act
    rounded = lane.engine.model.network.backend.activations(act.astype(np.float32)).rounded(lane.numerics.activation)
    return _product(lane, layer.down.name, rounded.astype(np.float64))


def _product(lane: Lane, name: str, x: Float64) -> Float64:
    """X · a matrix of the engine's file, its `.scale` applied, a few rows at a time. x: [T, columns] → [T, rows]."""
    n_row = lane.engine.model.gguf.tensors[name].shape[0]
    spans = ((start, min(start + _ROWS_AT_ONCE, n_row)) for start in range(0, n_row, _ROWS_AT_ONCE))
    y: Float64 = np.concatenate([x @ lane.engine.weights(name, span).astype(np.float64).T for span in spans], axis=1)
    scale = name.removesuffix(".weight") + ".scale"
    return y * lane.engine.weights(scale).item() if scale in lane.engine.model.gguf.tensors else y


def _rotated(lane: Lane, q: Float32, style: str) -> Float64:
    config = lane.engine.model.config
    cos, sin = rotary_tables(config, lane.numerics, 0, len(q), lane.engine.model.weights.rope_factors)
    heads = q.astype(np.float64).reshape(len(q), -1, config.head_dim)
    half = config.head_dim // 2
    a, b = (slice(0, half), slice(half, None)) if style == "half_split" else (slice(0, None, 2), slice(1, None, 2))
    out = np.empty_like(heads)
    out[..., a] = heads[..., a] * cos[:, None] - heads[..., b] * sin[:, None]
    out[..., b] = heads[..., a] * sin[:, None] + heads[..., b] * cos[:, None]
    return out.reshape(q.shape)


def _nearest(candidates: Mapping[str, Float64], found: Float32 | Float64) -> str:
    """The candidate that lands on a value, or that none does (1 % of its size is far from any of them)."""
    size = float(np.linalg.norm(found)) or 1.0
    errors = {name: float(np.linalg.norm(value - found)) / size for name, value in candidates.items()}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] < 0.01 else f"none of {', '.join(candidates)}"
