"""Checkpoints against transformers' own recordings, and every way one can be wrong."""

import json
import math
import re

import checkpoints as ck
import numpy as np
import pytest

import bitnet
from bitnet.errors import BitNetError, GGUFError, ModelFileError
from bitnet.gguf import GGMLType
from bitnet.hf import Checkpoint, interleaved_order, open_model
from bitnet.linear import TernaryMatrix
from bitnet.validate import verify

LIMIT = 1e-6  # of max|ref| for one operation on locked inputs: float32 sums in another order
PROJECTIONS = {
    "q": ("q", "attn_norm"),
    "k": ("k", "attn_norm"),
    "v": ("v", "attn_norm"),
    "attn_out": ("o", "attn_sub_norm"),
    "ffn_gate": ("gate", "ffn_norm"),
    "ffn_up": ("up", "ffn_norm"),
    "ffn_down": ("down", "ffn_sub_norm"),
}


def recording(name):
    with np.load(ck.FIXTURES / f"{name}.npz") as file:
        taps = {key: file[key] for key in file.files}
    ids = tuple(int(i) for i in taps.pop("ids"))
    found = {(key.split(".", 1)[1], int(key.split(".", 1)[0])): value for key, value in taps.items()}
    if name.startswith("llama"):  # the engine's rows are interleaved
        config = open_model(ck.FIXTURES / name).config
        for (tap, il), value in list(found.items()):
            if tap in ("q", "k", "q_rope", "k_rope"):
                heads = config.n_head if tap[0] == "q" else config.n_head_kv
                found[tap, il] = np.ascontiguousarray(value[:, interleaved_order(heads, config.head_dim)])
    return ids, found


def locked(model, ids, taps):
    """Largest error of every tap, each computed from the recording's own values before it, as a share of max|ref|."""
    worst = {}

    def tap(name, layer, value):
        theirs = taps.get((name, layer))
        if theirs is None:
            return value
        worst[name, layer] = float(np.abs(value - theirs).max() / np.abs(theirs).max())
        return np.ascontiguousarray(theirs, np.float32)

    model.network.forward(ids, model.network.new_cache(len(ids)), tap=tap)
    return worst


@pytest.mark.parametrize("name", ck.NAMES)
def test_every_operation_of_transformers_on_its_own_inputs(name):
    ids, taps = recording(name)
    model = bitnet.load(ck.FIXTURES / name)
    worst = locked(model, ids, taps)
    assert len(worst) == len(taps) >= 18
    assert max(worst.values()) <= LIMIT, max(worst.items(), key=lambda item: item[1])


def test_the_comparison_sees_a_liar():
    ids, taps = recording("bitnet-bitlinear")
    taps["ffn_up", 1] = taps["ffn_up", 1] * np.float32(1 + 1e-5)
    assert locked(bitnet.load(ck.FIXTURES / "bitnet-bitlinear"), ids, taps)["ffn_up", 1] > LIMIT


@pytest.mark.parametrize("name", ck.NAMES)
def test_logits_end_to_end_and_greedy_tokens(name):
    ids, taps = recording(name)
    logits = bitnet.load(ck.FIXTURES / name).logits(ids)
    theirs = taps["result_output", -1]
    assert np.abs(logits - theirs).max() <= LIMIT * np.abs(theirs).max()
    assert (logits.argmax(axis=1) == theirs.argmax(axis=1)).all()


@pytest.mark.parametrize("name", ["bitnet-bitlinear", "bitnet-autobitlinear", "llama-bitlinear"])
def test_ternary_sums_equal_those_of_the_packed_bytes(name):
    _, taps = recording(name)
    model = bitnet.load(ck.FIXTURES / name)
    for il, layer in enumerate(model.weights.layers):
        for field, before in PROJECTIONS.values():
            matrix = getattr(layer, field)
            if name.startswith("llama") and field == "o":
                continue  # 64 columns, which no packed type of ours takes; it is carried in F16
            assert isinstance(matrix, TernaryMatrix)
            x = taps.get((before, il), taps.get(("kqv_out" if field == "o" else "ffn_act", il)))
            largest = np.maximum(np.abs(x).max(axis=1).astype(np.float64), 1e-5)
            q = np.rint(x * (127 / largest).astype(np.float32)[:, None]).astype(np.int64)
            trits = packed_trits(name, matrix.name)
            if name.startswith("llama") and field in ("q", "k"):
                heads = model.config.n_head if field == "q" else model.config.n_head_kv
                trits = trits[interleaved_order(heads, model.config.head_dim)]
            assert (model.network.backend.integer_sums(matrix, x) == q @ trits.T).all()


def packed_trits(name, gguf_name):
    hf = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    _, il, part, _ = gguf_name.split(".")
    tensors = {}
    for file in (ck.FIXTURES / name).glob("*.safetensors"):
        tensors |= ck.load(file)
    dtype, shape, raw = tensors[f"model.layers.{il}.{hf[part]}.weight"]
    assert dtype == "U8"
    packed = np.frombuffer(raw, np.uint8).reshape(shape)
    return np.concatenate([((packed >> (2 * i)) & 3).astype(np.int64) - 1 for i in range(4)])


def test_the_folder_its_config_and_its_weights_are_one_model():
    folder = ck.FIXTURES / "bitnet-bitlinear"
    places = (folder, folder / "config.json", folder / "model.safetensors", str(folder))
    digests = {open_model(place).sha256() for place in places}
    assert len(digests) == 1
    assert isinstance(open_model(folder), Checkpoint)


def test_a_gguf_is_opened_as_before():
    path = ck.FIXTURES.parent / "models" / "tiny-relu2.i2_s.gguf"
    assert open_model(path).tensors["token_embd.weight"].shape[0] > 0


def test_interleaving_is_a_permutation_of_each_head():
    order = interleaved_order(3, 8)
    assert sorted(order) == list(range(24))
    assert list(order[:8]) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_what_it_looks_like_as_a_gguf():
    found = open_model(ck.FIXTURES / "bitnet-autobitlinear")
    assert found.metadata["general.architecture"] == "bitnet"  # it declares silu
    assert found.tensors["blk.0.attn_q.weight"].type == GGMLType.I2_S
    assert found.n_bytes > 0
    assert "Checkpoint" in repr(found)
    with pytest.raises(GGUFError, match="no such tensor"):
        found.raw("nothing")


def test_master_weights_are_read_online_and_said():
    model = bitnet.load(ck.FIXTURES / "bitnet-bf16")
    assert all(isinstance(m, TernaryMatrix) for m in model.weights.projections())


def test_master_weights_without_a_quantisation_are_made_ternary_with_a_notice(tmp_path):
    folder = ck.copied(tmp_path, "bitnet-bf16")
    ck.configure(folder, quantization_config=None)
    model = bitnet.load(folder)
    assert any("master weights" in notice for notice in model.notices)
    ids, taps = recording("bitnet-bf16")
    assert (
        np.abs(model.logits(ids) - taps["result_output", -1]).max() <= LIMIT * np.abs(taps["result_output", -1]).max()
    )


def test_a_declared_activation_wins(tmp_path):
    folder = ck.copied(tmp_path)
    assert bitnet.load(folder).config.activation == "relu2"
    ck.configure(folder, hidden_act="silu")
    assert bitnet.load(folder).config.activation == "silu"


CONFIGS = {
    "unknown model": ({"model_type": "gpt2", "architectures": ["GPT2"]}, "model_type is 'gpt2'"),
    "no width": ({"hidden_size": None}, "hidden_size is missing"),
    "width of text": ({"hidden_size": "128"}, "hidden_size is '128'"),
    "absurd width": ({"hidden_size": 1 << 40}, "hidden_size"),
    "negative layers": ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    "a layer too many": ({"num_hidden_layers": 3}, "layers.2.*is missing"),
    "a million layers": ({"num_hidden_layers": 1 << 20}, "is missing"),
    "heads that do not divide": ({"num_attention_heads": 5, "head_dim": None}, "does not divide"),
    "kv heads that do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
    "absurd heads": ({"head_dim": 1 << 23}, "head_dim is"),
    "bias": ({"attention_bias": True}, "attention_bias is true"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "epsilon of zero": ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    "epsilon of four hundred digits": ({"rms_norm_eps": 10**400}, r"rms_norm_eps is 10{49}, not a positive number"),
    "epsilon beyond float32": ({"rms_norm_eps": 1e39}, "no number of float32"),
    "epsilon of NaN": ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"),
    "tied by text": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "other quantisation": ({"quantization_config": {"quant_method": "gptq"}}, "quant_method is 'gptq'"),
    "quantisation of text": ({"quantization_config": "bitnet"}, "quantization_config is a str"),
    "linear class": (
        {"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}},
        "linear_class is 'x'",
    ),
    "mode": (
        {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "x"}},
        "quantization_mode is 'x'",
    ),
    "inner norms": ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm is true"),
    "packed without a quantisation": ({"quantization_config": None}, "is packed, but config.json has no"),
    "rotary scaling": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}, "rope_theta": None}, "'yarn'"),
    "rotary scaling by layer": ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "differs between layers"),
    "two thetas": ({"rope_theta": 1.0}, "rope_theta differs"),
    "part of each head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
    "vocabulary": ({"vocab_size": 65}, r"has shape \[64, 128\]; config.json asks for \[65, 128\]"),
}


#: What other engines run: the file is not to blame.
UNSUPPORTED = {"bias", "other quantisation", "inner norms", "rotary scaling by layer", "part of each head"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_wrong(tmp_path, name):
    changes, words = CONFIGS[name]
    folder = ck.copied(tmp_path)
    ck.configure(folder, **changes)
    with pytest.raises(ModelFileError, match=words) as caught:
        bitnet.load(folder)
    assert caught.value.exit_code == 3
    assert str(folder) in str(caught.value)
    assert ("run the checkpoint with transformers" in caught.value.remedy) is (name in UNSUPPORTED)


def nan_scale():
    return ck.floats([1], np.nan)


def packed(first=0):
    return "U8", [32, 128], bytes([first]) + bytes(32 * 128 - 1)


SCALE = "model__layers__0__self_attn__q_proj__weight_scale"
WEIGHT = "model__layers__0__self_attn__q_proj__weight"
NORM = "model__layers__0__input_layernorm__weight"
TENSORS = {
    "no scale": ({SCALE: None}, "no weight_scale beside it"),
    "scale of NaN": ({SCALE: nan_scale()}, "NaN or infinity"),
    "scale of zero": ({SCALE: ck.floats([1], 0.0)}, "a scale must be positive"),
    "negative scale": ({SCALE: ck.floats([1], -1.0)}, "a scale must be positive"),
    "several scales": ({SCALE: ck.floats([4], 1.0)}, "one number is due"),
    "a scale too small to invert": ({SCALE: ck.floats([1], 1e-45)}, "gives a scale of"),
    "code 3": ({WEIGHT: packed(0b11)}, "has code 3 at row 0, column 0"),
    "code 3 in the last quarter": ({WEIGHT: packed(0b11000000)}, "has code 3 at row 96, column 0"),
    "no weight": ({WEIGHT: None}, "q_proj.weight is missing"),
    "shape of packed": ({WEIGHT: ("U8", [16, 128], bytes(16 * 128))}, r"has shape \[16, 128\]"),
    "integers": ({WEIGHT: ("I8", [128, 128], bytes(128 * 128))}, "has type I8; F32, F16, BF16 or packed U8 is due"),
    "doubles": ({NORM: ("F64", [128], bytes(8 * 128))}, "has type F64; F32, F16 or BF16 is due"),
    "an embedding of doubles": (
        {"model__embed_tokens__weight": ("F64", [64, 128], bytes(8 * 64 * 128))},
        "has type F64; F32, F16 or BF16 is due",
    ),
    "norm of NaN": ({NORM: ck.floats([128], np.nan)}, "NaN or infinity"),
    "norm of another width": ({NORM: ck.floats([64], 1.0)}, r"has shape \[64\]"),
    "embedding of infinity": ({"model__embed_tokens__weight": ck.floats([64, 128], np.inf)}, "NaN or infinity"),
    "floats that are not ternary": (
        {WEIGHT: ck.floats([128, 128], np.linspace(-1, 1, 128))},
        "more than one magnitude",
    ),
    "a tensor nobody uses": ({"model__layers__0__self_attn__q_proj__bias": ck.floats([128], 0.0)}, "no operation"),
    "a layer nobody uses": ({"model__layers__7__input_layernorm__weight": ck.floats([128], 0.0)}, "no operation"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_wrong(tmp_path, name):
    changes, words = TENSORS[name]
    folder = ck.copied(tmp_path)
    ck.change(folder, **changes)
    with pytest.raises(ModelFileError, match=words) as caught:
        bitnet.load(folder)
    assert caught.value.exit_code == 3
    assert caught.value.remedy.startswith("save the checkpoint with this tensor as") is ("has type" in words)


@pytest.mark.parametrize("name", [*CONFIGS, *TENSORS])
def test_verifying_names_what_loading_refuses(tmp_path, name):
    folder = ck.copied(tmp_path)
    if name in CONFIGS:
        changes, words = CONFIGS[name]
        ck.configure(folder, **changes)
    else:
        changes, words = TENSORS[name]
        ck.change(folder, **changes)
    report = verify(folder)
    assert any(re.search(words, f.what) for f in report.of("error")), report


def test_a_sound_checkpoint_is_verified(tmp_path):
    report = verify(ck.copied(tmp_path))
    assert {f.subject for f in report.of("error")} == {"tokenizer"}  # these have none
    assert len(report.matrices) == 2 * 7 + 2
    assert sum(report.trits.values()) == 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256)


def test_a_second_head_of_a_tied_model_is_not_used_and_said(tmp_path):
    folder = ck.copied(tmp_path)
    ck.configure(folder, tie_word_embeddings=True)
    assert any("lm_head.weight is not used" in notice for notice in bitnet.load(folder).notices)


def test_a_folder_that_is_no_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(ModelFileError, match=r"without config\.json, so it is no checkpoint\n.*give a GGUF file"):
        open_model(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=f"{tmp_path}: .*\n.*give the path of the GGUF file in it") as caught:
        open_model("")
    assert caught.value.exit_code == 3
    (tmp_path / "a.gguf").unlink()
    with pytest.raises(ModelFileError, match="no such file"):
        open_model(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="model_type is None"):
        open_model(tmp_path)


def test_weights_as_pickles_and_a_gguf_in_the_folder_are_named(tmp_path):
    folder = ck.copied(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match="pickles"):
        open_model(folder)
    (folder / "a.gguf").write_bytes(b"")
    with pytest.raises(ModelFileError, match=re.escape(str(folder / "a.gguf"))):
        open_model(folder)


def test_a_file_written_to_while_it_is_open(tmp_path):
    folder = ck.copied(tmp_path)
    opened, model = open_model(folder), bitnet.load(folder, device="plain")
    model.logits([1, 2])
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ModelFileError, match="was changed after it was opened"):
        opened.raw("blk.0.attn_q.weight")
    with pytest.raises(ModelFileError, match="was changed after it was opened"):
        model.logits([1, 2])


@pytest.mark.parametrize("at", [0, 4, 8, 100, 5_000, -1])
def test_a_file_that_is_cut(tmp_path, at):
    folder = ck.copied(tmp_path)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:at])
    with pytest.raises(BitNetError, match="safetensors") as caught:
        open_model(folder)
    assert caught.value.exit_code == 3


def test_a_tokenizer_beside_it_is_found_and_its_keys_are_typed(tmp_path):
    pytest.importorskip("tokenizers")
    from bitnet.hf_tokenizer import write_tokenizer

    folder = ck.copied(tmp_path, "bitnet-bitlinear")
    source = open_model(ck.FIXTURES.parent / "models" / "tiny-relu2.i2_s.gguf")
    write_tokenizer(source, folder)
    model = open_model(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    assert model.metadata["tokenizer.ggml.model"] == "gpt2"
    assert len(model.metadata["tokenizer.ggml.tokens"]) >= model.config.n_vocab


@pytest.mark.hf
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("name", ck.NAMES)
def test_every_operation_of_the_installed_transformers(tmp_path, monkeypatch, name):
    """As with the recordings, on a checkpoint that it writes now."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from fixtures.hf import build

    case = next(case for case in build.CASES if case.name == name)
    build.write_checkpoint(case, tmp_path / name)
    taps = build.observe(tmp_path / name, case.family, build.ids_of(case))
    np.savez(tmp_path / f"{name}.npz", **taps)
    monkeypatch.setattr(ck, "FIXTURES", tmp_path)
    ids, taps = recording(name)
    worst = locked(bitnet.load(tmp_path / name), ids, taps)
    assert len(worst) == len(taps) >= 18
    assert max(worst.values()) <= LIMIT, max(worst.items(), key=lambda item: item[1])
