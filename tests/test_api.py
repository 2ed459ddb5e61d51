"""`bitnet.load` and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import golden_models
import numpy as np
import pytest
import tiny_models
from model_edits import edited

import bitnet
from bitnet import api
from bitnet.config import Numerics
from bitnet.errors import GGUFError, ModelFileError, TokenizerError, UsageError
from bitnet.gguf import GGMLType, TensorData, read
from bitnet.transcode import transcode
from crossval.envelope import LOCKED_OPERATION
from crossval.metrics import difference
from reference.oracle import Oracle

ROOT = Path(__file__).parents[1]
SOURCE = golden_models.model("b158_a")
TINY = ROOT / "fixtures" / "models" / "tiny-relu2.i2_s.gguf"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("BITNET_GGUF", "BITNET_DEVICE", "BITNET_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.Models(tmp_path_factory.mktemp("models"))


# --- which file, device, threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, ""])
def test_a_path_is_needed(path):
    with pytest.raises(UsageError, match=r"no model is named\n.*BITNET_GGUF") as caught:
        bitnet.load(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", SOURCE.encode()),
        ("path", 5),
        ("tokenizer", b"t.json"),
        ("tokenizer", 5),
        ("numerics", "int8"),
        ("cache_bytes", "1GB"),
        ("cache_bytes", 1e9),
    ],
)
def test_an_argument_of_another_type(name, value):
    with pytest.raises(UsageError, match=rf"{name} is .*\n  hint: (give )?a") as caught:
        bitnet.load(**{"path": SOURCE, name: value})
    assert repr(value)[:8] in caught.value.what


def test_the_variable_names_the_file_and_an_argument_beats_it(monkeypatch):
    monkeypatch.setenv("BITNET_GGUF", SOURCE)
    assert bitnet.load().gguf.path == Path(SOURCE)
    assert bitnet.load(golden_models.model("llama_tied")).config.arch == "llama"


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5", "1025", "²", "१0000", 5000 * "9"])
def test_a_count_of_threads_without_meaning_in_the_environment(monkeypatch, asked):
    monkeypatch.setenv("BITNET_NUM_THREADS", asked)
    with pytest.raises(UsageError, match="1 to 1024") as caught:
        bitnet.load(SOURCE)
    assert caught.value.where == "BITNET_NUM_THREADS"


@pytest.mark.parametrize("n", [0, -3, 1025, 10**20, 1.5, 2.0, "2", True])
def test_a_count_of_threads_without_meaning(n):
    with pytest.raises(UsageError, match=f"n_threads is {n!r}") as caught:
        bitnet.load(SOURCE, n_threads=n)
    assert caught.value.remedy == "a whole number, 1 to 1024"


def test_threads(monkeypatch):
    assert 1 <= api.default_threads() <= os.cpu_count()
    for asked in ("7", " 7 "):
        monkeypatch.setenv("BITNET_NUM_THREADS", asked)
        assert bitnet.load(SOURCE).network.backend.n_threads == 7
    assert bitnet.load(SOURCE, n_threads=2).network.backend.n_threads == 2
    assert bitnet.load(SOURCE, n_threads=np.int64(2)).network.backend.n_threads == 2
    monkeypatch.setenv("BITNET_NUM_THREADS", "")
    assert bitnet.load(SOURCE).network.backend.n_threads == api.default_threads()


def test_devices(monkeypatch):
    assert bitnet.load(SOURCE).network.backend.device == "cpu"
    monkeypatch.setenv("BITNET_DEVICE", "plain")
    assert bitnet.load(SOURCE).network.backend.device == "plain"
    assert bitnet.load(SOURCE, device="cpu").network.backend.device == "cpu"
    for device in ("cuda", "CPU", "gpu:0"):
        with pytest.raises(UsageError, match=rf"^device: no device '{device}'\n.*one of cpu, plain"):
            bitnet.load(SOURCE, device=device)
    monkeypatch.setenv("BITNET_DEVICE", "tpu")
    with pytest.raises(UsageError, match=r"^BITNET_DEVICE: no device 'tpu'"):
        bitnet.load(SOURCE)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"device": ["cpu"]}, r"device is \['cpu'\]"),
        ({"isa": 2}, "isa is 2"),
        ({"isa": "foo"}, "^isa: no kernels for 'foo'"),
        ({"on_packing": None}, "on_packing is None"),
        ({"cache_bytes": 10**20}, f"cache_bytes is {10**20}"),
        ({"cache_bytes": 10**400}, "cache_bytes is 1000"),
    ],
)
def test_arguments_without_meaning(argument, message):
    with pytest.raises(UsageError, match=message):
        bitnet.load(SOURCE, **argument)


# --- damaged files -------------------------------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "text.gguf").write_text("This is a text, and not a short one, that somebody named .gguf.\n" * 20)
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name, what in (
        ("missing.gguf", "no such file"),
        ("text.gguf", "GGUF"),
        ("empty.gguf", "empty"),
        (".", "config.json"),
    ):
        with pytest.raises(ModelFileError, match=what) as caught:
            bitnet.load(tmp_path / name)
        assert str(tmp_path) in str(caught.value)
        assert caught.value.exit_code == 3


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole, cut = Path(SOURCE).read_bytes(), tmp_path / "cut.gguf"
    for n in (*range(1, 40, 3), 1000, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        cut.write_bytes(whole[:n])
        with pytest.raises(GGUFError):
            bitnet.load(cut)


def test_an_unknown_architecture(tmp_path):
    with pytest.raises(ModelFileError, match="architecture 'gpt2'") as caught:
        bitnet.load(edited(SOURCE, tmp_path / "m.gguf", keys={"general.architecture": "gpt2"}))
    assert caught.value.exit_code == 3


# --- numerics ------------------------------------------------------------------------------------------------------


def test_ternary_weights_take_int8_activations_in_any_type(tmp_path, models):
    assert bitnet.load(SOURCE).network.numerics == Numerics()
    for kind in ("F32", "F16", "BF16", "TQ1_0", "TQ2_0"):
        assert bitnet.load(models("bitnet", kind)).network.numerics == Numerics(), kind
    copy = transcode(read(SOURCE), tmp_path / "f32.gguf", GGMLType.F32)
    assert bitnet.load(copy).network.numerics == Numerics()


def dense(path, names, kind="F32"):
    """Random floats in place of these projections, in a type."""
    from gguf import GGMLQuantizationType, quants

    infos, made = read(path).tensors, {}
    for name in names:
        values = np.random.default_rng(0).standard_normal(infos[name].shape).astype(np.float32)
        raw = quants.quantize(values, GGMLQuantizationType[kind]).view(np.uint8).reshape(-1)
        made[name] = TensorData(name=name, shape=infos[name].shape, type=GGMLType[kind], data=raw)
    return made


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_weights_of_many_values_take_none(tmp_path, models, kind):
    path = models("bitnet", "F32")
    names = [n for n, info in read(path).tensors.items() if n.startswith("blk.") and len(info.shape) == 2]
    model = bitnet.load(edited(path, tmp_path / "m.gguf", tensors=dense(path, names, kind)))
    assert model.network.numerics == Numerics(activation="none")
    assert not any("not ternary" in notice for notice in model.notices)


@pytest.mark.parametrize(("read_by", "tap", "tensor"), [("attn_norm", "q", "attn_q"), ("ffn_sub_norm", "ffn_down", "")])
def test_a_float_projection_among_ternary_ones_is_multiplied_as_the_oracle_does(tmp_path, read_by, tap, tensor):
    name = f"blk.0.{tensor or tap}.weight"
    path = edited(TINY, tmp_path / "m.gguf", tensors=dense(TINY, [name]))
    ids, taps = (1, 5, 9, 200), {}

    def seen(key, layer, value):
        return taps.setdefault((key, layer), value)

    model = bitnet.load(path)
    assert f"not ternary, though other projections are: {name}; all take int8 activations" in model.notices
    model.network.forward(ids, model.network.new_cache(8), tap=seen)
    due = Oracle(str(path)).operation((tap, 0), [taps[read_by, 0].astype(np.float64)], np.array(ids), 0)
    assert LOCKED_OPERATION.holds(difference(taps[tap, 0], due).ratio)

    asked = bitnet.load(path, numerics=Numerics(activation="none"))
    assert not any("not ternary" in notice for notice in asked.notices)


def test_numerics_that_are_asked_for_are_taken():
    asked = Numerics(activation="f16", kv="f16")
    assert bitnet.load(SOURCE, numerics=asked).network.numerics == asked


# --- the model -----------------------------------------------------------------------------------------------------


def test_what_a_user_should_know_is_said(tmp_path):
    assert any("no activation is declared; relu2" in n for n in bitnet.load(SOURCE).notices)
    path = edited(SOURCE, tmp_path / "m.gguf", keys={"bitnet-b1.58.hidden_activation": "silu"})
    model = bitnet.load(path)
    assert any("the declaration wins" in n for n in model.notices)
    assert model.config.activation == "silu"
    assert not np.array_equal(model.logits([1, 2]), bitnet.load(SOURCE).logits([1, 2]))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    source = bitnet.load(TINY)
    table = np.eye(source.config.n_vocab - 1, source.config.n_embd, dtype=np.float32)
    size = {"bitnet-b1.58.vocab_size": len(table)}
    model = bitnet.load(edited(TINY, tmp_path / "m.gguf", keys=size, tensors={"token_embd.weight": table}))
    with pytest.raises(TokenizerError, match="belongs to another model"):
        _ = model.tokenizer


def test_chat_needs_a_template(tmp_path):
    messages = [{"role": "user", "content": "Where is the cat?"}]
    model = bitnet.load(TINY)
    ids = model.encode(messages)
    assert "Where is the cat?" in model.tokenizer.decode(ids)
    assert ids.count(model.tokenizer.bos_id) == 1
    bare = bitnet.load(edited(TINY, tmp_path / "m.gguf", keys={"tokenizer.chat_template": None}))
    with pytest.raises(TokenizerError, match="chat_template is missing"):
        bare.encode(messages)


def test_it_says_what_it_is():
    assert repr(bitnet.load(SOURCE)).startswith("<bitnet.BitNetModel b158_a.gguf: bitnet-b1.58, ")


def test_settings_are_checked():
    model = bitnet.load(TINY)
    with pytest.raises(UsageError, match="temperature"):
        model.generate("The", temperature=-1.0)


# --- importing -----------------------------------------------------------------------------------------------------


def python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={k: v for k, v in os.environ.items() if not k.startswith(("BITNET_", "COV_"))} | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_it_loads_neither_numba_nor_numpy():
    heavy = "{'numba', 'numpy', 'tokenizers', 'jinja2', 'llvmlite', 'gguf'}"
    done = python(f"import sys, bitnet; print(sorted({heavy} & set(sys.modules)))")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    liar = python(f"import sys, bitnet; bitnet.load; print(sorted({heavy} & set(sys.modules)))")
    assert "numpy" in liar.stdout


def test_the_plain_device_needs_no_compiler():
    code = "import sys, bitnet; bitnet.load(sys.argv[1], device='plain').logits([1]); print('numba' in sys.modules)"
    done = python(f"import sys; sys.argv.append({SOURCE!r}); {code}")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_every_public_name_is_there():
    assert all(hasattr(bitnet, name) for name in bitnet.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = bitnet.nothing
