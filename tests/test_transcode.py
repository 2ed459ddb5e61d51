"""The same weights in every container type: equal bits, or a refusal and no file."""

from __future__ import annotations

from itertools import permutations

import golden_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_edits import edited, with_tail_scale
from test_gguf_shards import split

import bitnet
from bitnet import parts
from bitnet.codecs import CODECS, Ternary, Tile
from bitnet.config import Numerics
from bitnet.errors import GGUFError, ModelFileError, UsageError
from bitnet.formats import KERNEL_CONFIG_KEY, read_formats
from bitnet.gguf import GGMLType, TensorData, read, write
from bitnet.transcode import FILE_TYPES, FLOATS, SCALE_BESIDE, plan, transcode

I2_S, TQ1_0, TQ2_0, F32 = GGMLType.I2_S, GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.F32
TL1, TL2 = GGMLType.TL1, GGMLType.TL2
TERNARY = (I2_S, TQ1_0, TQ2_0, TL1, TL2)
SOURCE = golden_models.model("b158_a")
Q = "blk.0.attn_q.weight"


def decoded(path):
    """Every tensor as float32 with its `.scale` multiplied in; scales themselves left out."""
    file = read(path)
    table = read_formats(file).codecs
    out = {}
    for name, info in file.tensors.items():
        if name.endswith(".scale"):
            continue
        shape = info.shape if len(info.shape) > 1 else (1, *info.shape)
        value = table[info.type].decode(file.raw(name), shape)
        beside = name.removesuffix(".weight") + ".scale"
        out[name] = value * file.raw(beside).view(np.float32)[0] if beside in file.tensors else value
    return out


def same(one, other):
    a, b = decoded(one), decoded(other)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def small(path, trits, *, kind=I2_S, scale=0.7, block_scale=None, extra=()):
    """A file that holds one ternary matrix."""
    block = block_scale if kind != I2_S else None
    raw = CODECS[kind].encode(Ternary(trits=trits, scale=scale if block is None else None, block_scale=block))
    write(
        path,
        {"general.architecture": "bitnet", "bitnet.block_count": 1},
        [TensorData(name="w.weight", shape=trits.shape, type=kind, data=raw), *extra],
    )
    return read(path)


def trits(n_row, n_col, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (n_row, n_col)).astype(np.int8)


@pytest.mark.parametrize("to", FILE_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("via", TERNARY, ids=lambda t: t.name)
def test_every_direction_is_lossless(tmp_path, via, to):
    first = transcode(read(SOURCE), tmp_path / "via.gguf", via)
    second = transcode(read(first), tmp_path / "to.gguf", to)
    assert same(SOURCE, first)
    assert same(SOURCE, second)
    file = read(second)
    assert {i.type for n, i in file.tensors.items() if n.startswith("blk") and ".ffn_up." in n} <= {to, F32}
    assert file.tensors[Q].type == to
    assert file.metadata["general.file_type"] == FILE_TYPES[to]
    scales = [n for n in file.tensors if n.endswith(".scale")]
    n_layer = file.metadata["bitnet-b1.58.block_count"]
    assert len(scales) == (7 * n_layer if to in SCALE_BESIDE else 0)
    assert all(file.tensors[n].type == F32 and file.tensors[n].shape == (1,) for n in scales)
    if to in (TQ1_0, TQ2_0):
        unpacked = CODECS[to].unpack(file.raw(Q), file.tensors[Q].shape, None)
        assert (unpacked.block_scale == 1).all()  # float16 could not carry the true one


def test_the_comparison_sees_one_bit(tmp_path):
    copy = transcode(read(SOURCE), tmp_path / "a.gguf", TQ2_0)
    scale = read(copy).raw("blk.0.attn_q.scale").view(np.float32)[0]
    off = edited(copy, tmp_path / "b.gguf", tensors={"blk.0.attn_q.scale": [np.nextafter(scale, np.float32(2))]})
    assert same(SOURCE, copy)
    assert not same(SOURCE, off)


@pytest.mark.parametrize(("kind", "to"), list(permutations(TERNARY, 2)))
def test_a_path_of_several_steps_ends_where_it_began(tmp_path, kind, to):
    one = transcode(read(SOURCE), tmp_path / "1.gguf", kind)
    there = transcode(read(one), tmp_path / "2.gguf", to)
    back = transcode(read(there), tmp_path / "3.gguf", kind)
    assert one.read_bytes() == back.read_bytes()


def test_the_engine_computes_the_same_logits_from_every_copy(tmp_path):
    expected = bitnet.load(SOURCE, n_threads=1, device="plain").logits([1, 2, 3])
    for to in (TQ1_0, TQ2_0, TL1, TL2):
        copy = transcode(read(SOURCE), tmp_path / f"{to.name}.gguf", to)
        assert np.array_equal(bitnet.load(copy, n_threads=1, device="plain").logits([1, 2, 3]), expected)
    dense = bitnet.load(transcode(read(SOURCE), tmp_path / "f32.gguf", F32), n_threads=1)
    assert dense.network.numerics == Numerics()


def test_an_equal_block_scale_and_a_scale_beside_become_one(tmp_path):
    beside = TensorData(name="w.scale", shape=(1,), type=F32, data=np.array([3], np.float32).view(np.uint8))
    half = TensorData(
        name="w.scale", shape=(1,), type=GGMLType.F16, data=CODECS[GGMLType.F16].encode(np.full((1, 1), 3, np.float32))
    )
    blocks = np.full((4, 2), 0.25, np.float32)
    for scale in (beside, half):
        source = small(tmp_path / "s.gguf", trits(4, 512), kind=TQ2_0, block_scale=blocks, extra=[scale])
        packed = read(transcode(source, tmp_path / "i.gguf", I2_S))
        unpacked = CODECS[I2_S].unpack(packed.raw("w.weight"), (4, 512), None)
        assert np.array_equal(unpacked.trits, trits(4, 512))
        assert unpacked.scale == 0.75
        assert "w.scale" not in packed.tensors


def test_everything_else_is_copied(tmp_path):
    copy, source = read(transcode(read(SOURCE), tmp_path / "m.gguf", TQ2_0)), read(SOURCE)
    for name, info in source.tensors.items():
        if info.type != I2_S:
            assert copy.tensors[name].type == info.type
            assert np.array_equal(copy.raw(name), source.raw(name))
    for key in source.metadata:
        assert copy.types[key] == source.types[key]
        if key != "general.file_type":
            assert repr(copy.metadata[key]) == repr(source.metadata[key])
    assert list(copy.metadata)[: len(source.metadata)] == list(source.metadata)


def test_another_architecture_takes_its_keys_along(tmp_path):
    copy, source = read(transcode(read(SOURCE), tmp_path / "m.gguf", I2_S, arch="bitnet")), read(SOURCE)
    assert copy.metadata["general.architecture"] == "bitnet"
    for key in source.metadata:
        renamed = "bitnet" + key.removeprefix("bitnet-b1.58") if key.startswith("bitnet-b1.58.") else key
        assert renamed in copy.metadata
    assert not any(key.startswith("bitnet-b1.58") for key in copy.metadata)
    assert same(SOURCE, copy.path)


@pytest.mark.parametrize("to", [I2_S, TQ2_0, F32], ids=lambda t: t.name)
def test_the_shards_of_a_model_become_one_file(tmp_path, to):
    file = read(SOURCE)
    keys = {key: (file.types[key], value) for key, value in file.metadata.items()}
    tensors = {n: TensorData(name=n, shape=i.shape, type=i.type, data=file.raw(n)) for n, i in file.tensors.items()}
    shards = split(tmp_path, 3, model=(keys, tensors))
    merged = transcode(read(shards[1]), tmp_path / "m.gguf", to)
    assert same(SOURCE, merged)
    assert not any(key.startswith("split.") for key in read(merged).metadata)
    assert read(merged).metadata.keys() == read(transcode(file, tmp_path / "w.gguf", to)).metadata.keys()


def test_tiles_stay_behind_under_another_architecture_too(tmp_path):
    """`bitnet.kernel_config` begins as the keys of the architecture `bitnet` do."""
    tiled = transcode(read(SOURCE), tmp_path / "a.gguf", TL1, arch="bitnet")
    assert KERNEL_CONFIG_KEY in read(tiled).metadata
    for to in (I2_S, TL1):
        renamed = read(transcode(read(tiled), tmp_path / "b.gguf", to, arch="bitnet-b1.58"))
        assert [key for key in renamed.metadata if "kernel_config" in key] == [KERNEL_CONFIG_KEY] * (to == TL1)
        assert same(SOURCE, renamed.path)


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(source, target, to, match):
    with pytest.raises(UsageError, match=match) as caught:
        transcode(source, target, to)
    assert not target.exists()
    assert not list(target.parent.glob(f".{target.name}*"))
    return caught.value


@pytest.mark.parametrize("kind", [TQ1_0, TQ2_0], ids=lambda t: t.name)
def test_block_scales_that_differ_are_kept_or_refused(tmp_path, kind):
    blocks = np.array([[0.25, 0.5, 0.0]], np.float32)
    beside = TensorData(name="w.scale", shape=(1,), type=F32, data=np.array([0.3], np.float32).view(np.uint8))
    for extra in ((), (beside,)):
        source = small(tmp_path / "s.gguf", trits(1, 768), kind=kind, block_scale=blocks, extra=extra)
        for to in FILE_TYPES:
            if to in (I2_S, TL1, TL2):
                error = refused(source, tmp_path / "t.gguf", to, "w.weight has block scales that differ")
                assert error.where == str(tmp_path / "s.gguf")
                assert error.remedy == "without loss it can become one of TQ1_0, TQ2_0, F16, F32"
                continue
            target = read(transcode(source, tmp_path / f"{to.name}.gguf", to))
            assert target.tensors["w.weight"].type == to
            assert same(source.path, target.path)
            assert ("w.scale" in target.tensors) == (bool(extra) and to in SCALE_BESIDE)
            told = plan(source, to).notices
            assert [("w.weight" in n and "without BitNet's int8 activations" in n) for n in told] == [True] * (
                to in FLOATS
            )
            if to == kind:
                assert (target.raw("w.weight") == source.raw("w.weight")).all()


def test_what_is_packed_wrongly_is_refused_by_file_and_tensor(tmp_path):
    blocks = np.repeat(np.array([[0.25], [0.5]], np.float32), 2, axis=0)
    for scales in (blocks, np.ones_like(blocks)):
        source = small(tmp_path / "s.gguf", trits(4, 256), kind=TQ2_0, block_scale=scales)
        raw = source.raw("w.weight").copy()
        raw[-66] = 0xFF
        edited(source.path, tmp_path / "d.gguf", tensors={"w.weight": lambda _, raw=raw: raw})
        with pytest.raises(ModelFileError, match=r"tensor w\.weight: ") as caught:
            transcode(read(tmp_path / "d.gguf"), tmp_path / "t.gguf", TQ1_0)
        assert caught.value.where == str(tmp_path / "d.gguf")
        assert not (tmp_path / "t.gguf").exists()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from([TQ1_0, TQ2_0]), to=st.sampled_from(TERNARY))
def test_the_scale_of_a_block_of_zeros_says_nothing(tmp_path_factory, data, kind, to):
    """ggml's quantiser gives such blocks the scale 0."""
    folder = tmp_path_factory.mktemp("zeros")
    used = np.array(data.draw(st.lists(st.booleans(), min_size=8, max_size=8))).reshape(4, 2)
    spare = np.array(data.draw(st.lists(st.sampled_from([0, 0.125, 3]), min_size=8, max_size=8))).reshape(4, 2)
    values = trits(32, 512) * np.kron(used, np.ones((8, 256), np.int8)).astype(np.int8)
    blocks = np.repeat(np.where(used, 0.25, spare), 8, axis=0).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PIECE", 512)
        source = small(folder / "s.gguf", values, kind=kind, block_scale=blocks)
        target = transcode(source, folder / "t.gguf", to)
    assert same(source.path, target)


def test_rows_that_do_not_suit(tmp_path):
    source = small(tmp_path / "s.gguf", trits(2, 384))
    for to in (TQ1_0, TQ2_0):
        refused(
            source, tmp_path / "t.gguf", to, f"w.weight cannot be {to.name}: its rows of 384 are not a multiple of 256"
        )
    assert same(source.path, transcode(source, tmp_path / "f.gguf", F32))


def test_tiles_are_those_asked_for_then_the_known_ones_and_are_kept_in_the_file(tmp_path):
    source = small(tmp_path / "s.gguf", trits(64, 512))
    for tiles, config in (
        (None, "bm = 64\nbk = 192\nbmm = 32\n"),
        ({(TL2, 64, 512): Tile(32, 96, 32)}, "bm = 32\nbk = 96\nbmm = 32\n"),
    ):
        copy = transcode(source, tmp_path / "t.gguf", TL2, tiles=tiles)
        assert read(copy).metadata[KERNEL_CONFIG_KEY] == f"[Kernels_0]\nm = 64\nk = 512\n{config}"
        assert same(source.path, copy)
    assert KERNEL_CONFIG_KEY not in read(transcode(read(copy), tmp_path / "i.gguf", I2_S)).metadata
    known = read(transcode(small(tmp_path / "s.gguf", trits(1536, 1536)), tmp_path / "t.gguf", TL1))
    assert known.metadata[KERNEL_CONFIG_KEY].endswith("bm = 128\nbk = 64\nbmm = 64\n")
    with pytest.raises(UsageError, match="does not divide 64 rows"):
        transcode(source, tmp_path / "t.gguf", TL2, tiles={(TL2, 64, 512): Tile(96, 96, 32)})
    refused(small(tmp_path / "s.gguf", trits(48, 512)), tmp_path / "u.gguf", TL1, "no tile of TL1 suits")


@pytest.mark.parametrize("to", [GGMLType.BF16, GGMLType.Q8_0, GGMLType.IQ2_S])
def test_types_that_would_lose_something(tmp_path, to):
    known = "F32, F16, TQ1_0, TQ2_0, TL1, TL2, I2_S"
    refused(read(SOURCE), tmp_path / "t.gguf", to, f"cannot transcode to {to.name}\n.*{known}")


def test_scales_that_are_none(tmp_path):
    pair = TensorData(name="w.scale", shape=(2,), type=F32, data=np.ones(2, np.float32).view(np.uint8))
    refused(small(tmp_path / "s.gguf", trits(1, 256), extra=[pair]), tmp_path / "t.gguf", F32, "a scale is one float")
    huge = TensorData(name="w.scale", shape=(1,), type=F32, data=np.array([1e30], np.float32).view(np.uint8))
    source = small(tmp_path / "s.gguf", trits(1, 256), scale=1e30, extra=[huge])
    refused(source, tmp_path / "t.gguf", F32, "scale that is not finite")


def test_a_file_without_an_architecture(tmp_path):
    path = edited(SOURCE, tmp_path / "s.gguf", keys={"general.architecture": None})
    with pytest.raises(GGUFError, match="missing"):
        transcode(read(path), tmp_path / "t.gguf", F32)


def test_a_fault_on_the_way_leaves_the_old_file(tmp_path, monkeypatch):
    """Tensors are encoded while the file is written: the third one fails."""
    target = tmp_path / "t.gguf"
    target.write_bytes(b"the old file")
    calls = []

    def failing(**fields):
        calls.append(fields)
        if len(calls) == 3:
            raise ZeroDivisionError
        return Ternary(**fields)

    monkeypatch.setattr("bitnet.parts.Ternary", failing)
    with pytest.raises(ZeroDivisionError):
        transcode(read(SOURCE), target, TQ2_0)
    assert len(calls) == 3
    assert target.read_bytes() == b"the old file"
    assert [p.name for p in tmp_path.iterdir()] == ["t.gguf"]


def test_a_damaged_source_is_refused_before_anything_is_written(tmp_path):
    path = edited(SOURCE, tmp_path / "s.gguf", tensors={Q: with_tail_scale(np.nan)})
    with pytest.raises(bitnet.BitNetError, match="scale"):
        transcode(read(path), tmp_path / "t.gguf", F32)
    assert not (tmp_path / "t.gguf").exists()


def test_folders_on_the_way_are_made(tmp_path):
    assert transcode(read(SOURCE), tmp_path / "a" / "b.gguf", I2_S).is_file()
