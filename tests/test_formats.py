"""What a file does not say: layouts found by evidence and read to equal logits, tiles from wherever they are."""

from __future__ import annotations

from pathlib import Path

import golden_models
import numpy as np
import pytest
from model_edits import edited

import bitnet
from bitnet import formats as module
from bitnet.architecture import read_config
from bitnet.codecs import CODECS, Layout, Tile, codecs, pack_i2_s
from bitnet.codecs.tiles import PRESETS, kernel_config
from bitnet.errors import ModelFileError, UsageError
from bitnet.formats import KERNEL_CONFIG_KEY, Reading, decisive, evidence, layout_of_known, read_formats
from bitnet.gguf import GGMLType, TensorData, read, write
from bitnet.transcode import transcode
from bitnet.weights import read_weights

MODELS = Path(__file__).parents[1] / "fixtures" / "models"
TRAINED = ("tiny-relu2", "tiny-silu", "tiny-llama")
I2_S, TL1, TL2 = GGMLType.I2_S, GGMLType.TL1, GGMLType.TL2
IDS = list(range(5, 21))


def model(name):
    return MODELS / f"{name}.i2_s.gguf"


def relaid(source, target, layout):
    """A copy of a file with its I2_S in another layout."""
    file = read(source)
    codec = codecs(layout=layout)[I2_S]
    tensors = {
        name: TensorData(
            name=name,
            shape=info.shape,
            type=I2_S,
            data=codec.encode(CODECS[I2_S].unpack(file.raw(name), info.shape, None)),
        )
        for name, info in file.tensors.items()
        if info.type == I2_S
    }
    return edited(source, target, tensors=tensors)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("layout", Layout, ids=lambda v: v.name)
def test_every_layout_is_found_said_and_read_to_equal_logits(tmp_path, name, layout):
    path = relaid(model(name), tmp_path / "m.gguf", layout)
    expected, found = bitnet.load(model(name), n_threads=1), bitnet.load(path, n_threads=1)
    assert found.weights.formats.layout is layout
    assert found.weights.digest() == expected.weights.digest()
    assert found.logits(IDS).tobytes() == expected.logits(IDS).tobytes()
    said = [n for n in found.notices if "I2_S" in n]
    assert said == [] if layout is Layout.X86 else layout.value in said[0]


@pytest.mark.parametrize("name", TRAINED)
def test_the_evidence_is_three_times_what_is_asked_for(name):
    """Trained anew, the models may come nearer to the limits: this fails before they are passed."""
    scored = evidence(read(model(name)), [Reading(name=v.name, codecs=codecs(layout=v)) for v in Layout])
    assert scored[0].name == "X86"
    assert scored[0].score > 3 * module._DECISIVE
    assert scored[0].score > 3 * module._MARGIN * scored[1].score


@pytest.mark.parametrize("name", TRAINED)
def test_an_embedding_of_another_order_is_no_evidence(tmp_path, name):
    """Nothing is found where there is nothing to find: the columns of the embedding are shuffled."""
    file = read(model(name))
    info = file.tensors["token_embd.weight"]
    values = CODECS[info.type].decode(file.raw(info.name), info.shape)
    for seed in range(5):
        shuffled = values[:, np.random.default_rng(seed).permutation(info.shape[1])]
        found = read_formats(read(edited(model(name), tmp_path / "m.gguf", tensors={info.name: shuffled})))
        assert found.layout is Layout.X86
        assert "nothing in the weights tells which layout" in found.notices[0]


def test_weights_that_are_not_trained_tell_nothing_and_it_is_said(tmp_path):
    for source in (
        golden_models.model("b158_a"),
        relaid(golden_models.model("b158_a"), tmp_path / "m.gguf", Layout.ARM),
    ):
        found = read_formats(read(source))
        assert found.layout is Layout.X86
        assert "nothing in the weights tells which layout" in found.notices[0]


def test_a_layout_that_is_given_is_not_looked_for(tmp_path):
    path = relaid(golden_models.model("b158_a"), tmp_path / "m.gguf", Layout.ROWS)
    file = read(path)
    formats = read_formats(file, layout=Layout.ROWS)
    assert formats.notices == ()
    weights = read_weights(file, read_config(file)[0], formats)
    assert weights.digest() == bitnet.load(golden_models.model("b158_a"), n_threads=1).weights.digest()


def test_a_reading_must_lead_clearly():
    def scored(*scores):
        return [Reading(name=str(s), codecs=CODECS, score=s) for s in scores]

    assert decisive(scored(2000, 30, 1))
    assert decisive(scored(2000))
    assert not decisive(scored(190, 1, 1))
    assert not decisive(scored(2000, 210, 1))


def test_layouts_by_a_known_tensor():
    trits = np.random.default_rng(0).integers(-1, 2, (8, 256)).astype(np.int8)
    for layout in Layout:
        assert layout_of_known(pack_i2_s(trits, 1.0, layout=layout), (8, 256), trits) is layout
    assert layout_of_known(pack_i2_s(trits, 1.0), (8, 256), -trits) is None
    six = trits[:6]
    assert layout_of_known(pack_i2_s(six, 1.0, layout=Layout.ARM), (6, 256), six) is Layout.ARM


def test_damage_is_no_evidence(tmp_path):
    def spoil(raw):
        raw[:64] = 0xFF
        return raw

    path = edited(model("tiny-silu"), tmp_path / "m.gguf", tensors={"blk.0.attn_q.weight": spoil})
    assert read_formats(read(path)).layout is Layout.X86  # by the other matrices
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_q\.weight: code 3"):
        bitnet.load(path)


def test_files_without_an_embedding_are_read_as_usual(tmp_path):
    for drop in (("token_embd.weight",), ()):
        tensors = {} if drop else {"token_embd.weight": np.full((4, 256), np.nan, np.float32)}
        path = edited(model("tiny-silu"), tmp_path / "m.gguf", drop=drop, tensors=tensors)
        assert read_formats(read(path)).layout is Layout.X86


# --- tiles ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def undeclared(tmp_path):
    """A TL2 file that does not say its tiles, and its `kernel_config.ini`."""
    own = transcode(read(model("tiny-silu")), tmp_path / "own.gguf", TL2)
    config = read(own).metadata[KERNEL_CONFIG_KEY]
    folder = tmp_path / "folder"
    folder.mkdir()
    return edited(own, folder / "m.gguf", keys={KERNEL_CONFIG_KEY: None}), config


def test_tiles_come_from_the_file_beside_it_or_the_caller(undeclared, tmp_path):
    path, config = undeclared
    with pytest.raises(ModelFileError, match=r"tensor blk\.0\.attn_q\.weight: the tile sizes .* unknown"):
        bitnet.load(path)
    expected = bitnet.load(model("tiny-silu"), n_threads=1).logits(IDS)

    elsewhere = tmp_path / "a.ini"
    elsewhere.write_text(config)
    file = read(path)
    weights = read_weights(file, read_config(file)[0], read_formats(file, kernel_config=elsewhere))
    assert weights.digest() == bitnet.load(model("tiny-silu"), n_threads=1).weights.digest()

    path.with_name("kernel_config.ini").write_text(config)
    loaded = bitnet.load(path, n_threads=1)
    assert loaded.logits(IDS).tobytes() == expected.tobytes()
    assert any("kernel_config.ini beside the file" in n for n in loaded.notices)


def test_a_configuration_beside_a_file_without_tables_is_not_looked_at(tmp_path):
    (tmp_path / "kernel_config.ini").write_text("nonsense")
    path = edited(model("tiny-silu"), tmp_path / "m.gguf")
    assert read_formats(read(path)).layout is Layout.X86


def test_configurations_that_cannot_be_read(undeclared, tmp_path):
    path, _ = undeclared
    file = read(path)
    for text, reason in (
        (b"nonsense", "no kernel configuration"),
        (b"\xff", "cannot be read"),
        (b" " * 70000, "larger"),
    ):
        (tmp_path / "a.ini").write_bytes(text)
        path.with_name("kernel_config.ini").write_bytes(text)
        with pytest.raises(UsageError, match=reason):
            read_formats(file, kernel_config=tmp_path / "a.ini")
        with pytest.raises(ModelFileError, match=reason):
            read_formats(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_formats(file, kernel_config=tmp_path / "none.ini")
    broken = edited(path, tmp_path / "b.gguf", keys={KERNEL_CONFIG_KEY: "nonsense"})
    with pytest.raises(ModelFileError, match="no kernel configuration") as caught:
        read_formats(read(broken))
    assert KERNEL_CONFIG_KEY in str(caught.value)


def test_where_presets_differ_the_evidence_decides(tmp_path, monkeypatch):
    """As for the 8B Llama in TL1, whose tiles bitnet.cpp's setup and its pretuned kernels take differently."""
    file = read(model("tiny-silu"))
    shapes = sorted({i.shape for i in file.tensors.values() if i.type == I2_S})
    one, other = ({(TL1, *s): Tile(bm, 64, 32) for s in shapes} for bm in (64, 128))
    monkeypatch.setattr(module, "PRESETS", {"one": one, "other": other})
    for name, tiles in (("one", one), ("other", other)):
        copy = transcode(file, tmp_path / "a.gguf", TL1, tiles=tiles)
        bare = edited(copy, tmp_path / f"{name}.gguf", keys={KERNEL_CONFIG_KEY: None})
        formats = read_formats(read(bare))
        assert formats.tiles is tiles
        assert f"taken to be those of {name}" in formats.notices[0]
    random = transcode(read(golden_models.model("b158_a")), tmp_path / "a.gguf", TL1, tiles=one)
    shapes = {(t.shape): Tile(64, 64, 32) for t in read(random).tensors.values() if t.type == TL1}
    monkeypatch.setattr(
        module, "PRESETS", {n: {(TL1, *s): Tile(bm, 64, 32) for s in shapes} for n, bm in (("one", 64), ("other", 128))}
    )
    bare = edited(random, tmp_path / "r.gguf", keys={KERNEL_CONFIG_KEY: None})
    assert "nothing in the weights tells which" in read_formats(read(bare)).notices[0]


def test_presets_are_enough_for_the_models_they_were_made_for(tmp_path):
    trits = np.random.default_rng(0).integers(-1, 2, (1536, 1536)).astype(np.int8)
    tile = PRESETS["bitnet.cpp's setup"][TL2, 1536, 1536]
    raw = codecs()[TL2].encode(trits.astype(np.float32))
    name = "blk.0.attn_q.weight"
    write(
        tmp_path / "m.gguf",
        {"general.architecture": "bitnet"},
        [TensorData(name=name, shape=trits.shape, type=TL2, data=raw)],
    )
    file = read(tmp_path / "m.gguf")
    formats = read_formats(file)
    assert formats.notices == ()
    np.testing.assert_array_equal(formats.codecs[TL2].unpack(file.raw(name), trits.shape, None).trits, trits)
    assert "bk = 192" in kernel_config({(1536, 1536): tile})
