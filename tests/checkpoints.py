"""The recorded checkpoints, copied and damaged: safetensors taken apart and put together without any library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hf"
NAMES = ("bitnet-bitlinear", "bitnet-autobitlinear", "bitnet-bf16", "llama-bitlinear")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj.weight"

#: Name → (dtype, shape, bytes).
Tensors = dict[str, tuple[str, list[int], bytes]]


def copied(tmp_path: Path, name: str = "bitnet-bitlinear") -> Path:
    """A checkpoint to damage."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def load(path: Path) -> Tensors:
    """The tensors of one file."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    data = raw[8 + size :]
    return {
        name: (d["dtype"], d["shape"], data[d["data_offsets"][0] : d["data_offsets"][1]]) for name, d in header.items()
    }


def save(path: Path, tensors: Tensors) -> None:
    """Write them to one file."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def change(folder: Path, **tensors: tuple[str, list[int], bytes] | None) -> None:
    """Put other tensors into the single file of a folder; None removes one. Dots are spelled as double underscores."""
    found = load(folder / SINGLE)
    for name, tensor in tensors.items():
        found.pop(name.replace("__", "."), None)
        if tensor is not None:
            found[name.replace("__", ".")] = tensor
    save(folder / SINGLE, found)


def floats(shape: list[int], values: Any, dtype: str = "F32") -> tuple[str, list[int], bytes]:
    """A tensor of floats."""
    of = {"F32": "<f4", "F16": "<f2"}[dtype]
    return dtype, shape, np.broadcast_to(np.asarray(values, of), shape).tobytes()
