"""The weights of a GGUF file under the names and in the forms of transformers' two causal models.

A ternary projection takes one of transformers' two forms. `BitLinear` holds codes, four rows a byte, and *divides* by
its `weight_scale`; `AutoBitLinear` (offline) holds the trits as floats and *multiplies* by its own. A dense projection
is an ordinary linear layer. transformers turns the two halves of a head against each other, so where a file's rows are
meant for neighbouring pairs (arch `llama`), the rows of q and k change places here, and back where they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.gguf import GGUF
from reference.contract import PROJECTIONS, HyperParameters
from reference.decode import Matrix, decode
from reference.runner import Float32, ReferenceUnavailableError
from reference.semantics import CONTRACT

LinearClass = Literal["bitlinear", "autobitlinear"]
Array = NDArray[Any]

#: Rows that share a byte of a packed weight.
ROWS_OF_A_BYTE = 4

#: Projection in the file → the module that holds it.
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}

_ONE = np.float32(1)

#: Our activation → transformers' name for the same function.
ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "relu": "relu", "gelu": "gelu_pytorch_tanh"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One projection as transformers holds it.

    Attributes:
        kind: Which layer computes it.
        weight: [rows / 4, columns] uint8 for `bitlinear`, else [rows, columns] f32.
        scale: Of the file, `.scale` included; 1 for a dense layer.
    """

    kind: LinearClass | Literal["linear"]
    weight: Array
    scale: np.float32 = _ONE

    @property
    def weight_scale(self) -> Float32 | None:
        """The buffer of that name, [1]: what the layer multiplies by, or for `bitlinear` divides by."""
        if self.kind == "linear":
            return None
        with np.errstate(divide="ignore"):
            value = np.float32(1) / self.scale if self.kind == "bitlinear" else self.scale
        return np.array([value], np.float32)


def module_name(tensor: str) -> str:
    """Name in transformers of a tensor of the file, `….weight`.

    Raises:
        ReferenceUnavailableError: Nothing there stands for it.
    """
    whole = {"token_embd.weight": "model.embed_tokens", "output_norm.weight": "model.norm", "output.weight": "lm_head"}
    if tensor in whole:
        return whole[tensor]
    part, _, kind = tensor.removeprefix("blk.").partition(".")
    module = (MODULES | _NORMS).get(kind.removesuffix(".weight"))
    if not tensor.startswith("blk.") or module is None or not part.isdecimal():
        raise ReferenceUnavailableError(f"transformers has nothing that stands for {tensor}")
    return f"model.layers.{part}.{module}"


def projection(matrix: Matrix, linear_class: LinearClass, name: str) -> Projection:
    """A decoded matrix in the form of a layer.

    Raises:
        ReferenceUnavailableError: `BitLinear` cannot hold it.
    """
    extra = np.float32(1) if matrix.extra_scale is None else matrix.extra_scale
    if not matrix.ternary:
        return Projection(kind="linear", weight=matrix.values.astype(np.float32) * extra)
    scale = np.float32(matrix.scale * extra)
    trits = matrix.values.astype(np.int8)
    if linear_class == "autobitlinear":
        weight = trits.astype(np.float32)
        if matrix.block_scale is not None:
            weight *= np.repeat(matrix.block_scale, weight.shape[1] // matrix.block_scale.shape[1], axis=1)
        return Projection(kind="autobitlinear", weight=weight, scale=scale)
    if matrix.block_scale is not None or len(trits) % ROWS_OF_A_BYTE:
        what = "scales of its own in every block" if matrix.block_scale is not None else f"{len(trits)} rows"
        raise ReferenceUnavailableError(
            f"{name} has {what}, which transformers' BitLinear cannot hold", remedy="compare with AutoBitLinear"
        )
    return Projection(kind="bitlinear", weight=pack(trits), scale=scale)


def pack(trits: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Bits 2i and 2i + 1 of row r hold trit + 1 of row r + i · rows / 4."""
    parts = (trits + np.int8(1)).astype(np.uint8).reshape(ROWS_OF_A_BYTE, -1, trits.shape[1])
    shifts = 2 * np.arange(ROWS_OF_A_BYTE, dtype=np.uint8).reshape(-1, 1, 1)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts << shifts, axis=0)
    return packed


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The trits of a packed weight, [rows, columns]."""
    parts = [(packed >> np.uint8(2 * i)) & np.uint8(3) for i in range(ROWS_OF_A_BYTE)]
    return np.concatenate(parts).astype(np.int8) - np.int8(1)


def pair_order(n_head: int, head_dim: int) -> NDArray[np.int64]:
    """Row of the file for each row of q or k in transformers, where the file's heads turn neighbouring pairs."""
    one_head = np.arange(head_dim).reshape(-1, 2).T.reshape(-1)
    return (np.arange(n_head)[:, None] * head_dim + one_head).reshape(-1)


def orders(hyper: HyperParameters) -> dict[str, NDArray[np.int64]]:
    """`attn_q` and `attn_k` → order of their rows, where it is not the file's."""
    if hyper.rope_style != "interleaved":
        return {}
    heads = {"attn_q": hyper.n_head, "attn_k": hyper.n_head_kv}
    return {name: pair_order(n, hyper.head_dim) for name, n in heads.items()}


def projections(gguf: GGUF, hyper: HyperParameters, linear_class: LinearClass) -> Iterator[tuple[str, Projection]]:
    """Module name and layer of every projection."""
    changed = orders(hyper)
    for il in range(hyper.n_layer):
        for kind in PROJECTIONS.values():
            name = f"blk.{il}.{kind}.weight"
            matrix = decode(gguf, name, CONTRACT)
            yield module_name(name), projection(_reordered(matrix, changed.get(kind)), linear_class, name)


def others(gguf: GGUF, hyper: HyperParameters) -> Iterator[tuple[str, Float32]]:
    """Name in the state of the model, and values, of the embedding, the head and every norm."""
    names = ["token_embd.weight", "output_norm.weight"]
    kinds = [kind for kind in _NORMS if hyper.sub_norms or "sub" not in kind]
    names += [f"blk.{il}.{kind}.weight" for il in range(hyper.n_layer) for kind in kinds]
    for name in names:
        yield f"{module_name(name)}.weight", _dense(gguf, name)
    yield "lm_head.weight", _dense(gguf, hyper.head)


def _dense(gguf: GGUF, name: str) -> Float32:
    matrix = decode(gguf, name, CONTRACT)
    values = matrix.dense(CONTRACT)
    values = values if matrix.extra_scale is None else values * matrix.extra_scale
    return np.ascontiguousarray(values, np.float32).reshape(gguf.tensors[name].shape)


def _reordered(matrix: Matrix, order: NDArray[np.int64] | None) -> Matrix:
    if order is None:
        return matrix
    return Matrix(
        values=matrix.values[order],
        ternary=matrix.ternary,
        block_scale=None if matrix.block_scale is None else matrix.block_scale[order],
        scale=matrix.scale,
        extra_scale=matrix.extra_scale,
    )
