import numpy as np
import pytest

from bitnet import gguf, tokenizer
from bitnet.errors import TokenizerError
from bitnet.vocabulary import TokenType
from fixtures.texts import battery, probes
from fixtures.texts.probes import changed, few_pieces


@pytest.fixture(scope="session")
def golden():
    return tokenizer.from_gguf(gguf.read(probes.GOLDEN))


def test_the_golden_vocabulary(golden):
    assert (golden.kind, golden.pre, golden.pre_source) == ("bpe", "llama-bpe", "declared")
    assert golden.n_vocab == 512
    assert golden.add_bos
    assert not golden.add_eos
    assert golden.bos_id == golden.special_tokens["<|begin_of_text|>"] == 508
    assert golden.special_tokens["<|eot_id|>"] in golden.end_ids
    assert golden.eos_id in golden.end_ids


def test_a_missing_pre_of_a_bitnet_model_is_llama_bpe_and_says_so(golden):
    bitnet = tokenizer.from_metadata(changed("golden:llama-bpe", pre=None) | {"general.architecture": "bitnet-b1.58"})
    assert bitnet.pre == "llama-bpe"
    assert bitnet.pre_source.startswith("assumed: ")
    assert bitnet.add_bos
    for text in battery.nasty_texts():
        assert bitnet.encode(text) == golden.encode(text)


def test_a_missing_pre_with_llama_3s_tokens_is_llama_bpe():
    found = tokenizer.from_metadata(changed("golden:llama-bpe", pre=None) | {"general.architecture": "llama"})
    assert found.pre == "llama-bpe"
    assert "special tokens" in found.pre_source


def test_a_missing_pre_without_any_sign_is_what_llama_cpp_takes():
    found = tokenizer.from_metadata(
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": ["a", "b"],
            "tokenizer.ggml.merges": [],
        }
    )
    assert found.pre == "default"
    assert found.pre_source.startswith("assumed: ")
    assert not found.add_bos


@pytest.mark.parametrize(
    ("name", "add_bos"),
    [("golden:llama-bpe", True), ("golden:falcon3", True), ("golden:gpt-2", False), ("golden:default", False)],
)
def test_whether_a_bos_is_added_when_the_file_does_not_say(name, add_bos):
    found = tokenizer.from_metadata(changed(name, add_bos_token=None))
    assert found.add_bos is add_bos
    assert (found.encode("x")[0] == found.bos_id) is add_bos


def test_what_the_file_says_about_bos_and_eos_wins():
    spm = tokenizer.from_metadata(probes.metadata("spm"))
    found = tokenizer.from_metadata(changed("spm", add_bos_token=False, add_eos_token=True))
    assert found.encode("x") == (*spm.encode("x")[1:], found.eos_id)
    assert found.encode("x", add_special=False) == spm.encode("x", add_special=False)
    assert found.encode("") == (found.eos_id,)


def test_no_space_is_put_in_front_when_the_file_says_so():
    found = tokenizer.from_metadata(changed("spm", add_space_prefix=False))
    assert found.decode(found.encode(" x", add_special=False)) == " x"
    assert found.encode("x", add_special=False) != found.encode(" x", add_special=False)


BROKEN = {
    "no model": (changed("golden:llama-bpe", model=None), "tokenizer.ggml.model is missing"),
    "model of another kind": (changed("golden:llama-bpe", model="bert"), "'bert'"),
    "model not a string": (changed("golden:llama-bpe", model=3), "tokenizer.ggml.model is int"),
    "no tokens": (changed("golden:llama-bpe", tokens=None), "tokenizer.ggml.tokens is missing"),
    "empty tokens": (changed("golden:llama-bpe", tokens=[]), "tokenizer.ggml.tokens is empty"),
    "tokens not strings": (
        changed("golden:llama-bpe", tokens=[1, 2]),
        "tokenizer.ggml.tokens is not an array of strings",
    ),
    "tokens a string": (changed("golden:llama-bpe", tokens="abc"), "tokenizer.ggml.tokens is str"),
    "a token twice": (
        changed("golden:llama-bpe", tokens=["a", "b", "a"], token_type=None, merges=[]),
        "holds 'a' twice",
    ),
    "types short": (
        changed("golden:llama-bpe", token_type=np.ones(3, np.int32)),
        "tokenizer.ggml.token_type has 3 entries",
    ),
    "scores short": (changed("spm", scores=np.ones(3, np.float32)), "tokenizer.ggml.scores has 3 entries"),
    "scores strings": (changed("spm", scores=["a"]), "tokenizer.ggml.scores is not an array of numbers"),
    "bos outside": (
        changed("golden:llama-bpe", bos_token_id=512),
        "tokenizer.ggml.bos_token_id is 512, outside the vocabulary of 512",
    ),
    "eos negative": (changed("golden:llama-bpe", eos_token_id=-1), "tokenizer.ggml.eos_token_id is -1"),
    "eot a string": (changed("golden:llama-bpe", eot_token_id="x"), "tokenizer.ggml.eot_token_id is str"),
    "bos a boolean": (changed("golden:llama-bpe", bos_token_id=True), "tokenizer.ggml.bos_token_id is bool"),
    "flag a number": (changed("golden:llama-bpe", add_bos_token=1), "tokenizer.ggml.add_bos_token is int"),
    "no merges": (changed("golden:llama-bpe", merges=None), "tokenizer.ggml.merges is missing"),
    "merge of one part": (changed("golden:llama-bpe", merges=["ab"]), "tokenizer.ggml.merges entry 0"),
    "merge of an unknown part": (changed("golden:llama-bpe", merges=["t h", "日 x"]), "tokenizer.ggml.merges entry 1"),
    "merge to an unknown token": (changed("golden:llama-bpe", merges=["Q Q"]), "names the token 'QQ'"),
    "a bos to add but none named": (
        changed("golden:llama-bpe", bos_token_id=None),
        "tokenizer.ggml.bos_token_id is missing",
    ),
    "an eos to add but none named": (
        changed("golden:llama-bpe", eos_token_id=None, add_eos_token=True),
        "eos_token_id is missing",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_metadata_is_refused_by_key(case):
    metadata, message = BROKEN[case]
    with pytest.raises(TokenizerError) as caught:
        tokenizer.from_metadata(metadata, where="model.gguf")
    assert message in caught.value.what
    assert caught.value.where == "model.gguf"
    assert caught.value.remedy


def test_scores_that_are_no_numbers_are_refused():
    scores = np.zeros(260, np.float32)
    scores[7] = np.nan
    with pytest.raises(TokenizerError, match="at id 7"):
        tokenizer.from_metadata(few_pieces({"a": 0.0}) | {"tokenizer.ggml.scores": scores})


def test_special_tokens_must_be_text():
    metadata = few_pieces({"a": 0.0})
    metadata["tokenizer.ggml.tokens"] = [t.encode() for t in metadata["tokenizer.ggml.tokens"][:-1]] + [b"\xff<x>"]
    metadata["tokenizer.ggml.token_type"][-1] = TokenType.CONTROL
    with pytest.raises(TokenizerError, match="not UTF-8"):
        tokenizer.from_metadata(metadata)


def test_end_tokens_are_found_by_text_whatever_their_type():
    tokens = ["a", "<|im_end|>", "<|fim_pad|>", "<|fim_prefix|>"]
    found = tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [],
        }
    )
    assert found.end_ids == {1, 2}
    assert found.special_tokens == {"<|im_end|>": 1, "<|fim_pad|>": 2, "<|fim_prefix|>": 3}
