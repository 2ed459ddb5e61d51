import pytest

from bitnet import tokenizer
from bitnet.errors import TokenizerError
from bitnet.tokenizer_fit import Expected, check
from bitnet.vocabulary import read_vocabulary
from fixtures.texts import probes
from fixtures.texts.probes import changed

GOLDEN = probes.metadata("golden:llama-bpe")


def held(keys=GOLDEN, **expected):
    return check(tokenizer.from_metadata(keys), Expected(where="model.gguf", **expected))


def embedded(**changes):
    return read_vocabulary(changed("golden:llama-bpe", **changes), where="x")


def tokens(**texts):
    found = list(GOLDEN["tokenizer.ggml.tokens"])
    for i, text in texts.items():
        found[int(i[1:])] = text
    return found


def test_the_models_own_tokenizer_fits_without_a_word():
    assert held(n_vocab=512, embedded=embedded(), special_ids={"bos": 508, "eos": 509}) == ()


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"n_vocab": 511}, "512 tokens, the embedding 511 rows"),
        ({"embedded": embedded(tokens=tokens(_3="日本"), merges=[])}, "token 3 is "),
        ({"embedded": read_vocabulary(probes.metadata("spm"), where="x")}, "is bpe, the one in the model spm"),
        ({"n_vocab": 512, "special_ids": {"eos": 600}}, "eos id is 600, outside its 512 rows"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(expected, message):
    with pytest.raises(TokenizerError) as caught:
        held(**expected)
    assert message in caught.value.what
    assert "another model" in caught.value.remedy


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"n_vocab": 520}, "has 520 rows, the tokenizer 512 tokens"),
        ({"special_ids": {"bos": 508, "eos": 511}}, "eos id is 511, the tokenizer's 509; the tokenizer's is used"),
        ({"embedded": embedded(eos_token_id=511)}, "eos id is 511"),
        ({"embedded": embedded(pre="qwen2")}, "rules are llama-bpe (declared), the model's qwen2 (declared)"),
        ({"embedded": embedded(merges=[])}, "merges are not the 0 in the model"),
        ({"embedded": embedded(tokens=tokens(_511="<|other|>"))}, "1 special tokens have other texts"),
    ],
)
def test_what_may_be_a_repair_is_said(expected, message):
    notices = held(**expected)
    assert any(message in notice for notice in notices), notices


def test_fewer_tokens_than_the_model_embeds_are_said():
    short = {**GOLDEN, "tokenizer.ggml.tokens": GOLDEN["tokenizer.ggml.tokens"][:511],
             "tokenizer.ggml.token_type": GOLDEN["tokenizer.ggml.token_type"][:511]}  # fmt: skip
    assert any("has 511 tokens, the model embeds 512" in notice for notice in held(short, embedded=embedded()))
