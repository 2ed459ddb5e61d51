"""What was recorded is replayed to the bit; everything else is refused, and the message says what there is."""

from __future__ import annotations

import json
import shutil

import golden_models
import numpy as np
import pytest

from reference.recorded import BITNET_CPP_NUMERICS, Recorded
from reference.runner import LAYER_TAPS, ReferenceUnavailableError, Request, Runner


@pytest.fixture(scope="module")
def recorded():
    return golden_models.recorded("b158_a")


@pytest.fixture(scope="module")
def arrays():
    with np.load(golden_models.FOLDER / "b158_a.p1.npz") as data:
        return dict(data)


def test_identity_is_of_the_build_that_ran(recorded):
    manifest = json.loads((golden_models.FOLDER / "manifest.json").read_text())
    assert isinstance(recorded, Runner)
    assert recorded.info.obtained == "recorded"
    assert (recorded.info.name, recorded.info.family) == ("bitnet.cpp", "ggml")
    assert recorded.info.library_sha256 == manifest["build"]["libllama_sha256"]
    assert recorded.info.model_sha256 == manifest["models"]["b158_a"]["sha256"]
    assert recorded.info.numerics == BITNET_CPP_NUMERICS
    assert "6d113cd" in recorded.info.version


def test_the_numerics_are_those_the_engine_can_be_asked_for():
    from bitnet.config import BITNET_CPP

    assert BITNET_CPP.to_dict() == BITNET_CPP_NUMERICS


def test_prompts_are_listed_with_their_continuations(recorded, arrays):
    prompts = recorded.prompts()
    assert [len(p.prompt_ids) for p in prompts] == [3, 8, 13, 40]
    assert [p.taps for p in prompts] == [False, True, False, False]
    assert prompts[1].ids == tuple(arrays["token_ids"])


def test_batched_and_single_logits_are_told_apart(recorded, arrays):
    prompt = recorded.prompts()[1]
    batched = recorded.run(Request(ids=prompt.ids, n_batch=8))
    single = recorded.run(Request(ids=prompt.ids, n_batch=1))
    assert np.array_equal(batched.logits, arrays["logits"])
    assert np.array_equal(single.logits, arrays["logits_single"])
    assert not np.array_equal(batched.logits, single.logits)
    alone = recorded.run(Request(ids=prompt.prompt_ids))
    assert np.array_equal(alone.logits, arrays["logits"][:8])
    assert recorded.run(Request(ids=prompt.ids[:5], n_batch=1)).logits.shape == (5, 512)


def test_greedy_tokens_are_read_off_the_logits(recorded):
    for prompt in recorded.prompts():
        observed = recorded.run(Request(ids=prompt.prompt_ids, n_greedy=32))
        assert observed.generated == prompt.generated_ids
        assert len(observed.logits) == len(prompt.prompt_ids) + 31
    part = recorded.run(Request(ids=prompt.ids[:45], n_batch=40, n_greedy=4))
    assert part.generated == prompt.ids[45:49]


def test_a_single_token_continuation_ends_where_it_leaves_the_recorded_one(recorded):
    """The tokens fed singly are those of the batched run, so another choice has no recorded future."""
    prompt = recorded.prompts()[0]
    logits = recorded.run(Request(ids=prompt.ids, n_batch=1)).logits
    choice = logits.argmax(axis=1)
    [first, *_] = [i for i in range(3, 34) if choice[i] != prompt.ids[i + 1]]
    observed = recorded.run(Request(ids=prompt.ids[:first], n_batch=1, n_greedy=2))
    assert observed.generated == (prompt.ids[first], choice[first])
    with pytest.raises(ReferenceUnavailableError, match="3 greedy tokens"):
        recorded.run(Request(ids=prompt.ids[:first], n_batch=1, n_greedy=3))


@pytest.mark.parametrize("name", golden_models.NAMES)
def test_taps_have_the_protocols_names_and_shapes(name):
    recorded = golden_models.recorded(name)
    [prompt] = [p for p in recorded.prompts() if p.taps]
    taps = recorded.run(Request(ids=prompt.prompt_ids, taps=True)).taps
    assert {tap for tap, il in taps if il >= 0} <= set(LAYER_TAPS)
    assert {tap for tap, il in taps if il < 0} == {"result_norm", "result_output"}
    assert all(v.shape[0] == 8 and v.ndim == 2 for v in taps.values())
    assert np.array_equal(taps["l_out", 0], taps["ffn_inp", 0] + taps["ffn_down", 0])  # a residual sum, exact


def test_the_node_without_a_tap_is_read_by_its_own_name(recorded):
    probabilities = recorded.node("kq_soft_max_ext-0")
    assert probabilities.shape == (4, 8, 32)
    assert not probabilities[:, :, 8:].any()
    assert np.allclose(probabilities.sum(axis=-1), 1.0, rtol=0, atol=1e-6)  # 32 float32 roundings
    with pytest.raises(ReferenceUnavailableError, match="no node 'kq-9'"):
        recorded.node("kq-9")


@pytest.mark.parametrize(
    "change",
    [
        {"ids": (508, 1, 2)},
        {"ids": ()},
        {"n_batch": 5},
        {"ids": (508, 400, 160), "n_batch": None},
        {"n_greedy": 34},
        {"lock": {("q", 0): np.zeros((8, 256), np.float32)}},
        {"n_batch": 1, "taps": True},
    ],
)
def test_what_was_not_recorded_is_refused(recorded, change):
    prompt = recorded.prompts()[1]
    with pytest.raises(ReferenceUnavailableError):
        recorded.run(Request(**{"ids": prompt.prompt_ids, "n_batch": 8} | change))


def test_the_refusal_says_what_there_is(recorded):
    with pytest.raises(ReferenceUnavailableError, match=r"b158_a\.p0 \(3 \+ 32 ids\), b158_a\.p1 \(8 \+ 32 ids\)"):
        recorded.run(Request(ids=(1, 2, 3)))


def test_tokens_are_the_recorded_ones(recorded):
    assert len(recorded.texts()) >= 5
    cases = json.loads((golden_models.FOLDER / "tokenize_b158_a.json").read_text("utf-8"))["cases"]
    for case in cases:
        assert recorded.tokenize(case["text"]) == tuple(case["ids_with_bos_parse_special"])
    for arguments in ({"text": "never seen"}, {"text": cases[0]["text"], "add_special": False}):
        with pytest.raises(ReferenceUnavailableError, match="not recorded"):
            recorded.tokenize(**arguments)
    other = golden_models.recorded("llama_tied")
    assert other.texts() == ()
    with pytest.raises(ReferenceUnavailableError, match="no tokens were recorded for llama_tied"):
        other.tokenize("the rain in spain")


def test_another_file_is_not_the_recorded_model(tmp_path):
    changed = tmp_path / "b158_a.gguf"
    data = bytearray((golden_models.FOLDER / "b158_a.gguf").read_bytes())
    data[-1] ^= 1
    changed.write_bytes(data)
    with pytest.raises(ReferenceUnavailableError, match=r"nothing was recorded from .*; the recorded .* was 6d2"):
        Recorded(changed, golden_models.FOLDER)


def test_a_folder_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(ReferenceUnavailableError, match=r"manifest\.json cannot be read"):
        Recorded(golden_models.model("b158_a"), tmp_path)
    for content, message in (("[]", "not a JSON object"), ("{}", "lacks 'build'"), ("{", "cannot be")):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ReferenceUnavailableError, match=message):
            Recorded(golden_models.model("b158_a"), tmp_path)
    with pytest.raises(ReferenceUnavailableError, match="No such file"):
        Recorded(tmp_path / "missing.gguf", golden_models.FOLDER)


def test_a_recording_with_a_missing_array_is_refused(tmp_path):
    shutil.copy(golden_models.FOLDER / "manifest.json", tmp_path)
    recorded = Recorded(golden_models.model("b158_a"), tmp_path)
    with pytest.raises(ReferenceUnavailableError, match=r"b158_a\.p0\.npz cannot be read"):
        recorded.run(Request(ids=recorded.prompts()[0].prompt_ids))
    (tmp_path / "b158_a.p0.npz").write_bytes(b"PK not a zip")
    with pytest.raises(ReferenceUnavailableError, match="cannot be read"):
        recorded.run(Request(ids=recorded.prompts()[0].prompt_ids))


def test_nothing_is_computed(recorded):
    with pytest.raises(ReferenceUnavailableError, match="not recorded"):
        recorded.weights("token_embd.weight")
    recorded.close()
    recorded.close()


def test_logits_after_the_last_token_alone():
    prompt = golden_models.recorded("b158_a").prompts()[0]
    whole, last = (
        golden_models.recorded("b158_a").run(Request(ids=prompt.prompt_ids, n_greedy=2, last_only=only))
        for only in (False, True)
    )
    assert np.array_equal(last.logits, whole.logits[len(prompt.prompt_ids) - 1 :])
