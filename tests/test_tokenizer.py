import json
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitnet import gguf, tokenizer
from bitnet.errors import UsageError
from bitnet.vocabulary import TokenType
from fixtures.texts import battery, probes, recorded
from fixtures.texts.probes import changed, few_pieces
from reference.llama_cpp_build import ensure_library
from reference.process import ProcessRunner

RECORDED = recorded.load()["vocabularies"]
QUICK_PLANES = ("pairs:llama-bpe", "spm")
_made = {}


def make(name, folder):
    """A tokenizer read from a file, once for all tests."""
    if name not in _made:
        path = folder / f"{len(_made)}.gguf"
        probes.write(path, probes.metadata(name))
        _made[name] = tokenizer.from_gguf(gguf.read(path))
    return _made[name]


def encoder(made):
    return lambda texts, special: [made.encode(text, add_special=special, parse_special=special) for text in texts]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="session")
def golden():
    return tokenizer.from_gguf(gguf.read(probes.GOLDEN))


@pytest.fixture(scope="session")
def spm(folder):
    return make("spm", folder)


def test_everything_is_recorded():
    assert tuple(RECORDED) == recorded.VOCABULARIES
    assert len(battery.nasty_texts()) == len(set(battery.nasty_texts())) >= 88


@pytest.mark.parametrize("name", recorded.VOCABULARIES)
def test_the_hand_written_texts_give_llama_cpps_ids(name, folder):
    found = recorded.measure_nasty(encoder(make(name, folder)))
    texts = battery.nasty_texts()
    different = [text for text, a, b in zip(texts, found, RECORDED[name]["nasty"], strict=True) if a != b]
    assert different == []


@pytest.mark.parametrize("name", recorded.VOCABULARIES)
def test_random_texts_give_llama_cpps_ids(name, folder):
    assert recorded.measure_fuzz(encoder(make(name, folder))) == RECORDED[name]["fuzz"]


@pytest.mark.parametrize("name", QUICK_PLANES)
@pytest.mark.parametrize("plane", range(battery.PLANES))
def test_every_code_point_gives_llama_cpps_ids(name, plane, folder):
    assert recorded.measure_plane(encoder(make(name, folder)), plane) == RECORDED[name]["planes"][plane]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recorded.VOCABULARIES if name not in QUICK_PLANES])
def test_every_code_point_gives_llama_cpps_ids_in_every_vocabulary(name, folder):
    encode = encoder(make(name, folder))
    assert [recorded.measure_plane(encode, plane) for plane in range(battery.PLANES)] == RECORDED[name]["planes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", recorded.VOCABULARIES)
def test_what_is_recorded_is_what_llama_cpp_does_now(name, tmp_path):
    ensure_library()
    path = tmp_path / "vocabulary.gguf"
    probes.write(path, probes.metadata(name))
    with ProcessRunner("reference.llama_cpp:LlamaCpp", {"model": str(path), "vocab_only": True}) as llama:
        found = recorded.measure(
            lambda texts, special: llama.tokenize_many(texts, add_special=special, parse_special=special)
        )
    assert found == RECORDED[name]


def test_what_bitnet_cpp_itself_made_of_the_golden_texts(golden):
    cases = json.loads((probes.GOLDEN.parent / "tokenize_b158_a.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 6
    for case in cases:
        assert golden.encode(case["text"]) == tuple(case["ids_with_bos_parse_special"])


@pytest.mark.parametrize("liar", ["gpt-2", "default", "qwen2"])
def test_the_battery_tells_the_rules_apart(liar, folder):
    found = encoder(make(f"pairs:{liar}", folder))
    truth = RECORDED["pairs:llama-bpe"]
    assert recorded.measure_fuzz(found) != truth["fuzz"]
    assert sum(a != b for a, b in zip(recorded.measure_nasty(found), truth["nasty"], strict=True)) > 20


@pytest.mark.slow
def test_the_battery_tells_unicode_versions_apart(monkeypatch):
    monkeypatch.setattr("bitnet.pretokenizers._at_15_1", lambda pattern: pattern)
    newer = tokenizer.from_metadata(probes.metadata("pairs:llama-bpe"))
    assert recorded.measure_plane(encoder(newer), 1) != RECORDED["pairs:llama-bpe"]["planes"][1]


@pytest.mark.parametrize("text", [b"The", None, 3, ["The"]])
def test_what_is_no_text_is_refused(golden, text):
    with pytest.raises(UsageError, match="text is"):
        golden.encode(text)


def test_control_tokens_are_text_when_not_parsed_but_user_defined_ones_are_matched(folder):
    pairs = make("pairs:llama-bpe", folder)
    eot = pairs.special_tokens["<|eot_id|>"]
    assert eot in pairs.encode("a<|eot_id|>b")
    assert eot not in pairs.encode("a<|eot_id|>b", parse_special=False)
    user = pairs.encode("Assistant:", add_special=False, parse_special=False)
    assert len(user) == 1
    assert pairs.token_text(user[0]) == "Assistant:"
    assert "Assistant:" not in pairs.special_tokens


def test_longer_special_tokens_are_cut_out_first():
    pieces = {"a": -1.0, "b": -1.0, "c": -1.0, "▁": -1.0, "ab": 0.0, "bcc": 0.0}
    metadata = few_pieces(pieces)
    metadata["tokenizer.ggml.token_type"][-2:] = TokenType.USER_DEFINED
    found = tokenizer.from_metadata(metadata)
    ids = found.encode("abcc", add_special=False)
    assert [found.token_text(i) for i in ids] == ["▁", "a", "bcc"]  # leftmost-longest would take `ab` first


def test_phi_3s_special_tokens_swallow_the_space_after_them():
    metadata = changed("spm") | {"general.name": "Phi-3 mini"}
    stripped, kept = tokenizer.from_metadata(metadata), tokenizer.from_metadata(changed("spm"))
    text = "</s> \n x<s> y"
    assert stripped.encode(text) == kept.encode("</s>x<s> y")


def test_repeated_and_adjacent_special_tokens(golden):
    bos, eot = golden.bos_id, golden.special_tokens["<|eot_id|>"]
    assert golden.encode("<|begin_of_text|>" * 3) == (bos,) * 4
    assert golden.encode("<|eot_id|><|eot_id|>", add_special=False) == (eot, eot)


def test_no_text(golden, spm):
    assert golden.encode("") == (golden.bos_id,)
    assert spm.encode("") == (spm.bos_id,)
    assert golden.encode("", add_special=False) == spm.encode("", add_special=False) == ()
    assert golden.decode(()) == spm.decode(()) == ""


@pytest.mark.parametrize("unit", ["a", " ", "\n", "9", "!", "é", "xy ", "🙂", "\x00"])
def test_huge_texts(unit, golden, spm):
    text = unit * (60_000 // len(unit))
    for made in (golden, spm):
        ids = made.encode(text, add_special=False)
        assert made.decode(ids) == text


def test_lone_surrogates_are_read_as_replacement_characters(golden, spm):
    text = b"a\xff\xe4b".decode("utf-8", "surrogateescape") + "\ud83d"
    for made in (golden, spm):
        assert made.encode(text) == made.encode("a\ufffd\ufffdb\ufffd")


def test_a_byte_without_a_token_vanishes_but_keeps_its_neighbours_apart():
    found = tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a", "b", "ab"],
            "tokenizer.ggml.merges": ["a b"],
        }
    )
    assert found.encode("ab") == (2,)
    assert found.encode("azb") == (0, 1)


@pytest.mark.parametrize("bad", [-1, 512, 10**12])
def test_ids_outside_the_vocabulary_are_a_usage_error(bad, golden):
    with pytest.raises(UsageError, match="outside the vocabulary of 512"):
        golden.decode([bad])
    with pytest.raises(UsageError):
        golden.token_bytes(bad)


TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n▁'a1<|>")), max_size=60)


@given(TEXT)
@example("▁ ▁")
@example("<|eot_id|> x")
@settings(max_examples=200, deadline=None)
def test_byte_pairs_decode_to_the_text(golden, text):
    assert golden.decode(golden.encode(text, add_special=False)) == text
    assert golden.decode(golden.encode(text, parse_special=False), skip_special=True) == text


@given(TEXT.map(lambda text: text.replace("▁", "_").replace("ab", "")))  # "ab" is a user-defined token: a space follows
@example("  x ")
@settings(max_examples=200, deadline=None)
def test_sentence_pieces_decode_to_the_text(spm, text):
    assert spm.decode(spm.encode(text, add_special=False, parse_special=False)) == text
    assert spm.decode(spm.encode(text, parse_special=False), skip_special=True) == text


@given(st.lists(st.integers(0, 511), max_size=30))
def test_decoding_is_the_bytes_of_the_tokens(golden, ids):
    joined = b"".join(golden.token_bytes(i) for i in ids)
    assert golden.decode(ids, skip_special=True) == joined.decode("utf-8", "replace")


def test_special_tokens_are_spelled_or_skipped(golden):
    ids = golden.encode("hi<|eot_id|>")
    assert golden.decode(ids) == "<|begin_of_text|>hi<|eot_id|>"
    assert golden.decode(ids, skip_special=True) == "hi"
    assert golden.token_bytes(golden.bos_id) == b""


def test_a_continuation_keeps_its_leading_space(spm):
    ids = spm.encode("x", add_special=False)
    assert spm.decode(ids) == "x"
    assert spm.decode(ids, continuation=True) == " x"
    assert spm.decode((spm.bos_id, *ids), skip_special=True) == "x"


def test_every_kind_of_token_has_its_bytes(spm):
    assert spm.token_bytes(3 + 0x0A) == b"\n"
    assert spm.token_bytes(0) == spm.token_bytes(1) == b""
    assert spm.token_text(3 + 0x0A) == "<0x0A>"


def test_threads_share_a_tokenizer(golden, spm):
    texts = battery.nasty_texts()
    expected = [(golden.encode(text), spm.encode(text)) for text in texts]
    wrong = []

    def work():
        wrong.extend(text for text, pair in zip(texts, expected, strict=True)
                     if (golden.encode(text), spm.encode(text)) != pair)  # fmt: skip

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
