"""One folder that shows a defect to anybody: slices of tensors, what is expected and found, and a script in numpy.

The script reads `case.npz` beside it and needs nothing else of this project, nor the model. It computes the operation
from its definition and prints the two differences: of the contract from it (noise) and of the engine (the defect).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from crossval.catalogue import NORMS, PROJECTIONS, ROTATED
from crossval.minimise import Minimal
from reference import rounding
from reference.contract import PROJECTIONS as TENSORS
from reference.oracle import Oracle

#: Columns of a value that are kept, the worst first.
_COLUMNS = 16

_SCRIPT = '''"""{title}

{story}
Run it where numpy is: python repro.py
"""
import pathlib
import sys

import numpy as np

case = np.load(pathlib.Path(__file__).with_name("case.npz"))
{loads}
{formula}
expected, found = case["expected"].astype(np.float64), case["found"].astype(np.float64)
size = np.abs(expected).max() or 1.0
print("{what}, worst column", case["columns"][0])
print("  by definition ", y[..., 0])
print("  contract      ", expected[..., 0], " largest difference", np.abs(y - expected).max() / size)
print("  engine        ", found[..., 0], " largest difference", np.abs(y - found).max() / size)
shown = not np.abs(y - found).max() <= 1e-5 * size  # float32 noise is 1e-7
print("the engine is wrong" if shown else "the engine is right")
sys.exit(1 if shown else 0)
'''

_ACTIVATION = {
    "relu2": "np.maximum(gate, 0) ** 2",
    "relu": "np.maximum(gate, 0)",
    "silu": "gate / (1 + np.exp(-gate))",
    "gelu": "0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))",
    "gelu_quick": "gate / (1 + np.exp(-1.702 * gate))",
}
_FORMULA = {
    "embd": "y = row",
    "norm": "y = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)\ny = y[..., case['columns']] * weight",
    "int8_token": (
        "s = (127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True).astype(np.float64), 1e-5)).astype(np.float32)\n"
        "q = np.clip(np.rint(x.astype(np.float32) * s), -128, 127).astype(np.int64)  # half to even\n"
        "y = (q @ w.astype(np.int64).T) / s * scale"
    ),
    "int8_token_reciprocal": (
        "largest = np.maximum(np.abs(x.astype(np.float32)).max(axis=-1, keepdims=True), np.float32(1e-5))\n"
        "s = np.float32(127) * (np.float32(1) / largest)  # rounded twice\n"
        "q = np.clip(np.rint(x.astype(np.float32) * s), -128, 127).astype(np.int64)  # half to even\n"
        "y = (q @ w.astype(np.int64).T) / s * scale"
    ),
    "int8_token_fused": (
        "s = (127 / np.maximum(np.abs(x).max(axis=-1, keepdims=True).astype(np.float64), 1e-5)).astype(np.float32)\n"
        "q = np.clip(np.rint(x.astype(np.float64) * s), -128, 127).astype(np.int64)  # the product is exact\n"
        "y = (q @ w.astype(np.int64).T) / s * scale"
    ),
    "product": "y = x @ w.astype(np.float64).T * scale",
    "rope": (
        "pair = np.arange(d // 2)\nangle = position * theta ** (-2.0 * pair / d)\n"
        "a, b = (pair, pair + d // 2) if half_split else (2 * pair, 2 * pair + 1)\n"
        "y = np.empty_like(x)\ny[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)\n"
        "y[..., b] = x[..., a] * np.sin(angle) + x[..., b] * np.cos(angle)\ny = y[..., case['columns']]"
    ),
    "attention": (
        "score = k @ q / np.sqrt(len(q))\np = np.exp(score - score.max())\n"
        "y = (p / p.sum()) @ v\ny = y[None, case['columns']]"
    ),
    "sum": "y = a + b",
}


def write_repro(folder: Path, oracle: Oracle, minimal: Minimal, *, title: str, story: str = "") -> Path:
    """Write `case.npz`, `case.json` and `repro.py`; returns the script.

    Args:
        folder: Made if it is not there; files of these names in it are replaced.
        oracle: The contract, in the engine's numerics.
        minimal: The smallest case.
        title: First line of the script.
        story: What is known about the cause.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, replay = minimal.finding, minimal.replay
    token, worst = found.worst
    key = found.key
    columns = np.array([worst, *[c for c in found.rows if c != worst][: _COLUMNS - 1]])
    expected = replay.operation(key, oracle)
    kind, arrays, scalars, columns = _slices(oracle, minimal, token, columns)
    shown = columns if kind not in ("rope", "attention") else columns + scalars.pop("first")
    arrays |= {
        "columns": columns,
        "expected": expected[token : token + 1, shown],
        "found": replay.outputs[key][token : token + 1, shown],
    }
    np.savez(folder / "case.npz", **arrays)
    record = {**asdict(found), "ids": list(minimal.ids), "n_batch": minimal.n_batch, "title": title, "story": story}
    (folder / "case.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    loads = [f'{n} = case["{n}"]{"" if n == "w" else ".astype(np.float64)"}' for n in arrays if n not in _OWN]
    loads += [f"{name} = {value!r}" for name, value in scalars.items()]
    formula = _FORMULA.get(kind) or f"y = {_ACTIVATION[kind]} * up"
    where = f"{key[0]} of layer {key[1]}" if key[1] >= 0 else key[0]
    script = folder / "repro.py"
    text = _SCRIPT.format(
        title=title, story=story, loads="\n".join(loads), formula=formula, what=f"{where}, token {token}"
    )
    script.write_text(text, "utf-8")
    return script


_OWN = ("columns", "expected", "found")


def _slices(
    oracle: Oracle,
    minimal: Minimal,
    token: int,
    columns: Any,  # noqa: ANN401  # indices
) -> tuple[str, dict[str, Any], dict[str, Any], Any]:
    """Kind of the formula, its arrays and numbers, and the columns it computes."""
    replay, (tap, il) = minimal.replay, minimal.finding.key
    hyper, d = oracle.hyper, oracle.hyper.head_dim
    fed = [replay.source(s, oracle) for s in oracle.inputs((tap, il))]
    row = slice(token, token + 1)
    if tap == "embd":
        return "embd", {"row": oracle.weights("token_embd.weight")[[minimal.ids[token]]][:, columns]}, {}, columns
    if tap in NORMS:
        name = "output_norm" if tap == "result_norm" else f"blk.{il}.{tap}"
        weight = oracle.weights(f"{name}.weight").reshape(-1)[columns]
        return "norm", {"x": fed[0][row], "weight": weight}, {"eps": float(hyper.rms_eps)}, columns
    if tap in PROJECTIONS or tap == "result_output":
        name = f"blk.{il}.{TENSORS[tap]}.weight" if tap in PROJECTIONS else hyper.head
        matrix = oracle._weights[name]  # the oracle's own
        x, scale = fed[0][row], float(matrix.scale) * float(matrix.extra_scale or 1.0)
        w = matrix.values[columns]
        if matrix.ternary and matrix.block_scale is None:
            w = w.astype(np.int8)
        else:
            w = oracle.weights(name)[columns]
            scale = float(matrix.extra_scale or 1.0)
        activation = oracle.numerics["activation"] if tap in PROJECTIONS else oracle.numerics["head"]
        if activation in rounding.INT8_TOKEN and w.dtype == np.int8:
            return activation, {"x": x, "w": w}, {"scale": scale}, columns
        return "product", {"x": _activations(x, activation), "w": w}, {"scale": scale}, columns
    if tap in ROTATED:
        head = int(columns[0]) // d
        inside = np.array([int(c) - head * d for c in columns if int(c) // d == head])
        numbers = {"d": d, "theta": hyper.rope_theta, "position": token, "half_split": hyper.rope_style == "half_split"}
        x = fed[0][row, head * d : (head + 1) * d]
        return "rope", {"x": x}, {**numbers, "first": head * d}, inside
    if tap == "kqv_out":
        head = int(columns[0]) // d
        kv = head // (hyper.n_head // hyper.n_head_kv)
        inside = np.array([int(c) - head * d for c in columns if int(c) // d == head])
        q, k, v = fed[0][token], fed[1][: token + 1], fed[2][: token + 1]
        mine, theirs = slice(head * d, (head + 1) * d), slice(kv * d, (kv + 1) * d)
        return "attention", {"q": q[mine], "k": k[:, theirs], "v": v[:, theirs]}, {"first": head * d}, inside
    parts = [x[row][:, columns] for x in fed]
    if tap == "ffn_act":
        return hyper.activation, {"gate": parts[0], "up": parts[1]}, {}, columns
    return "sum", {"a": parts[0], "b": parts[1]}, {}, columns


def _activations(x: Any, kind: str) -> Any:  # noqa: ANN401  # an array
    """Activations as the engine's numerics round them: a block quantiser's integers times their scales."""
    if kind in rounding.BLOCK:
        q, scale = rounding.int8_blocks(x, kind)
        return (q * scale).reshape(x.shape)
    if kind in rounding.INT8_TOKEN:
        q, s = rounding.int8_token(x, kind=kind)
        return q / s
    return x if kind == "none" else rounding.float_type(x, kind.removesuffix("_decode"))
