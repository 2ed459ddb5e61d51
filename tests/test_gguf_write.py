"""Writing: what goes in comes out, here and in the gguf package; what cannot be a file leaves nothing."""

from __future__ import annotations

import os

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet import gguf_write
from bitnet.errors import UsageError
from bitnet.gguf import GGMLType, TensorData, TypedArray, ValueType, read, write
from bitnet.gguf_types import NUMBERS, StringArray

V = ValueType


def f32(name: str, *shape: int, start: int = 0) -> TensorData:
    values = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
    return TensorData(name=name, shape=shape, type=GGMLType.F32, data=values)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.gguf"


def plain(value):
    """As nested lists, to compare what was given with what was read."""
    if isinstance(value, TypedArray):
        return [plain(v) for v in value.values]
    if isinstance(value, StringArray | np.ndarray):
        return value.tolist()
    return value


def numbers(type_: ValueType):
    dtype = NUMBERS[type_]
    if type_ is V.BOOL:
        return st.booleans()
    if dtype.kind == "f":
        return st.floats(width=dtype.itemsize * 8, allow_nan=False)
    info = np.iinfo(dtype)
    return st.integers(int(info.min), int(info.max))


@st.composite
def typed_values(draw, depth=0):
    type_ = draw(st.sampled_from([t for t in V if depth < 4 or t is not V.ARRAY]))
    if type_ is V.STRING:
        return type_, draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
    if type_ is not V.ARRAY:
        return type_, draw(numbers(type_))
    return V.ARRAY, draw(arrays(depth + 1))


@st.composite
def arrays(draw, depth):
    element = draw(st.sampled_from([t for t in V if depth < 4 or t is not V.ARRAY]))
    if element is V.STRING:
        return TypedArray(element, draw(st.lists(st.binary(max_size=8), max_size=5)))
    if element is V.ARRAY:
        return TypedArray(element, draw(st.lists(arrays(depth + 1), max_size=3)))
    return TypedArray(element, draw(st.lists(numbers(element), max_size=5)))


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(names, typed_values(), max_size=6),
    tensors=st.lists(
        st.tuples(names, st.lists(st.integers(1, 5), min_size=1, max_size=4)), max_size=4, unique_by=lambda t: t[0]
    ),
    alignment=st.sampled_from([1, 4, 32, 256]),
)
def test_what_is_written_is_read(path, metadata, tensors, alignment):
    data = [f32(name, *shape, start=i) for i, (name, shape) in enumerate(tensors)]
    write(path, metadata, data, alignment=alignment)
    model = read(path)
    assert model.alignment == alignment
    assert model.notices == ()
    for key, (type_, value) in metadata.items():
        assert model.types[key] is type_
        assert plain(model.metadata[key]) == plain(value)
    assert list(model.tensors) == [t.name for t in data]
    for tensor in data:
        assert model.tensors[tensor.name].shape == tensor.shape
        np.testing.assert_array_equal(model.raw(tensor.name).view("<f4").reshape(tensor.shape), tensor.data)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, within the gguf package
def test_the_gguf_package_reads_what_is_written(path):
    metadata = {
        "general.architecture": "llama",
        "n.u8": (V.UINT8, 200),
        "n.i64": (V.INT64, -5),
        "n.f32": 0.25,
        "n.f64": (V.FLOAT64, 0.1),
        "n.bool": True,
        "a.tokens": ["<s>", "▁the", "Ġ"],
        "a.scores": np.float32([0, -1, -2]),
        "a.types": [1, 3, 1],
        "a.flags": TypedArray(V.BOOL, [True, False]),
    }
    rng = np.random.default_rng(3)
    kinds = (GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.TQ1_0, GGMLType.TQ2_0)
    tensors = [f32("norm.weight", 5)]
    for kind in kinds:
        peer = gguf.GGMLQuantizationType(int(kind))
        raw = gguf.quants.quantize(rng.standard_normal((4, 256)).astype(np.float32), peer)
        tensors.append(TensorData(name=f"{kind.name}.weight", shape=(4, 256), type=kind, data=raw))
    write(path, metadata, tensors, alignment=64)
    theirs = gguf.GGUFReader(path)
    for key, value in metadata.items():
        value = value[1] if isinstance(value, tuple) else value
        assert theirs.fields[key].contents() == plain(value), key
    assert theirs.alignment == 64
    ours = read(path)
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert tuple(int(n) for n in tensor.shape[::-1]) == info.shape
        assert int(tensor.tensor_type) == info.type
        assert tensor.data_offset == info.offset
        assert tensor.n_bytes == info.n_bytes
        assert tensor.data.tobytes() == ours.raw(tensor.name).tobytes()


def test_what_the_gguf_package_writes_is_read(path):
    writer = gguf.GGUFWriter(path, "bitnet")
    writer.add_uint32("bitnet.block_count", 3)
    writer.add_token_list([b"a", b"\xff"])
    writer.add_tensor("t.weight", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = read(path)
    assert model.get("bitnet.block_count", int) == 3
    assert model.get("tokenizer.ggml.tokens", list) == [b"a", b"\xff"]
    assert model.tensors["t.weight"].shape == (2, 3)
    assert model.notices == ()


def test_a_copy_is_the_same_file(path, tmp_path):
    write(path, {"general.architecture": "bitnet", "k": [1, -2], "s": ["a"], "x": 1.5}, [f32("a", 3), f32("b", 2, 2)])
    model = read(path)
    metadata = {key: (model.types[key], value) for key, value in model.metadata.items()}
    tensors = [
        TensorData(name=t.name, shape=t.shape, type=t.type, data=model.raw(t.name)) for t in model.tensors.values()
    ]
    copy = tmp_path / "copy.gguf"
    write(copy, metadata, tensors)
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (True, V.BOOL),
        (np.bool_(1), V.BOOL),
        (7, V.UINT32),
        (1.5, V.FLOAT32),
        ("x", V.STRING),
        (np.int16(-3), V.INT16),
        (np.float64(0.1), V.FLOAT64),
        ([1, 2], V.ARRAY),
        (["a"], V.ARRAY),
    ],
)
def test_types_are_inferred(path, value, type_):
    write(path, {"k": value}, [])
    model = read(path)
    assert model.types["k"] is type_
    assert len(model.metadata["k"]) == len(value) if type_ is V.ARRAY else model.metadata["k"] == value


def test_element_types_are_inferred(path):
    write(path, {"u": [1, 2], "i": [1, -2], "f": [0.5], "b": [True], "d": np.arange(2, dtype=np.int8)}, [])
    model = read(path)
    assert {key: value.dtype.str for key, value in model.metadata.items()} == {
        "u": "<u4",
        "i": "<i4",
        "f": "<f4",
        "b": "|b1",
        "d": "|i1",
    }


def test_tensors_are_made_one_at_a_time(path):
    alive, most = 0, 0

    def make(i):
        def data():
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            values = np.full(8, i, np.float32)
            alive -= 1
            return values

        return TensorData(name=f"t{i}", shape=(8,), type=GGMLType.F32, data=data)

    write(path, {}, (make(i) for i in range(3)))
    assert most == 1
    assert [read(path).raw(f"t{i}").view("<f4")[0] for i in range(3)] == [0, 1, 2]


def test_big_endian_arrays_are_stored_little_endian(path):
    data = np.arange(4, dtype=">f4")
    write(path, {"a": data}, [TensorData(name="t", shape=(4,), type=GGMLType.F32, data=data)])
    model = read(path)
    assert model.raw("t").view("<f4").tolist() == model.metadata["a"].tolist() == [0, 1, 2, 3]


def t(name="t", shape=(128,), type_=GGMLType.F32, data=bytes(512)):
    return TensorData(name=name, shape=shape, type=type_, data=data)


REFUSED = {
    "alignment 0": ({}, [], {"alignment": 0}, "alignment is 0"),
    "alignment 24": ({}, [], {"alignment": 24}, "alignment is 24"),
    "alignment contradicts": ({"general.alignment": 64}, [], {}, "general.alignment is 64"),
    "too little data": ({}, [t(data=bytes(500))], {}, "500 bytes of data"),
    "too much data": ({}, [t(data=lambda: np.zeros(129, np.float32))], {}, "516 bytes of data"),
    "part of a block": ({}, [t(shape=(100,), type_=GGMLType.Q8_0)], {}, "multiple of 32"),
    "no dimension": ({}, [t(shape=())], {}, "positive"),
    "five dimensions": ({}, [t(shape=(1, 1, 1, 1, 128))], {}, "5 dimensions"),
    "dimension 0": ({}, [t(shape=(0,))], {}, "positive"),
    "name twice": ({}, [t(), t()], {}, "twice"),
    "name empty": ({}, [t(name="")], {}, "empty"),
    "name a path": ({}, [t(name="/t")], {}, "path characters"),
    "name too long": ({}, [t(name="n" * 65)], {}, "over 64"),
    "key empty": ({"": 1}, [], {}, "empty"),
    "key with control": ({"a\n": 1}, [], {}, "control"),
    "text not UTF-8": ({"k": b"\xff"}, [], {}, "UTF-8"),
    "lone surrogate": ({"k": "\ud800"}, [], {}, "not a string"),
    "a type GGUF lacks": ({"k": 1j}, [], {}, "complex has no type"),
    "an array GGUF lacks": ({"k": np.zeros(2, complex)}, [], {}, "complex128 has no type"),
    "None": ({"k": None}, [], {}, "NoneType has no type"),
    "empty list": ({"k": []}, [], {}, "empty list"),
    "mixed list": ({"k": [1, "a"]}, [], {}, "not UINT32"),
    "number among strings": ({"k": ["a", 1]}, [], {}, "not a string"),
    "negative as UINT32": ({"k": -1}, [], {}, "-1 does not fit UINT32"),
    "too large for UINT32": ({"k": 1 << 32}, [], {}, "does not fit UINT32"),
    "too large for UINT64": ({"k": (V.UINT64, 1 << 64)}, [], {}, "UINT64"),
    "fraction as INT32": ({"k": (V.INT32, 1.5)}, [], {}, "1.5 does not fit INT32"),
    "NaN as INT32": ({"k": (V.INT32, float("nan"))}, [], {}, "nan does not fit"),
    "text as FLOAT32": ({"k": (V.FLOAT32, "1")}, [], {}, "not FLOAT32"),
    "number as STRING": ({"k": (V.STRING, 5)}, [], {}, "not a string"),
    "number as BOOL": ({"k": (V.BOOL, 1)}, [], {}, "not BOOL"),
    "too large for FLOAT32": ({"k": 1e39}, [], {}, "does not fit FLOAT32"),
    "nested too deep": ({"k": [[[[[1]]]]]}, [], {}, "deeper than 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_and_leaves_the_old_file(path, name):
    metadata, tensors, options, reason = REFUSED[name]
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match=reason):
        write(path, metadata, tensors, **options)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failure_on_the_way_leaves_the_old_file(path):
    path.write_bytes(b"old")

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, {}, [t(data=fail)])
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_one_clear_message(path, tmp_path):
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        write(tmp_path / "none" / "m.gguf", {}, [])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_not_replaced(path, tmp_path):
    path.mkdir()
    os.mkfifo(tmp_path / "pipe")
    for place in (path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="is a folder, a device or a pipe"):
            write(place, {}, [])
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["pipe", path.name])


def test_a_name_as_long_as_names_can_be(tmp_path):
    write(tmp_path / ("x" * 255), {"general.architecture": "llama"}, [])
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


def test_the_new_file_is_synced_before_it_is_renamed(path, monkeypatch):
    steps = []
    fsync, verify = gguf_write.os.fsync, gguf_write._verify
    monkeypatch.setattr(gguf_write.os, "fsync", lambda fd: (steps.append("sync"), fsync(fd)))
    monkeypatch.setattr(gguf_write, "_verify", lambda p: (steps.append(f"verify {path.exists()}"), verify(p)))
    write(path, {}, [f32("t", 2)])
    assert steps == ["sync", "verify False", "sync"]
