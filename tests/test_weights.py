"""What is in a file becomes matrices, or an error that names the tensor."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest
import tiny_models
from model_edits import edited, with_tail_scale

from bitnet.architecture import read_config
from bitnet.codecs import CODECS
from bitnet.errors import ModelFileError
from bitnet.gguf import GGMLType, TensorData, read
from bitnet.linear import DenseMatrix, Int8Matrix, TernaryMatrix
from bitnet.transcode import transcode
from bitnet.validate import verify
from bitnet.weights import read_weights

SOURCE = golden_models.model("b158_a")
Q = "blk.0.attn_q.weight"


def weights(path):
    gguf = read(path)
    return read_weights(gguf, read_config(gguf)[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.Models(tmp_path_factory.mktemp("models"))


def floats(matrix):
    """A matrix as its kernels understand it, float64."""
    if isinstance(matrix, TernaryMatrix):
        planes = (matrix.codes.reshape(matrix.n_row, -1, 1, 32) >> np.array([[6], [4], [2], [0]], np.uint8)) & 3
        value = planes.reshape(matrix.n_row, -1).astype(np.float64) - 1
        if matrix.block_scale is not None:
            value = value * np.repeat(matrix.block_scale.astype(np.float64), 256, axis=1)
    elif isinstance(matrix, Int8Matrix):
        value = matrix.data * np.repeat(matrix.block_scale.astype(np.float64), 32, axis=1)
    else:
        kind = {"uint16": np.float16}.get(matrix.data.dtype.name, np.float32)
        bits = matrix.data if matrix.data.dtype != np.int16 else matrix.data.view(np.uint16).astype(np.uint32) << 16
        value = bits.view(kind).astype(np.float64)
    return value * float(matrix.scale)


@pytest.mark.parametrize("kind", tiny_models.TYPES)
def test_every_type_is_what_its_codec_decodes(models, kind):
    path = models("llama", kind, "Q8_0" if kind == "F16" else kind if kind in ("BF16", "Q8_0") else "F16")
    gguf, w = read(path), weights(path)
    classes = {"Q8_0": Int8Matrix, "TQ1_0": TernaryMatrix, "TQ2_0": TernaryMatrix}
    for matrix in (*w.projections(), w.head, w.embd):
        info = gguf.tensors[matrix.name]
        assert isinstance(matrix, classes.get(info.type.name, DenseMatrix))
        assert (matrix.type_name, matrix.n_row, matrix.n_col) == (info.type.name, *info.shape)
        scale = matrix.name.replace(".weight", ".scale")
        scale = float(gguf.raw(scale).view(np.float32)[0]) if scale in gguf.tensors else 1.0
        decoded = CODECS[info.type].decode(gguf.raw(matrix.name), info.shape).astype(np.float64) * scale
        # Q8_0's codec rounds code × scale to float32; the kernels multiply in float64
        limit = 2.0**-23 * np.abs(decoded).max() if info.type == GGMLType.Q8_0 else 0.0
        assert np.abs(floats(matrix) - decoded).max() <= limit
        assert np.abs(floats(matrix) * 1.001 - decoded).max() > limit
    assert len(list(w.projections())) == 7 * tiny_models.N_LAYER
    assert [m.name.split(".")[2] for m in w.layers[0].projections()] == [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ]
    assert w.n_bytes == sum(m.n_bytes for m in (*w.projections(), w.head))


def test_the_head_is_the_embedding_where_it_is_tied(models):
    tied, own = weights(models("bitnet", "F32")), weights(models("llama", "F32"))
    assert tied.head is tied.embd
    assert own.head is not own.embd
    assert own.head.name == "output.weight"
    assert own.layers[0].attn_sub_norm is None
    assert tied.layers[0].attn_sub_norm is not None


def test_i2_s_is_not_copied():
    gguf = read(SOURCE)
    w = read_weights(gguf, read_config(gguf)[0])
    assert np.shares_memory(w.layers[0].q.codes, gguf.raw(Q))


def test_both_scales_of_a_matrix_count(tmp_path):
    path = edited(SOURCE, tmp_path / "m.gguf", tensors={"blk.0.attn_q.scale": [0.5]})
    [before, after] = (weights(p).layers[0].q for p in (SOURCE, path))
    assert after.scale == np.float32(before.scale * np.float32(0.5))


@pytest.mark.parametrize(
    "name",
    ["token_embd.weight", "output_norm.weight", Q, "blk.1.ffn_down.weight", "blk.0.attn_sub_norm.weight"],
)
def test_a_missing_tensor_is_named(tmp_path, name):
    path = edited(SOURCE, tmp_path / "m.gguf", drop=[name])
    with pytest.raises(ModelFileError, match=f"tensor {name} is missing"):
        weights(path)


def float_tensor(name, shape, value=1.0):
    data = np.full(shape, value, np.float32)
    return TensorData(name=name, shape=shape, type=GGMLType.F32, data=data.view(np.uint8).reshape(-1))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (Q, (128, 256)),
        (Q, (256, 512)),
        (Q, (256, 256, 1)),
        ("blk.0.attn_norm.weight", (255,)),
        ("blk.1.ffn_norm.weight", (1, 256)),
        ("token_embd.weight", (512, 128)),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(tmp_path, name, shape):
    path = edited(SOURCE, tmp_path / "m.gguf", tensors={name: float_tensor(name, shape)})
    with pytest.raises(ModelFileError, match=rf"tensor {name} has shape \[.*ask for \["):
        weights(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output_norm.weight", "blk.1.attn_sub_norm.weight"])
def test_a_norm_that_is_not_finite_is_named(tmp_path, name, bad):
    def spoil(raw):
        raw.view(np.float32)[-1] = bad
        return raw

    path = edited(SOURCE, tmp_path / "m.gguf", tensors={name: spoil})
    with pytest.raises(ModelFileError, match=f"tensor {name} holds NaN or infinity"):
        weights(path)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_rotary_frequencies_are_divided_by_what_is_positive(tmp_path, bad):
    path = edited(SOURCE, tmp_path / "m.gguf", tensors={"rope_freqs.weight": [2.0] * 31 + [bad]})
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight holds divisors that are not positive"):
        weights(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_is_named_with_its_tensor_and_file(tmp_path, bad):
    path = edited(SOURCE, tmp_path / "tail.gguf", tensors={Q: with_tail_scale(bad)})
    with pytest.raises(ModelFileError, match=f"tensor {Q}: .*scale") as caught:
        weights(path)
    assert caught.value.where == str(path)
    path = edited(SOURCE, tmp_path / "beside.gguf", tensors={"blk.0.attn_q.scale": [bad]})
    with pytest.raises(ModelFileError, match=r"tensor blk\.0\.attn_q\.scale holds NaN"):
        weights(path)


def test_two_finite_scales_may_overflow(tmp_path):
    path = edited(SOURCE, tmp_path / "m.gguf", tensors={Q: with_tail_scale(1e30), "blk.0.attn_q.scale": [1e30]})
    with pytest.raises(ModelFileError, match=f"tensor {Q} has a scale that is not finite"):
        weights(path)


def test_a_block_scale_that_is_not_finite_is_named(tmp_path):
    def spoil(raw):
        raw[64:66] = np.array([np.nan], np.float16).view(np.uint8)
        return raw

    path = edited(
        golden_models.retyped("b158_a", tmp_path / "a.gguf", "TQ2_0"), tmp_path / "b.gguf", tensors={Q: spoil}
    )
    with pytest.raises(ModelFileError, match=f"tensor {Q}"):
        weights(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight", "blk.1.ffn_down.weight"])
def test_a_float_matrix_that_is_not_finite_is_named(tmp_path, models, name, kind, bad):
    def spoil(raw):
        at = 2 if kind != "F32" else 4
        end = len(raw) - (32 if kind == "Q8_0" else 0)  # whose block scale comes first
        made = np.array([bad], np.float32).view(np.uint8)[2:] if kind == "BF16" else None
        raw[end - at : end] = made if made is not None else np.array([bad], f"f{at}").view(np.uint8)
        return raw

    sound = tiny_models.write(tmp_path / "sound.gguf", arch="llama", weight_type=kind, head_type=kind)
    weights(sound)
    path = edited(sound, tmp_path / "m.gguf", tensors={name: spoil})
    with pytest.raises(ModelFileError, match=f"tensor {name} holds NaN or infinity") as caught:
        weights(path)
    assert caught.value.where == str(path)
    assert [f.subject for f in verify(path).of("error")] == [name]


def test_code_three_is_named_with_its_tensor(tmp_path):
    def spoil(raw):
        raw[7] |= 0b11
        return raw

    path = edited(SOURCE, tmp_path / "m.gguf", tensors={Q: spoil})
    with pytest.raises(ModelFileError, match=f"tensor {Q}: code 3"):
        weights(path)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.9.attn_q.weight", "extra", "output_norm.scale"])
def test_a_tensor_that_nobody_uses_is_an_error(tmp_path, name):
    path = edited(SOURCE, tmp_path / "m.gguf", tensors={name: [1.0]})
    with pytest.raises(ModelFileError, match=rf"1 tensor\(s\) that no operation of bitnet-b1.58 uses: {name}"):
        weights(path)


def test_sub_norms_under_a_name_that_has_none_are_such_tensors(tmp_path):
    keys = {k.replace("bitnet-b1.58", "llama"): (read(SOURCE).types[k], v) for k, v in read(SOURCE).metadata.items()}
    path = edited(SOURCE, tmp_path / "m.gguf", keys=keys | {"general.architecture": "llama"})
    with pytest.raises(ModelFileError, match="attn_sub_norm"):
        weights(path)


def test_a_norm_in_another_type_is_refused(tmp_path):
    name = "blk.0.attn_norm.weight"
    packed = TensorData(name=name, shape=(256,), type=GGMLType.Q8_0, data=np.zeros(272, np.uint8))
    with pytest.raises(ModelFileError, match=f"tensor {name} is Q8_0; a vector must be F32.*\n.*in F32"):
        weights(edited(SOURCE, tmp_path / "m.gguf", tensors={name: packed}))
    for kind in (GGMLType.F16, GGMLType.BF16):
        ones = TensorData(name=name, shape=(256,), type=kind, data=CODECS[kind].encode(np.ones((1, 256), np.float32)))
        read_back = weights(edited(SOURCE, tmp_path / "m.gguf", tensors={name: ones})).layers[0].attn_norm
        assert read_back.dtype == np.float32
        assert (read_back == 1).all()


def test_types_without_a_kernel_are_unpacked_and_it_is_said(tmp_path):
    from gguf import GGMLQuantizationType, quants

    values = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    raw = quants.quantize(values, GGMLQuantizationType.Q4_0)
    packed = TensorData(name=Q, shape=(256, 256), type=GGMLType.Q4_0, data=raw.reshape(-1))
    w = weights(edited(SOURCE, tmp_path / "m.gguf", tensors={Q: packed}))
    assert w.notices[-1] == "1 tensor(s) of Q4_0 are unpacked to float32"
    assert np.array_equal(w.layers[0].q.data, quants.dequantize(raw, GGMLQuantizationType.Q4_0))


# --- the digest ----------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_weights_and_not_of_their_container(tmp_path):
    expected = weights(SOURCE).digest()
    for kind in (GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.I2_S):
        assert weights(transcode(read(SOURCE), tmp_path / f"{kind.name}.gguf", kind)).digest() == expected
    norms = edited(SOURCE, tmp_path / "norms.gguf", tensors={"output_norm.weight": np.ones(256)})
    assert weights(norms).digest() == expected


def one_trit(raw):
    raw[100] ^= 1 << 2 if (raw[100] >> 2) & 3 != 2 else 2 << 2
    return raw


@pytest.mark.parametrize("change", [one_trit, with_tail_scale(0.123)])
def test_one_trit_or_one_scale_changes_it(tmp_path, change):
    path = edited(SOURCE, tmp_path / "m.gguf", tensors={"blk.1.ffn_up.weight": change})
    assert weights(path).digest() != weights(SOURCE).digest()


@pytest.mark.parametrize("kind", tiny_models.TYPES)
def test_every_part_of_every_type_is_in_it(models, tmp_path, kind):
    source = models("bitnet", kind)
    expected = weights(source).digest()

    def two_bytes(raw):  # of trits, where there are trits
        raw[[3, 4]] = raw[[4, 3]]
        assert raw[3] != raw[4]
        return raw

    def last_byte(raw):
        raw[-1] ^= 1  # TQ1_0 and TQ2_0: of a block scale
        return raw

    def first_byte(raw):  # Q8_0: of a block scale
        raw[0] ^= 1
        return raw

    for change in (two_bytes, last_byte, *([] if kind.startswith("TQ") else [first_byte])):
        assert weights(edited(source, tmp_path / "m.gguf", tensors={Q: change})).digest() != expected
    scale = edited(source, tmp_path / "m.gguf", tensors={"blk.0.attn_q.scale": [0.25]})
    assert weights(scale).digest() != expected
