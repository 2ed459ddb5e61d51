"""Every intermediate of a transformers model: recorded, and replaced where a request locks it.

Hooks stand on the modules whose input or output is a tap, and one wrapper on the rotary function. A value is replaced
in place, so that whatever else holds the same tensor (the residual stream does) computes on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.runner import Float32, TapKey

#: Tap → module of a layer whose output it is.
OUTPUTS = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "attn_out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
    "ffn_down": "mlp.down_proj",
    "l_out": "",
}
#: Tap → modules of which the first that exists reads it.
INPUTS = {
    "ffn_inp": ("post_attention_layernorm",),
    "kqv_out": ("self_attn.attn_sub_norm", "self_attn.o_proj"),
    "ffn_act": ("mlp.ffn_sub_norm", "mlp.down_proj"),
}
_ORDER_OF = {"q": "attn_q", "k": "attn_k", "q_rope": "attn_q", "k_rope": "attn_k"}


class Taps:
    """What one request sees of a model.

    Args:
        torch: The module.
        model: The causal model; its layers are in `model.model.layers`.
        rotary: The module whose `apply_rotary_pos_emb` the model calls.
        orders: `attn_q`, `attn_k` → row of the file for each row here, where they differ.
    """

    def __init__(self, torch: Any, model: Any, rotary: Any, orders: Mapping[str, NDArray[np.int64]]) -> None:  # noqa: ANN401  # torch and its modules, imported by name
        self._torch, self._model, self._rotary = torch, model, rotary
        self._orders = orders
        self._recorded: dict[TapKey, list[Float32]] = {}
        self._lock: Mapping[TapKey, Float32] = {}
        self._start = 0
        self._layer = -1
        self.on = False

    def begin(self, start: int, lock: Mapping[TapKey, Float32] | None) -> None:
        """The next evaluation begins with token `start`; values of `lock` are put in place."""
        self._start, self._lock = start, lock or {}

    def recorded(self) -> dict[TapKey, Float32]:
        """All rows so far."""
        return {key: np.concatenate(parts) for key, parts in self._recorded.items()}

    @contextmanager
    def hooked(self) -> Iterator[Taps]:
        """Hooks in place."""
        handles = list(self._hooks())
        rotate = self._rotary.apply_rotary_pos_emb

        def watched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the function it stands for
            rotated = rotate(*args, **kwargs)
            for name, value in zip(("q_rope", "k_rope"), rotated, strict=True):  # [1, n_head, T, head_dim]
                self._see((name, self._layer), value.transpose(1, 2))
            return rotated

        self._rotary.apply_rotary_pos_emb = watched
        try:
            yield self
        finally:
            self._rotary.apply_rotary_pos_emb = rotate
            for handle in handles:
                handle.remove()

    def _hooks(self) -> Iterator[Any]:
        body = self._model.model
        yield self._after(body.embed_tokens, ("embd", -1))
        yield self._after(body.norm, ("result_norm", -1))
        yield self._after(self._model.lm_head, ("result_output", -1))
        for il, layer in enumerate(body.layers):
            yield layer.self_attn.register_forward_pre_hook(self._enter(il))
            modules = dict(layer.named_modules())
            for tap, name in OUTPUTS.items():
                if name in modules:
                    yield self._after(modules[name], (tap, il))
            for tap, names in INPUTS.items():
                reader = next(modules[name] for name in names if name in modules)
                yield reader.register_forward_pre_hook(self._before((tap, il)))

    def _enter(self, layer: int) -> Callable[..., None]:
        def note(*_: object) -> None:
            self._layer = layer

        return note

    def _after(self, module: Any, key: TapKey) -> Any:  # noqa: ANN401  # a torch module
        def see(_module: object, _inputs: object, output: Any) -> None:  # noqa: ANN401  # a tensor, or a tuple
            self._see(key, output[0] if isinstance(output, tuple) else output)

        return module.register_forward_hook(see)

    def _before(self, key: TapKey) -> Callable[..., None]:
        def see(_module: object, inputs: Any) -> None:  # noqa: ANN401  # a tuple of tensors
            self._see(key, inputs[0])

        return see

    def _see(self, key: TapKey, value: Any) -> None:  # noqa: ANN401  # a tensor [1, T, …]
        order = self._orders.get(_ORDER_OF.get(key[0], ""))
        n = value.shape[1]
        if self.on:
            rows = np.array(value.detach().numpy(), np.float32).reshape(n, -1)
            if order is not None:
                there = np.empty_like(rows)
                there[:, order] = rows
                rows = there
            self._recorded.setdefault(key, []).append(rows)
        locked = self._lock.get(key)
        if locked is not None:
            rows = locked[self._start : self._start + n]
            rows = np.array(rows if order is None else rows[:, order], np.float32)
            value.copy_(self._torch.from_numpy(rows).reshape(value.shape))
