"""The compiled interface against llama.cpp's own headers and library, to the bit, and against a real bitnet.cpp."""

import json
import os
import subprocess

import golden_models
import numpy as np
import pytest

from crossval.metrics import difference
from reference.bitnet_cpp import BitnetCpp, quantiser
from reference.bitnet_cpp_build import declared, find_tree
from reference.llama_cpp_build import find_compiler, find_headers
from reference.oracle import Oracle
from reference.process import ProcessRunner
from reference.runner import ReferenceUnavailableError, Request

MODELS = golden_models.FOLDER.parent / "models"
IDS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)


def headers():
    try:
        return find_headers()
    except ReferenceUnavailableError:
        return None


with_llama_cpp = pytest.mark.skipif(
    headers() is None, reason="llama.cpp is not here with the headers it was built from"
)
with_bitnet_cpp = pytest.mark.skipif("BITNET_CPP_DIR" not in os.environ, reason="BITNET_CPP_DIR names no bitnet.cpp")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("BITNET_CPP_DIR", raising=False)
    with pytest.raises(ReferenceUnavailableError, match="no model file"):
        BitnetCpp(tmp_path / "a.gguf")
    with pytest.raises(ReferenceUnavailableError, match=r"no bitnet\.cpp here") as caught:
        BitnetCpp(golden_models.model("b158_a"))
    assert "BITNET_CPP_DIR" in str(caught.value)
    with pytest.raises(ReferenceUnavailableError, match=r"no llama\.h"):
        BitnetCpp(golden_models.model("b158_a"), directory=tmp_path)


@pytest.fixture(scope="module")
def pair():
    model = str(MODELS / "tiny-silu.tq2_0.gguf")
    with (
        ProcessRunner("reference.llama_cpp:LlamaCpp", {"model": model}, timeout=120) as binding,
        ProcessRunner(
            "reference.bitnet_cpp:BitnetCpp", {"model": model, "directory": str(headers()), "kv": "f32"}, timeout=300
        ) as shim,
    ):
        yield binding, shim


@with_llama_cpp
@pytest.mark.parametrize("n_batch", [None, 1, 4])
def test_logits_and_taps_are_those_of_the_binding_to_the_bit(pair, n_batch):
    binding, shim = (runner.run(Request(ids=IDS, n_batch=n_batch, n_greedy=4, taps=True)) for runner in pair)
    assert shim.generated == binding.generated
    assert (shim.logits == binding.logits).all()
    assert shim.taps.keys() == binding.taps.keys()
    assert all((shim.taps[key] == binding.taps[key]).all() for key in binding.taps)


@with_llama_cpp
def test_capturing_changes_no_bit(pair):
    shim = pair[1]
    last = shim.run(Request(ids=IDS, n_greedy=3, last_only=True)).logits
    assert (last == shim.run(Request(ids=IDS, n_greedy=3)).logits[len(IDS) - 1 :]).all()
    assert (shim.run(Request(ids=IDS, taps=True)).logits == shim.run(Request(ids=IDS)).logits).all()


@with_llama_cpp
def test_ids_weights_and_identity_are_those_of_the_binding(pair):
    binding, shim = pair
    for text in ("Once upon a time", "naïve — 🙂", ""):
        assert shim.tokenize(text) == binding.tokenize(text)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_q.scale", "token_embd.weight", "output_norm.weight"):
        assert (shim.weights(name) == binding.weights(name)).all()
    assert shim.info.library_sha256 == binding.info.library_sha256
    assert shim.info.numerics == binding.info.numerics
    assert shim.info.family == "ggml"


@with_llama_cpp
def test_what_it_cannot_do_is_refused(pair):
    shim = pair[1]
    for request in (Request(ids=()), Request(ids=(10**6,)), Request(ids=IDS, lock={})):
        if request.lock is None:
            with pytest.raises(ReferenceUnavailableError, match="asked to evaluate"):
                shim.run(request)
    lock = {("embd", -1): np.zeros((len(IDS), 4), np.float32)}
    with pytest.raises(ReferenceUnavailableError, match="locked inputs"):
        shim.run(Request(ids=IDS, lock=lock))
    with pytest.raises(ReferenceUnavailableError, match="no tensor"):
        shim.weights("nothing")


@with_llama_cpp
def test_a_model_it_does_not_know_is_refused_in_its_own_words():
    kwargs = {"model": str(golden_models.model("b158_a")), "directory": str(headers())}
    with (
        ProcessRunner("reference.bitnet_cpp:BitnetCpp", kwargs, timeout=300) as runner,
        pytest.raises(ReferenceUnavailableError, match=r"refuses b158_a\.gguf"),
    ):
        runner.run(Request(ids=IDS))


@with_bitnet_cpp
@pytest.mark.parametrize("name", ["b158_a", "b158_hd128", "bitnet_silu", "llama_tied"])
def test_a_real_bitnet_cpp_generates_what_was_recorded(name):
    manifest = json.loads((golden_models.FOLDER / "manifest.json").read_text())
    path = golden_models.model(name)
    with ProcessRunner("reference.bitnet_cpp:BitnetCpp", {"model": str(path)}, timeout=300) as runner:
        oracle = Oracle(str(path), numerics=runner.info.numerics)
        for prompt in manifest["models"][name]["prompts"]:
            ids, generated = tuple(prompt["prompt_ids"]), tuple(prompt["generated_ids"])
            assert runner.run(Request(ids=ids, n_greedy=len(generated))).generated == generated
            for n_batch in (None, 1):
                seen = runner.run(Request(ids=ids, n_batch=n_batch, taps=True))
                locked = oracle.run(Request(ids=ids, n_batch=n_batch, taps=True, lock=seen.taps))
                found = [difference(locked.taps[key], value) for key, value in seen.taps.items()]
                # As `crossval.envelope.LOCKED_OPERATION`; a value on the border between two roundings may fall to
                # either side, and is then seen at its own token alone: two in 40 tokens were, at most.
                assert len({token for one in found for token in one.positions(1e-6)}) <= 2
                assert max(one.ratio for one in found) <= 1e-3
        for tensor in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight"):
            assert (runner.weights(tensor) == oracle.weights(tensor)).all()


#: A quantiser as bitnet.cpp's, its product rounded or not before the addition that rounds it to an integer.
QUANTISER = """
#include <cmath>
#include <cstdint>
extern "C" void quantize_row_i8_s(const float * x, void * y, int64_t n, float * scale, int32_t * sum) {
    double largest = 1e-5;
    for (int64_t i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs((double) x[i]));
    const float s = *scale = (float) (127 / largest);
    *sum = 0;
    for (int64_t i = 0; i < n; ++i) {
        volatile float product = x[i] * s;
        *sum += ((int8_t *) y)[i] = (int8_t) (ROUNDED);
    }
}
"""


@pytest.mark.parametrize(
    ("rounded", "expected"),
    [
        ("std::nearbyintf(product)", "int8_token"),
        ("std::fma(x[i], s, 12582912.f) - 12582912.f", "int8_token_fused"),
        ("std::truncf(product)", "int8_token"),  # neither of the two: not for the declaration to say
    ],
)
def test_the_library_is_asked_how_it_rounds_activations(tmp_path, rounded, expected):
    source, libraries = tmp_path / "quantiser.cpp", [tmp_path / "libllama.so", tmp_path / "libggml.so"]
    for text, library in zip(("", QUANTISER), libraries, strict=True):  # the first one offers none
        source.write_text(text)
        command = (find_compiler()[0], "-O1", "-shared", "-fPIC", f"-DROUNDED={rounded}", source, "-o", library)
        subprocess.run(command, check=True, capture_output=True)
    assert quantiser(libraries[:1]) == "int8_token"
    assert quantiser(libraries) == expected


def built_as_the_recorded_one(info) -> bool:
    """Whether compiler and instruction set are those of the recording: others sum in another order."""
    libraries = find_tree(declared()).libraries
    return "AVX512 = 1" in info.detail["system"] and any(b"clang version 14." in so.read_bytes() for so in libraries)


@with_bitnet_cpp
@pytest.mark.parametrize("name", golden_models.NAMES)
def test_a_build_like_the_recorded_one_computes_the_recorded_bits(name):
    recorded = golden_models.recorded(name)
    kwargs = {"model": golden_models.model(name)}
    with ProcessRunner("reference.bitnet_cpp:BitnetCpp", kwargs, timeout=300) as runner:
        if not built_as_the_recorded_one(runner.info):
            pytest.skip("the recording is of clang 14 and AVX-512; this build is another")
        for prompt in recorded.prompts():
            n = len(prompt.prompt_ids)
            seen = runner.run(Request(ids=prompt.prompt_ids, n_greedy=len(prompt.generated_ids)))
            assert seen.generated == prompt.generated_ids
            for n_batch in (n, 1):
                request = Request(ids=prompt.ids, n_batch=n_batch)
                assert runner.run(request).logits.tobytes() == recorded.run(request).logits.tobytes()
            if prompt.taps:
                request = Request(ids=prompt.prompt_ids, taps=True)
                seen, expected = runner.run(request).taps, recorded.run(request).taps
                assert expected.keys() <= seen.keys()
                assert all(seen[key].tobytes() == value.tobytes() for key, value in expected.items())
        for text in recorded.texts():
            assert runner.tokenize(text) == recorded.tokenize(text)
