"""Which node of llama.cpp's graph is which tap, and the callback that records them.

Node names as its graphs give them (`NAME-LAYER`), with the traps that lie there:

- `Qcur`, `Kcur`, `Vcur` name up to four nodes: MUL_MAT (or, with a `.scale` tensor, the MUL after an unnamed
  MUL_MAT), ADD of a bias, RESHAPE, ROPE. The projection is the last before rotary, so scale and bias are in it.
- gate and up keep both names: `ffn_up` is the bare product, `ffn_up_s` the scaled one. The last one counts.
- the act(gate)·up node is renamed by the graph: `ffn_swiglu` in arch llama, `ffn_sub_out` in arch bitnet.
- down is `ffn_down` in arch bitnet, and `ffn_out` in arch llama, where the sum with the residual, first called
  `ffn_out` too, ends up as `l_out`.
- `kqv_out` is a CONT, and with flash attention a RESHAPE.
- the last layer selects the rows whose logits are wanted (get_rows) after attention; all are asked for here.
- RMS_NORM and the MUL by its weight are fused on the CPU if evaluated together. Only nodes that are taps are
  asked for, and the RMS_NORM is none, so that capturing leaves the fusion, and every bit, as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from reference.ggml import Ggml
from reference.runner import Float32, TapKey, tap_order

T = TypeVar("T")

#: Node name → tap. `Qcur` and `Kcur` are `q_rope` and `k_rope` where the operation is ROPE.
NODES: Mapping[str, str] = MappingProxyType(
    {
        "embd": "embd",
        "attn_norm": "attn_norm",
        "Qcur": "q",
        "Kcur": "k",
        "Vcur": "v",
        "kqv_out": "kqv_out",
        "attn_sub_norm": "attn_sub_norm",
        "attn_out": "attn_out",
        "ffn_inp": "ffn_inp",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "ffn_gate",
        "ffn_gate_b": "ffn_gate",
        "ffn_gate_s": "ffn_gate",
        "ffn_up": "ffn_up",
        "ffn_up_b": "ffn_up",
        "ffn_up_s": "ffn_up",
        "ffn_swiglu": "ffn_act",
        "ffn_reglu": "ffn_act",
        "ffn_geglu": "ffn_act",
        "ffn_gate_par": "ffn_act",
        "ffn_sub_out": "ffn_act",
        "ffn_sub_norm": "ffn_sub_norm",
        "ffn_down": "ffn_down",
        "ffn_down_s": "ffn_down",
        "ffn_out": "ffn_down",
        "l_out": "l_out",
        "result_norm": "result_norm",
        "result_output": "result_output",
    }
)


#: What the trees of 2024 (bitnet.cpp's among them) call the nodes that are called otherwise today.
_EARLIER: Mapping[str, str] = MappingProxyType(
    {"inp_embd": "embd", "attn_o_out": "attn_out", "kqv_merged_cont": "kqv_out", "ffn_gate_par": "ffn_act"}
)


def tap_of(name: str, operation: str, *, sub_norms: bool = False) -> TapKey | None:
    """The tap that a node is, None if it is none.

    Args:
        name: Of the node.
        operation: What computes it.
        sub_norms: Whether the graph has sub-norms: there, in the trees of 2024, `ffn_out` is act(gate) · up.
    """
    base, dash, number = name.rpartition("-")
    if not dash or not number.isdecimal():
        base, number = name, "-1"
    tap = NODES.get(base) or _EARLIER.get(base)
    if base == "inp_embd" and operation != "GET_ROWS":
        return None
    if base == "kqv_out" and operation in {"MUL_MAT", "MUL", "ADD"}:  # there the output projection has this name
        tap = "attn_out"
    if base == "ffn_out" and sub_norms:
        tap = "ffn_act"
    if tap in {"q", "k", "v"} and operation in {"RESHAPE", "VIEW"}:
        return None
    if tap in {"q", "k"} and operation == "ROPE":
        tap += "_rope"
    return None if tap is None else (tap, int(number))


class Passes:
    """Taps of one request, from as many evaluations of the graph as it takes; `on` while they are wanted."""

    def __init__(self) -> None:
        self.on = True
        self._passes: list[dict[TapKey, Float32]] = []
        self._trouble: list[str] = []

    def guard(self, action: Callable[[], T]) -> T | None:
        """Do something in a callback, from which nothing may be raised: ggml is in between. `taps` raises it later."""
        try:
            return action()
        except BaseException as error:
            self._trouble.append(f"{type(error).__name__}: {error}")
            return None

    def enter(self, key: TapKey, values: Float32, extents: tuple[int, ...], *, rotary: bool) -> None:
        """One node: flat values, extents fastest first. A later node of the same tap replaces an earlier one."""
        if key == ("embd", -1) or not self._passes:  # every evaluation of the graph begins with the embedding
            self._passes.append({})
        width = extents[0] * extents[1] if rotary else extents[0]
        self._passes[-1][key] = values.reshape(-1, width)  # [n_token, width]

    def taps(self, n_tokens: int) -> dict[TapKey, Float32]:
        """What was recorded, one row a token, in graph order.

        Args:
            n_tokens: How many tokens were evaluated.

        Raises:
            ValueError: If the rows are not those tokens, or something went wrong in the callback.
        """
        if self._trouble:
            raise ValueError(f"the callback failed {len(self._trouble)} times, first with {self._trouble[0]}")
        keys = self._passes[0].keys() if self._passes else ()
        if any(one.keys() != keys for one in self._passes):
            raise ValueError("evaluations of the same graph had different nodes")
        order = tap_order(1 + max((layer for _, layer in keys), default=-1))
        taps = {key: np.concatenate([one[key] for one in self._passes]) for key in order if key in keys}
        for key, value in taps.items():
            if len(value) != n_tokens:
                raise ValueError(f"tap {key} has {len(value)} rows for {n_tokens} tokens")
        return taps


class Capture(Passes):
    """Records taps of the graphs that are evaluated while it is `on`.

    Args:
        ggml: The library that computes.
    """

    def __init__(self, ggml: Ggml) -> None:
        super().__init__()
        self.on = False
        self._ggml = ggml

    def callback(self, tensor: int, ask: bool, _user_data: object) -> bool:  # the signature is ggml's
        """First asked whether a node is wanted, then told that it is there. Never raises."""
        answer = self.guard(lambda: self._node(tensor, ask))
        return True if answer is None else answer

    def _node(self, tensor: int, ask: bool) -> bool:
        operation = self._ggml.operation(tensor) if self.on else ""
        key = tap_of(self._ggml.name(tensor), operation) if self.on else None
        if not ask and key is not None:
            values, extents = self._ggml.read(tensor)
            self.enter(key, values, extents, rotary=operation == "ROPE")
        return key is not None if ask else True
