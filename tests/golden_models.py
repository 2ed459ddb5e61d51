"""The recorded models, and copies of them in other weight types that decode to the same matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

from bitnet.gguf import GGMLType, TensorData, read, write
from reference.decode import decode
from reference.recorded import Recorded
from reference.semantics import CONTRACT

FOLDER = Path(__file__).parents[1] / "fixtures" / "goldens"
NAMES = ("b158_a", "b158_hd128", "bitnet_silu", "llama_tied")


def model(name: str) -> str:
    return str(FOLDER / f"{name}.gguf")


def recorded(name: str) -> Recorded:
    return Recorded(model(name), FOLDER)


def retyped(name: str, path: Path, kind: str, *, output: np.ndarray | None = None, drop: str = "") -> str:
    """A copy of a recorded model with its ternary matrices as `kind` (I2_S keeps them) and an `output.weight`."""
    source = read(model(name))
    tensors = []
    for key, info in source.tensors.items():
        if key == drop:
            continue
        if info.type.name != "I2_S" or kind == "I2_S":
            tensors.append(TensorData(name=key, shape=info.shape, type=info.type, data=source.raw(key).copy()))
            continue
        matrix = decode(source, key, CONTRACT)
        values = matrix.values.astype(np.float32)
        data = quants.quantize(values, GGMLQuantizationType[kind])
        tensors.append(
            TensorData(name=key, shape=info.shape, type=GGMLType[kind], data=data.view(np.uint8).reshape(-1))
        )
        scale = np.array([matrix.scale], np.float32).view(np.uint8)
        tensors.append(TensorData(name=key.replace(".weight", ".scale"), shape=(1,), type=GGMLType.F32, data=scale))
    if output is not None:
        data = output.astype(np.float32).view(np.uint8).reshape(-1)
        tensors.append(TensorData(name="output.weight", shape=output.shape, type=GGMLType.F32, data=data))
    write(path, {k: (source.types[k], v) if np.isscalar(v) else v for k, v in source.metadata.items()}, tensors)
    return str(path)
