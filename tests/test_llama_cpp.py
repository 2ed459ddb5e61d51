"""llama.cpp live: what it answers, who it says it is, and how its refusals and deaths are told."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from tiny_models import live

from reference.ggml import digest, file_sha256
from reference.llama_cpp import ACTIVATION_OF, declared_numerics
from reference.llama_cpp_build import LIBRARY_VARIABLE, ensure_library
from reference.runner import ReferenceFailedError, ReferenceUnavailableError, Request

IDS = (1, 45, 300, 7, 7, 19, 254, 0, 88, 121, 6, 33)


@pytest.fixture(scope="module")
def library() -> Path:
    return ensure_library()


@pytest.fixture(scope="module")
def models(tmp_path_factory, library):
    return tiny_models.Models(tmp_path_factory.mktemp("models"))


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error relative to the largest value; NaN stays NaN, which fails every comparison."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def one_run(models):
    with live(models("bitnet", "TQ2_0", "F16"), n_threads=1) as runner:
        seen = runner.run(Request(ids=IDS, taps=True))
        again = runner.run(Request(ids=IDS, taps=True))
        assert np.array_equal(again.logits, seen.logits)
        return seen


@pytest.mark.parametrize("options", [{"n_threads": 2}, {"n_ubatch": 5}, {"n_ctx": 512}])
def test_the_same_bits_for_any_threads_ubatch_and_cache_size(models, one_run, options):
    with live(models("bitnet", "TQ2_0", "F16"), **options) as runner:
        seen = runner.run(Request(ids=IDS, taps=True))
    assert np.array_equal(seen.logits, one_run.logits)
    assert list(seen.taps) == list(one_run.taps)
    for key, value in one_run.taps.items():
        assert np.array_equal(seen.taps[key], value), key


@pytest.mark.parametrize("n_batch", [1, 5, len(IDS), 100])
def test_a_batch_then_one_at_a_time(models, n_batch):
    """Single-token products add up in another order: 1.1e-7 measured, 5e-6 is the envelope of F32 end to end."""
    with live(models("llama", "F32")) as runner:
        whole = runner.run(Request(ids=IDS, taps=True))
        split = runner.run(Request(ids=IDS, n_batch=n_batch, taps=True))
        assert split.logits.shape == whole.logits.shape == (len(IDS), tiny_models.N_VOCAB)
        assert off(split.logits, whole.logits) <= 5e-6
        assert {key: value.shape for key, value in split.taps.items()} == {
            key: value.shape for key, value in whole.taps.items()
        }
        assert np.array_equal(split.taps["embd", -1], whole.taps["embd", -1])


def test_greedy_continuation_is_the_teacher_forced_one(models):
    with live(models("bitnet", "F32")) as runner:
        seen = runner.run(Request(ids=IDS, n_greedy=5, taps=True))
        assert seen.logits.shape == (len(IDS) + 4, tiny_models.N_VOCAB)
        assert seen.ids == IDS + seen.generated
        assert seen.generated == tuple(np.argmax(seen.logits[len(IDS) - 1 :], axis=-1))
        assert seen.taps["l_out", 1].shape == (len(IDS), tiny_models.N_EMBD)
        forced = runner.run(Request(ids=seen.ids[:-1], n_batch=len(IDS)))
        assert np.array_equal(forced.logits, seen.logits)
        assert seen.seconds["prefill"] > 0
        assert seen.seconds["decode"] > 0


@pytest.mark.parametrize("weight_type", tiny_models.TYPES)
def test_weights_are_decoded_by_ggml_as_the_gguf_package_does(models, weight_type):
    model = models("llama", weight_type)
    with live(model) as runner:
        for tensor in gguf.GGUFReader(model).tensors:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            found = runner.weights(tensor.name)
            assert found.shape == (expected.size // expected.shape[-1], expected.shape[-1])
            assert np.array_equal(found, expected.reshape(found.shape)), tensor.name
            assert np.array_equal(runner.weights(tensor.name, (1, 5)), found[1:5]), tensor.name
        with pytest.raises(ReferenceUnavailableError, match=r"no tensor 'nonesuch\.weight'"):
            runner.weights("nonesuch.weight")


def test_ids_of_texts(models):
    with live(models("bitnet", "F32"), vocab_only=True) as bpe, live(models("llama", "F32"), vocab_only=True) as spm:
        assert bpe.tokenize("the") == (258, 257)
        assert bpe.tokenize("the", add_special=False) == (257,)
        assert len(bpe.tokenize("é", add_special=False)) == 2
        assert bpe.tokenize("<|special_300|>a") == (258, 300, ord("a"))
        assert 300 not in bpe.tokenize("<|special_300|>", parse_special=False)
        assert bpe.tokenize("\0", add_special=False) != ()
        assert len(bpe.tokenize("th " * 3000, add_special=False)) == 6000
        assert spm.tokenize("the") == (1, 259, 263, 262)  # no piece spells the way to "▁the"
        assert spm.tokenize("") == (1,)
        assert spm.tokenize("\udcff", add_special=False) == (259, 0xFF + 3)  # a raw byte stays a byte token
        assert spm.tokenize_many(["the", ""]) == [(1, 259, 263, 262), (1,)]
        with pytest.raises(ReferenceUnavailableError, match="vocabulary"):
            spm.run(Request(ids=IDS))


def test_who_it_is(models, library):
    model = models("bitnet", "TQ2_0", "F16")
    with live(model) as runner, live(models("llama", "F32")) as other:
        info = runner.info
        assert (info.name, info.family, info.obtained) == ("llama.cpp", "ggml", "live")
        files = {path.resolve() for path in library.iterdir() if ".so" in path.name or ".dylib" in path.name}
        assert info.library_sha256 == digest(tuple(files)) == other.info.library_sha256
        assert info.model_sha256 == file_sha256(model) != other.info.model_sha256
        assert dict(info.numerics) == {
            "activation": "q8_k",
            "kv": "f32",
            "query": "f32",
            "probs": "f32",
            "head": "f16",
            "rope": "f32_iterated",
        }
        assert info.detail["weights"] == "tq2_0 ×14"
        assert info.detail["arch"] == "bitnet"
        assert "CPU" in info.detail["system"]
        assert "ggml" in info.version


def test_several_weight_types_are_told(tmp_path, library):
    model = tiny_models.write(tmp_path / "mixed.gguf", weight_type="TQ2_0", mixed="Q8_0", head_type="Q8_0")
    with live(model) as runner:
        assert runner.info.detail["weights"] == "tq2_0 ×12, q8_0 ×2"
        assert runner.info.numerics["activation"] == "q8_k"
        assert "rounded as q8_0" in runner.info.detail["head"]


def test_numerics_of_what_has_no_name():
    numerics, notes = declared_numerics({}, kv="f16", flash_attention=True)
    assert numerics["activation"] == "none"
    assert (numerics["kv"], numerics["query"], numerics["probs"]) == ("f16", "f16", "f16")
    assert "does not name" in notes["attention"]


def test_the_rounding_table_is_what_this_build_does(library):
    """ggml itself says which type it rounds the other operand to."""

    class Traits(ctypes.Structure):
        _fields_ = (("from_float", ctypes.c_void_p), ("vec_dot", ctypes.c_void_p), ("vec_dot_type", ctypes.c_int))

    suffix = next(path.suffix for path in library.iterdir() if path.name in {"libllama.so", "libllama.dylib"})
    cpu, base = (ctypes.CDLL(str(library / f"libggml-{part}{suffix}")) for part in ("cpu", "base"))
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)
    base.ggml_type_name.restype = ctypes.c_char_p
    for name, activation in ACTIVATION_OF.items():
        number = int(gguf.GGMLQuantizationType[name.upper()])
        rounded_to = base.ggml_type_name(cpu.ggml_get_type_traits_cpu(number).contents.vec_dot_type).decode()
        assert {"f32": "none"}.get(rounded_to, rounded_to.lower()) == activation, name


def _of_type(model: Path, number: int) -> bytes:
    """The model with one tensor declared to be of another type."""
    data = bytearray(model.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16  # its dimension count and extents
    data[at : at + 4] = number.to_bytes(4, "little")
    return bytes(data)


REFUSED = {
    "arch": "unknown model architecture: 'bitnet-b1.58'",
    "pre": "unknown pre-tokenizer type: 'falcon_e'",
    "i2_s": "of type 36",
    "text": "invalid magic",
    "empty": "failed to read magic",
    "truncated": "not within the file bounds",
    "short": "failed to read",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_model_is_unavailable_in_its_own_words(models, tmp_path, case):
    path = tmp_path / "refused.gguf"
    good = models("bitnet", "TQ2_0", "F16")
    match case:
        case "arch":
            tiny_models.write(path, arch="bitnet-b1.58")
        case "pre":
            tiny_models.write(path, pre="falcon_e")
        case "i2_s":
            path.write_bytes(_of_type(good, 36))
        case "text":
            path.write_bytes(b"hello world\n" * 20)
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
        case "short":
            path.write_bytes(good.read_bytes()[:3000])
    with live(path) as runner, pytest.raises(ReferenceUnavailableError) as caught:
        _ = runner.info
    assert REFUSED[case] in caught.value.what
    assert str(tmp_path) not in caught.value.what  # a receipt names files, not this machine's folders
    assert caught.value.remedy


def test_what_it_cannot_do_is_unavailable_and_it_lives_on(models):
    lock = {("q", 0): np.zeros((1, 4), np.float32)}
    with live(models("bitnet", "F32"), n_ctx=256) as runner:
        for request in (
            Request(ids=()),
            Request(ids=(-1,)),
            Request(ids=(tiny_models.N_VOCAB,)),
            Request(ids=IDS, n_greedy=300),
            Request(ids=IDS, lock=lock),
        ):
            with pytest.raises(ReferenceUnavailableError):
                runner.run(request)
        assert runner.run(Request(ids=IDS)).ids == IDS
    with live(Path("no/such.gguf")) as runner, pytest.raises(ReferenceUnavailableError, match="no model file"):
        runner.run(Request(ids=IDS))


def test_killed_in_the_middle_it_is_a_failure_and_can_go_on(models):
    model = models("bitnet", "F32")
    with live(model, n_ctx=4096) as runner:
        assert runner.info.detail["arch"] == "bitnet"
        timer = threading.Timer(0.3, os.kill, (runner.pid, signal.SIGKILL))
        timer.start()
        started = time.monotonic()
        with pytest.raises(ReferenceFailedError, match="SIGKILL"):
            runner.run(Request(ids=IDS, n_greedy=4000))
        timer.join()
        assert time.monotonic() - started < 30
        assert runner.run(Request(ids=IDS)).ids == IDS


def test_too_little_memory_is_a_failure_in_words(models):
    runner = live(models("bitnet", "F32"))
    runner.memory_limit = 1 << 30
    with runner, pytest.raises(ReferenceFailedError, match="memory"):
        runner.run(Request(ids=IDS * 1000))  # its scores alone are 4 heads × 12,000² × 4 bytes


def test_nan_weights_come_out_as_nan(tmp_path, models):
    data = bytearray(models("llama", "F32").read_bytes())
    path = tmp_path / "nan.gguf"
    offset = next(
        t.data_offset for t in gguf.GGUFReader(models("llama", "F32")).tensors if t.name == "output_norm.weight"
    )
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    with live(path) as runner:
        assert np.isnan(runner.run(Request(ids=IDS)).logits).all()


def test_not_built_is_unavailable(models, tmp_path, monkeypatch):
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with live(models("bitnet", "F32")) as runner, pytest.raises(ReferenceUnavailableError, match="not built") as caught:
        _ = runner.info
    assert "reference.llama_cpp_build" in (caught.value.remedy or "")


def test_without_the_binding_it_is_unavailable(models, library, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise ModuleNotFoundError(name='llama_cpp')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    with (
        live(models("bitnet", "F32")) as runner,
        pytest.raises(ReferenceUnavailableError, match="not installed") as caught,
    ):
        _ = runner.info
    assert "pip install llama-cpp-python==" in (caught.value.remedy or "")
