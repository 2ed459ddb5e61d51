"""Conversions: every weight kept, or said; nothing half made."""

import itertools
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
from bitnet.codecs import codecs
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
        convert(SOURCE, folder / to, to)
    return folder


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(TERNARY, 2)))
def test_round_trips_give_equal_weights_and_bit_equal_logits(carriers, tmp_path, first, second):
    there = convert(carriers / first, tmp_path / second, second)
    assert there.lossless
    assert there.n_verified > 0
    back = convert(tmp_path / second, tmp_path / "back", first)
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
            convert(source, tmp_path / "out", to)
        return
    done = convert(source, tmp_path / "out", to)
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


def test_what_is_written_is_read_back_and_a_lie_is_caught(tmp_path, monkeypatch):
    def lying(path, metadata, tensors, **settings):
        write(path, metadata, tensors, **settings)
        raw = bytearray(path.read_bytes())
        info = read(path).tensors["blk.1.ffn_up.weight"]
        raw[info.offset + 7] ^= 0b01 if raw[info.offset + 7] & 0b11 == 0b00 else 0b11 & raw[info.offset + 7]
        path.write_bytes(raw)

    monkeypatch.setattr(converting, "write", lying)
    with pytest.raises(ModelFileError, match=r"blk.1.ffn_up.weight differs in rows \d+ to \d+ after it was written"):
        convert(SOURCE, tmp_path / "a.gguf", "i2_s")
    assert names(tmp_path) == []


def test_the_target_is_not_the_source_nor_replaced_unasked(tmp_path):
    path = tmp_path / "a.gguf"
    convert(SOURCE, path, "i2_s")
    with pytest.raises(UsageError, match="is the source itself"):
        convert(path, path, "tq2_0", force=True)
    with pytest.raises(UsageError, match="exists already"):
        convert(SOURCE, path, "tq2_0")
    convert(SOURCE, path, "tq2_0", force=True)
    assert read(path).tensors["blk.0.attn_q.weight"].type == GGMLType.TQ2_0


@pytest.mark.parametrize(
    ("to", "settings", "words"),
    [
        ("q4_k", {}, "cannot convert to 'q4_k'"),
        ("i2_s", {"arch": "gpt2"}, "architecture 'gpt2' is unknown"),
        ("i2_s", {"arch": "llama"}, "is another graph"),
        ("hf", {"arch": "bitnet"}, "has no architecture name"),
    ],
)
def test_what_has_no_meaning(tmp_path, to, settings, words):
    with pytest.raises(UsageError, match=words):
        convert(SOURCE, tmp_path / "a", to, **settings)
    assert names(tmp_path) == []


def test_another_architecture_name_keeps_the_activation(tmp_path):
    done = convert(SOURCE, tmp_path / "a.gguf", "tq2_0", arch="bitnet")
    assert done.arch == "bitnet"
    loaded = bitnet.load(tmp_path / "a.gguf", numerics=bitnet.Numerics())
    assert loaded.config.activation == bitnet.load(SOURCE).config.activation
    assert (loaded.logits(IDS) == logits(SOURCE)).all()


def test_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("U", (), {"free": 10})())
    with pytest.raises(ResourceLimitError, match="are free"):
        convert(SOURCE, tmp_path / "a.gguf", "i2_s")


def test_a_damaged_source_leaves_nothing(tmp_path):
    source = ck.copied(tmp_path)
    ck.change(source, model__layers__1__mlp__up_proj__weight=("U8", [64, 128], b"\xff" * 64 * 128))
    with pytest.raises(BitNetError, match="code 3"):
        convert(source, tmp_path / "out.gguf", "i2_s")
    assert names(tmp_path) == [source.name]


def test_progress_names_every_tensor_twice():
    seen = []
    source = ck.FIXTURES / "bitnet-bitlinear"
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        done = convert(source, Path(folder) / "a", "i2_s", progress=lambda *what: seen.append(what))
    assert [w[0] for w in seen] == ["write"] * done.n_tensors + ["verify"] * done.n_tensors
    assert {w[3] for w in seen} == set(open_model(source).tensors)


SCRIPT = """
import sys, signal
from bitnet.convert import convert
def progress(stage, done, total, name):
    if (stage, done) == (sys.argv[3], 3):
        print("ready", flush=True)
        signal.pause()
convert(sys.argv[1], sys.argv[2], "tq2_0", progress=progress)
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
    convert(SOURCE, target, "tq2_0")
    assert names(tmp_path) == ["a.gguf"]


MEMORY = """
import resource, sys
from bitnet.convert import convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[2], sys.argv[3])
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
