import pytest

from bitnet import tokenizer
from bitnet.errors import TokenizerError
from bitnet.pretokenizers import ALIASES, PATTERNS, build
from fixtures.texts.probes import changed


def words(rules, text):
    return [text[slice(*span)] for _, span in build(rules).pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("llama-bpe", ["It", "'S", " ", "123", "45", "!\n", "  ", " x"]),
        ("qwen2", ["It", "'S", " ", "1", "2", "3", "4", "5", "!\n", "  ", " x"]),
        ("gpt-2", ["It", "'", "S", " 12345", "!", "\n  ", " x"]),
        ("default", ["It", "'", "S", " ", "123", "45", "!", "\n  ", " x"]),
        ("falcon", ["It", "'", "S", " ", "123", "45", "!", "\n  ", " x"]),
        ("starcoder", ["It", "'", "S", " ", "1", "2", "3", "4", "5", "!", "\n  ", " x"]),
    ],
)
def test_where_each_rule_set_cuts(rules, expected):
    assert words(rules, "It'S 12345!\n   x") == expected


@pytest.mark.parametrize("point", [0x1C89, 0x13460, 0x143FA, 0x10D40, 0x1B4E, 0x323B0, 0x33479])
def test_what_unicode_added_since_15_1_is_no_letter_number_or_punctuation(point):
    assert words("llama-bpe", f"a{chr(point)}b") == ["a", f"{chr(point)}b"]
    assert words("llama-bpe", f"a{chr(point)}1") == ["a", chr(point), "1"]


@pytest.mark.parametrize("point", [0x1C88, 0x1345F - 0x30, 0x323AF, 0x2EBF0])
def test_what_unicode_15_1_had_is_a_letter(point):
    assert words("llama-bpe", f"a{chr(point)}b") == [f"a{chr(point)}b"]


def test_an_alias_keeps_its_name_and_follows_the_rules():
    falcon3 = tokenizer.from_metadata(changed("golden:llama-bpe", pre="falcon3"))
    assert (falcon3.pre, falcon3.pre_source, falcon3.add_bos) == ("falcon3", "declared", True)
    assert set(ALIASES.values()) <= set(PATTERNS)


def test_an_unknown_pre_is_refused_and_the_known_ones_are_named():
    with pytest.raises(TokenizerError, match="'falcon_e'") as caught:
        tokenizer.from_metadata(changed("golden:llama-bpe", pre="falcon_e"), where="model.gguf")
    assert caught.value.where == "model.gguf"
    assert "llama-bpe" in caught.value.remedy
    assert "gpt-2" in caught.value.remedy
