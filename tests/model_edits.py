"""Copies of a model file with a few keys or tensors changed, to see what a loader says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitnet.gguf import GGMLType, TensorData, read, write


def edited(source, target: Path, *, keys=None, drop=(), tensors=None) -> Path:
    """Write `source` again.

    Args:
        keys: Metadata by key: a value, or a (type, value) pair; None removes the key.
        drop: Names of tensors to leave out.
        tensors: By name: a float32 array for a new F32 tensor, a function of the raw bytes, or a `TensorData`.
    """
    file = read(source)
    metadata = {key: (file.types[key], value) for key, value in file.metadata.items()} | (keys or {})
    changed = dict(tensors or {})
    written = []
    for name, info in file.tensors.items():
        if name in drop:
            continue
        kept = TensorData(name=name, shape=info.shape, type=info.type, data=file.raw(name).copy())
        written.append(tensor(name, changed.pop(name), kept) if name in changed else kept)
    written += [tensor(name, value, None) for name, value in changed.items()]
    write(target, {key: value for key, value in metadata.items() if value is not None}, written)
    return target


def tensor(name, change, kept):
    if isinstance(change, TensorData):
        return change
    if callable(change):
        return TensorData(name=name, shape=kept.shape, type=kept.type, data=change(kept.data))
    values = np.ascontiguousarray(change, np.float32)
    return TensorData(name=name, shape=values.shape, type=GGMLType.F32, data=values.view(np.uint8).reshape(-1))


def with_tail_scale(scale):
    """A change of an I2_S tensor: another scale in its tail."""

    def change(raw):
        raw[-32:-28] = np.array([scale], "<f4").view(np.uint8)
        return raw

    return change
