"""Conversions: every weight kept, or said; nothing half made."""

import itertools
import json
import os
import signal
import subprocess
import sys

import checkpoints as ck
import golden_models
import numpy as np
import pytest

import bitnet
from bitnet import convert as converting
from bitnet.codecs import CODECS, Tile, codecs
from bitnet.codecs.i2_s import unpack_i2_s
from bitnet.codecs.tiles import kernel_config
from bitnet.convert import TARGETS, convert
from bitnet.errors import BitNetError, ModelFileError, ResourceLimitError, UsageError
from bitnet.formats import read_formats
from bitnet.gguf import GGMLType, read, write
from bitnet.hf import open_model
from bitnet.synthetic import Shape, make

IDS = (3, 1, 4, 1, 5, 9, 2, 6)
SOURCE = golden_models.model("b158_a")
TERNARY = ("i2_s", "tq1_0", "tq2_0", "tl1", "tl2", "hf")


def logits(path):
    return bitnet.load(path, numerics=bitnet.Numerics()).logits(IDS)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def carriers(tmp_path_factory):
    """The same model in every form."""
    folder = tmp_path_factory.mktemp("carriers")
    for to in TARGETS:
        convert(SOURCE, folder / to, type=to)
    return folder


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(TERNARY, 2)))
def test_round_trips_give_equal_weights_and_bit_equal_logits(carriers, tmp_path, first, second):
    there = convert(carriers / first, tmp_path / second, type=second)
    assert there.lossless
    assert there.n_verified > 0
    back = convert(tmp_path / second, tmp_path / "back", type=first)
    assert back.lossless
    expected = bitnet.load(SOURCE)
    for path in (tmp_path / second, tmp_path / "back"):
        assert bitnet.load(path).weights.digest() == expected.weights.digest()
        assert (logits(path) == logits(SOURCE)).all()


@pytest.mark.parametrize("to", ["f16", "f32"])
def test_floats_carry_the_same_products(carriers, to):
    ours, theirs = logits(carriers / to), logits(SOURCE)
    assert np.abs(ours - theirs).max() <= 2e-6 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ck.NAMES)
@pytest.mark.parametrize("to", ["i2_s", "f32", "hf"])
def test_checkpoints_of_transformers(tmp_path, name, to):
    source = ck.FIXTURES / name
    if name.startswith("llama") and to == "i2_s":
        with pytest.raises(UsageError, match="cannot be I2_S"):
            convert(source, tmp_path / "out", type=to)
        return
    done = convert(source, tmp_path / "out", type=to)
    assert done.lossless == (name != "bitnet-bf16")
    assert all("made ternary by mean|w|" in loss for loss in done.losses)
    if to != "f32":
        assert (logits(tmp_path / "out") == logits(source)).all()


def test_arm_and_four_row_layouts_are_found_and_give_equal_logits(tmp_path):
    from bitnet.codecs import Layout

    trained = ck.FIXTURES.parent / "models" / "tiny-relu2.i2_s.gguf"
    file = read(trained)
    table = read_formats(file).codecs
    for layout in Layout:
        other = codecs(layout=layout)[GGMLType.I2_S]
        tensors = []
        for name, info in file.tensors.items():
            data = file.raw(name)
            if info.type == GGMLType.I2_S:
                data = other.encode(table[info.type].unpack(data, info.shape, None))
            tensors.append(bitnet.gguf.TensorData(name=name, shape=info.shape, type=info.type, data=data))
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()}
        path = tmp_path / f"{layout.name}.gguf"
        write(path, metadata, tensors)
        loaded = bitnet.load(path)
        assert loaded.weights.formats.layout is layout
        assert (loaded.logits(IDS) == logits(trained)).all()
        for to in ("i2_s", "tq2_0", "tl2", "hf"):
            assert convert(path, tmp_path / to, type=to, force=True).lossless
            assert bitnet.load(tmp_path / to).weights.digest() == loaded.weights.digest()
            assert (logits(tmp_path / to) == logits(trained)).all()


def test_a_folder_that_holds_the_source_is_not_replaced(tmp_path):
    source = ck.copied(tmp_path)
    convert(source, source / "a.gguf", type="i2_s")
    for path in (source, source / "a.gguf"):
        with pytest.raises(UsageError, match=r"is the source itself|holds the source"):
            convert(path, source, type="hf", force=True)
    assert (source / "model.safetensors").exists()


def test_a_name_that_something_else_has_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "plan", lambda *_, **__: pytest.fail("the weights were read"))
    (tmp_path / "app" / ".git").mkdir(parents=True)
    (tmp_path / "app" / "config.json").write_text("{}")
    for to in ("i2_s", "hf"):
        with pytest.raises(UsageError, match=r"is a folder, and|holds no checkpoint"):
            convert(SOURCE, tmp_path / "app", type=to, force=True)
    assert names(tmp_path / "app") == [".git", "config.json"]
    with pytest.raises(UsageError, match="File name too long"):
        convert(SOURCE, tmp_path / ("x" * 256), type="i2_s")


def test_what_of_a_tokenizer_is_read_otherwise_is_told_where_it_is_rewritten(tmp_path):
    convert(ck.FIXTURES.parent / "models" / "tiny-relu2.i2_s.gguf", tmp_path / "m", type="hf")
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "NFC"}}))
    told = {to: convert(tmp_path / "m", tmp_path / to, type=to).notices for to in ("i2_s", "hf")}
    assert any("the normaliser (NFC) is not applied" in notice for notice in told["i2_s"])
    assert not any("normaliser" in notice for notice in told["hf"])  # the file goes along as it is


def test_what_is_written_is_read_back_and_a_lie_is_caught(tmp_path, monkeypatch):
    def lying(path, metadata, tensors, **settings):
        write(path, metadata, tensors, **settings)
        raw = bytearray(path.read_bytes())
        info = read(path).tensors["blk.1.ffn_up.weight"]
        raw[info.offset + 7] ^= 0b01 if raw[info.offset + 7] & 0b11 == 0b00 else 0b11 & raw[info.offset + 7]
        path.write_bytes(raw)

    monkeypatch.setattr(converting, "write", lying)
    with pytest.raises(ModelFileError, match=r"blk.1.ffn_up.weight differs in rows \d+ to \d+ after it was written"):
        convert(SOURCE, tmp_path / "a.gguf", type="i2_s")
    assert names(tmp_path) == []


def test_the_target_is_not_the_source_nor_replaced_unasked(tmp_path):
    path = tmp_path / "a.gguf"
    convert(SOURCE, path, type="i2_s")
    with pytest.raises(UsageError, match="is the source itself"):
        convert(path, path, type="tq2_0", force=True)
    with pytest.raises(UsageError, match="exists already"):
        convert(SOURCE, path, type="tq2_0")
    convert(SOURCE, path, type="tq2_0", force=True)
    assert read(path).tensors["blk.0.attn_q.weight"].type == GGMLType.TQ2_0


@pytest.mark.parametrize(
    ("to", "settings", "words"),
    [
        ("q4_k", {}, "cannot convert to 'q4_k'"),
        ("i2_s", {"arch": "gpt2"}, "architecture 'gpt2' is unknown"),
        ("i2_s", {"arch": "llama"}, "is another graph"),
        ("hf", {"arch": "bitnet"}, "has no architecture name"),
        ("hf", {"embedding_type": "f16"}, "embedding of a checkpoint is always f32"),
        ("i2_s", {"embedding_type": "q4_k"}, "an embedding cannot be 'q4_k'"),
    ],
)
def test_what_has_no_meaning(tmp_path, to, settings, words):
    with pytest.raises(UsageError, match=words):
        convert(SOURCE, tmp_path / "a", type=to, **settings)
    assert names(tmp_path) == []


def test_another_architecture_name_keeps_the_activation(tmp_path):
    done = convert(SOURCE, tmp_path / "a.gguf", type="tq2_0", arch="bitnet")
    assert done.arch == "bitnet"
    loaded = bitnet.load(tmp_path / "a.gguf", numerics=bitnet.Numerics())
    assert loaded.config.activation == bitnet.load(SOURCE).config.activation
    assert (loaded.logits(IDS) == logits(SOURCE)).all()


def test_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("U", (), {"free": 10})())
    with pytest.raises(ResourceLimitError, match="are free"):
        convert(SOURCE, tmp_path / "a.gguf", type="i2_s")


def test_a_damaged_source_leaves_nothing(tmp_path):
    source = ck.copied(tmp_path)
    ck.change(source, model__layers__1__mlp__up_proj__weight=("U8", [64, 128], b"\xff" * 64 * 128))
    with pytest.raises(BitNetError, match="code 3"):
        convert(source, tmp_path / "out.gguf", type="i2_s")
    assert names(tmp_path) == [source.name]


def test_progress_counts_every_byte_twice(tmp_path):
    seen = []
    source = ck.FIXTURES / "bitnet-bitlinear"
    done = convert(source, tmp_path / "a", type="i2_s", progress=lambda *what: seen.append(what))
    n = len(done.tensors)
    assert [w[0] for w in seen] == ["write"] * n + ["verify"] * (n + 1)
    assert {w[3] for w in seen[:n]} == set(open_model(source).tensors)
    for stage in ("write", "verify"):
        counts = [w[1] for w in seen if w[0] == stage]
        assert counts[0] == 0
        assert counts == sorted(counts)
    assert seen[-1] == ("verify", done.n_bytes, done.n_bytes, "")
    assert {w[2] for w in seen} == {done.n_bytes}


@pytest.mark.parametrize("name", ["b158_a", "bitnet_silu", "llama_tied"])
def test_a_scale_that_divides_is_exact_or_said(tmp_path, name):
    source = golden_models.model(name)
    done = convert(source, tmp_path / "m", type="hf-bitlinear")
    changed = {t.name for t in done.tensors if t.lost}
    ours, theirs = (open_model(path) for path in (tmp_path / "m", source))
    for key, info in theirs.tensors.items():
        if info.type == GGMLType.I2_S:
            a, b = (unpack_i2_s(file.raw(key), info.shape) for file in (ours, theirs))
            assert (a.trits == b.trits).all()
            assert abs(a.scale - b.scale) <= np.spacing(np.float32(b.scale))  # one unit in the last place
            assert (a.scale != b.scale) == (key in changed)
    again = convert(tmp_path / "m", tmp_path / "again", type="i2_s")
    assert again.lossless
    assert (logits(tmp_path / "again") == logits(tmp_path / "m")).all()


@pytest.mark.parametrize("name", ["b158_a", "bitnet_silu", "llama_tied"])
def test_bfloat16_keeps_the_trits_and_says_what_the_scales_lose(tmp_path, name):
    source = golden_models.model(name)
    done = convert(source, tmp_path / "m", type="hf-bf16")
    assert any("int8 activations" in notice for notice in done.notices)
    lost = {t.name: t.lost for t in done.tensors if t.lost}
    assert all("rounded to BF16" in words for words in lost.values())
    assert convert(tmp_path / "m", tmp_path / "back", type="i2_s").lossless
    ours, theirs = read(tmp_path / "back"), read(source)
    for key, info in theirs.tensors.items():
        if info.type == GGMLType.I2_S:
            a, b = (unpack_i2_s(file.raw(key), info.shape) for file in (ours, theirs))
            assert (a.trits == b.trits).all()
            assert a.scale == pytest.approx(b.scale, rel=2**-8)
            assert (a.scale != b.scale) == (key in lost)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_the_embedding_is_of_the_type_that_is_asked_for_and_its_loss_is_counted(tmp_path, kind):
    done = convert(SOURCE, tmp_path / "a", type="i2_s", embedding_type=kind)
    before, after = read(SOURCE), read(tmp_path / "a")
    info = after.tensors["token_embd.weight"]
    assert info.type.name == kind.upper()
    was, now = (
        CODECS[f.tensors["token_embd.weight"].type].decode(f.raw("token_embd.weight"), info.shape)
        for f in (before, after)
    )
    n = int((was != now).sum())
    assert done.lossless == (n == 0)
    if n:
        most = np.abs(was - now).max()
        words = f"rounded to {kind.upper()}: {n} of {was.size} weights change, by {most:.2g} at most"
        assert done.losses == (f"token_embd.weight is {words}",)
        back = convert(tmp_path / "a", tmp_path / "b", type="i2_s", embedding_type="f32")
        assert back.lossless
    assert np.isfinite(logits(tmp_path / "a")).all()


def test_tiles_are_those_of_the_build_that_will_read_the_file(tmp_path):
    config = tmp_path / "kernel_config.ini"
    shapes = {i.shape for i in read(SOURCE).tensors.values() if i.type == GGMLType.I2_S}
    tiles = {shape: Tile(bm=32, bk=96, bmm=32) for shape in shapes}
    config.write_text(kernel_config(tiles))
    target = tmp_path / "m" / "a.gguf"
    assert convert(SOURCE, target, type="tl2", kernel_config=config).lossless
    found = read_formats(read(target)).tiles
    assert all(found[GGMLType.TL2, *shape] == tile for shape, tile in tiles.items())
    assert (logits(target) == logits(SOURCE)).all()
    with pytest.raises(UsageError, match="only tl1 and tl2 have tiles"):
        convert(SOURCE, tmp_path / "b", type="i2_s", kernel_config=config)
    with pytest.raises(UsageError, match="cannot be read"):
        convert(SOURCE, tmp_path / "b", type="tl1", kernel_config=tmp_path / "none.ini")


def test_every_tensor_is_listed_with_what_it_was_and_is(tmp_path):
    done = convert(ck.FIXTURES / "bitnet-bf16", tmp_path / "a", type="i2_s", embedding_type="f16")
    listed = {t.name: t for t in done.tensors}
    written = read(tmp_path / "a").tensors
    assert {name: (t.target_type, t.n_bytes, t.shape) for name, t in listed.items()} == {
        name: (i.type.name, i.n_bytes, i.shape) for name, i in written.items()
    }
    query = listed["blk.0.attn_q.weight"]
    assert (query.source_type, query.target_type, query.lost) == ("BF16", "I2_S", "made ternary by mean|w|")
    assert listed["token_embd.weight"].source_type == "BF16"


SCRIPT = """
import sys, signal
from bitnet.convert import convert
def progress(stage, done, total, name):
    if stage == sys.argv[3] and done > 0:
        print("ready", flush=True)
        signal.pause()
convert(sys.argv[1], sys.argv[2], type="tq2_0", progress=progress)
"""


@pytest.mark.parametrize("stage", ["write", "verify"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_an_interrupt_leaves_nothing_and_the_next_run_cleans_up_after_a_kill(tmp_path, stage, number):
    target = tmp_path / "a.gguf"
    command = [sys.executable, "-c", SCRIPT, str(SOURCE), str(target), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        child.wait(30)
    assert not target.exists()
    if number == signal.SIGINT:
        assert names(tmp_path) == []
    convert(SOURCE, target, type="tq2_0")
    assert names(tmp_path) == ["a.gguf"]


MEMORY = """
import resource, sys
from bitnet.convert import convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], type=sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


@pytest.mark.slow
def test_memory_is_that_of_one_tensor_whatever_the_number_of_layers(tmp_path):
    """What a 10 B model takes follows: its largest tensor, not its size."""
    peaks = {}
    for n_layer in (4, 16):
        shape = Shape(n_layer=n_layer, n_embd=1024, n_ff=4096, n_head=8, n_head_kv=2, n_vocab=32_000)
        source = make(tmp_path / f"{n_layer}.gguf", shape)
        for to in ("hf", "tl2"):
            command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / f"{n_layer}.{to}"), to]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[n_layer, to] = int(done.stdout)
    largest = 32_000 * 1024 * 4  # bytes of the embedding in float32
    for to in ("hf", "tl2"):
        assert peaks[16, to] <= peaks[4, to] + (32 << 20)
        assert peaks[16, to] <= 3 * largest
