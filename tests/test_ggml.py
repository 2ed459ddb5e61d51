"""Asking libggml: its own reading of files, and tensors in memory that are not what was assumed."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models

from reference.ggml import Ggml, TensorHead, digest, mapped_libraries
from reference.llama_cpp_build import ensure_library
from reference.runner import ReferenceUnavailableError


class Fake(Ggml):
    """The functions of a library that holds one tensor, here."""

    def __init__(self, head: TensorHead, count: int, n_bytes: int, values: bytes = b""):
        self.head, self._library = head, self
        self.ggml_nelements = lambda _: count
        self.ggml_nbytes = lambda _: n_bytes
        self.ggml_get_name = lambda _: b"Qcur-0"
        self.ggml_backend_tensor_get = lambda _, to, offset, size: ctypes.memmove(
            to, values[offset : offset + size], size
        )

    def values(self):
        return self.read(ctypes.addressof(self.head))


def head(*extents: int, kind: int = 0) -> TensorHead:
    return TensorHead(type=kind, ne=(ctypes.c_int64 * 4)(*extents))


def test_of_a_tensor_only_eighty_bytes_are_assumed():
    assert ctypes.sizeof(TensorHead) == 80
    assert (TensorHead.ne.offset, TensorHead.nb.offset) == (16, 48)


def test_a_tensor_in_memory():
    expected = np.arange(6, dtype=np.float32)
    values, extents = Fake(head(3, 2, 1, 1), 6, 24, expected.tobytes()).values()
    assert np.array_equal(values, expected)
    assert extents == (3, 2, 1, 1)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (Fake(head(3, 2, 1, 1, kind=1), 6, 12), "has type 1"),
        (Fake(head(3, 2, 1, 1), 7, 24), "extents"),  # the struct is laid out in another way
        (Fake(head(3, 2, 1, 1), 6, 48), "gaps"),
    ],
)
def test_a_tensor_that_is_not_as_assumed_is_an_error(tensor, why):
    with pytest.raises(ValueError, match=why):
        tensor.values()


def test_a_digest_knows_contents_and_no_names(tmp_path):
    one, two, three = (tmp_path / name for name in ("libllama.so", "libggml.so.0.1", "copy"))
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    three.write_bytes(b"2")
    assert digest((one, two)) == digest((three, one)) != digest((one,))


def test_without_the_library_it_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr("reference.ggml.mapped_libraries", lambda _: (Path("/lib/libllama.so"),))
    with pytest.raises(ReferenceUnavailableError, match="without libggml-base"):
        Ggml(tmp_path)


def test_libraries_of_a_folder_where_the_system_keeps_no_list(tmp_path, monkeypatch):
    names = ("libllama.dylib", "libggml.0.9.1.dylib", "libggml-base.so.0", "libother.so", "notes.txt")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "libllama.so").symlink_to("libllama.dylib")
    monkeypatch.setattr(Path, "read_text", _no_file)
    assert [path.name for path in mapped_libraries(tmp_path)] == [
        "libggml-base.so.0",
        "libggml.0.9.1.dylib",
        "libllama.dylib",
    ]


def _no_file(*_args, **_kwargs):
    raise FileNotFoundError


@pytest.fixture(scope="module")
def ggml() -> Ggml:
    """The real one, in this process: nothing here gives it a damaged file."""
    folder = ensure_library()
    library = next(path for path in folder.iterdir() if path.name in {"libllama.so", "libllama.dylib"})
    ctypes.CDLL(str(library))
    return Ggml(folder)


def test_it_lists_the_tensors_that_the_file_has(ggml, tmp_path):
    model = tiny_models.write(tmp_path / "model.gguf", weight_type="TQ2_0", head_type="F16")
    stored = ggml.tensors(model)
    assert {name: (tensor.offset, tensor.n_bytes) for name, tensor in stored.items()} == {
        tensor.name: (tensor.data_offset, tensor.n_bytes) for tensor in gguf.GGUFReader(model).tensors
    }
    assert stored["blk.1.ffn_down.weight"].shape == (tiny_models.N_EMBD, tiny_models.N_FF)
    assert stored["blk.1.ffn_down.weight"].type_name == "tq2_0"
    assert stored["output_norm.weight"].shape == (1, tiny_models.N_EMBD)
    assert ggml.decode(model, stored["token_embd.weight"]).dtype == np.float32


def test_a_file_that_ends_inside_a_tensor(ggml, tmp_path):
    model = tiny_models.write(tmp_path / "model.gguf")
    stored = ggml.tensors(model)["blk.1.ffn_down.weight"]
    model.write_bytes(model.read_bytes()[: stored.offset + 100])
    with pytest.raises(ReferenceUnavailableError, match="ends inside a tensor"):
        ggml.decode(model, stored)


def test_a_type_without_a_decoder(ggml, tmp_path):
    model = tiny_models.write(tmp_path / "model.gguf")
    stored = ggml.tensors(model)["output_norm.weight"]
    other = type(stored)(type=26, type_name="i32", shape=stored.shape, offset=stored.offset, n_bytes=stored.n_bytes)
    with pytest.raises(ReferenceUnavailableError, match="does not decode i32"):
        ggml.decode(model, other)
