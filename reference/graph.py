"""What feeds what: the inputs of every operation, as taps.

The contract is one graph for all architectures of the family. A `Semantics` may leave norms out or wire the residual
stream otherwise; it changes this table and nothing else of it.
"""

from __future__ import annotations

from reference.runner import TapKey
from reference.semantics import Semantics

#: Taps that one operation makes of one other, in the same layer.
_SINGLE = {"q_rope": "q", "k_rope": "k", "attn_sub_norm": "kqv_out", "ffn_sub_norm": "ffn_act"}
SUB_NORMS = ("attn_sub_norm", "ffn_sub_norm")


def left_out(semantics: Semantics, *, sub_norms: bool) -> frozenset[str]:
    """Taps that a model understood so does not compute."""
    absent = {semantics.skipped_norm} if semantics.skipped_norm else set()
    return frozenset(absent | (set() if sub_norms else set(SUB_NORMS)))


def sources(key: TapKey, n_layer: int, semantics: Semantics, absent: frozenset[str]) -> tuple[TapKey, ...]:
    """The taps that an operation reads; none for `embd`.

    Args:
        key: The operation.
        n_layer: Layers of the model.
        semantics: How the model is understood.
        absent: As `left_out` says.
    """
    tap, il = key
    entry: TapKey = ("embd", -1) if il <= 0 else ("l_out", il - 1)

    def normed(name: str, otherwise: TapKey) -> TapKey:
        return otherwise if name in absent else (name, il)

    middle: TapKey = entry if semantics.residual == "parallel" else ("ffn_inp", il)
    if tap in _SINGLE:
        return ((_SINGLE[tap], il),)
    table: dict[str, tuple[TapKey, ...]] = {
        "embd": (),
        "attn_norm": (entry,),
        **dict.fromkeys(("q", "k", "v"), (normed("attn_norm", entry),)),
        "kqv_out": (("q_rope", il), ("k_rope", il), ("v", il)),
        "attn_out": (normed("attn_sub_norm", ("kqv_out", il)),),
        "ffn_inp": (normed("attn_norm", entry) if semantics.residual == "normed" else entry, ("attn_out", il)),
        "ffn_norm": (middle,),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (normed("ffn_norm", middle),)),
        "ffn_act": (("ffn_gate", il), ("ffn_up", il)),
        "ffn_down": (normed("ffn_sub_norm", ("ffn_act", il)),),
        "l_out": (("ffn_inp", il), ("ffn_down", il)),
        "result_norm": (("l_out", n_layer - 1),),
        "result_output": (normed("result_norm", ("l_out", n_layer - 1)),),
    }
    if tap == "result_output" and "result_norm" not in absent:
        return (("result_norm", -1),)
    return table[tap]
