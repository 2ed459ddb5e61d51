"""GGUF files byte by byte, so that a test can break any rule of the format."""

from __future__ import annotations

import struct

from bitnet.gguf import ValueType

ARCH = "general.architecture"


def string(value: str | bytes, *, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str | bytes, value_type: int, payload: bytes) -> bytes:
    return string(name) + struct.pack("<I", value_type) + payload


def text_key(name: str, value: str | bytes) -> bytes:
    return key(name, ValueType.STRING, string(value))


def u32_key(name: str, value: int) -> bytes:
    return key(name, ValueType.UINT32, struct.pack("<I", value))


def array(element: int, n: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, n) + payload


def tensor(
    name: str | bytes, dims: tuple[int, ...], type_: int, offset: int = 0, *, n_dims: int | None = None
) -> bytes:
    """Dimensions fastest first, as in the file."""
    n_dims = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", n_dims, *(d % 2**64 for d in dims), type_, offset)


def file(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes | int = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `data` is the tensor section, or how many zeros it has."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    if isinstance(data, int):
        data = bytes(data)
    return head + (bytes(-len(head) % alignment) + data if data else b"")


def small(arch: str = "bitnet-b1.58") -> bytes:
    """A valid file with a value of most types, an F32 and an I2_S tensor."""
    keys = (
        text_key(ARCH, arch),
        u32_key("general.alignment", 32),
        key("a.bool", ValueType.BOOL, b"\1"),
        key("a.float", ValueType.FLOAT32, struct.pack("<f", 0.5)),
        key("a.tokens", ValueType.ARRAY, array(ValueType.STRING, 3, string("a") + string(b"\xff") + string(""))),
        key("a.scores", ValueType.ARRAY, array(ValueType.FLOAT32, 3, struct.pack("<3f", 1, 2, 3))),
        key("a.nested", ValueType.ARRAY, array(ValueType.ARRAY, 2, array(ValueType.UINT8, 2, b"\1\2") * 2)),
    )
    tensors = (tensor("norm.weight", (4,), 0), tensor("q.weight", (128, 2), 36, 32))
    return file(keys, tensors, 32 + 96)
