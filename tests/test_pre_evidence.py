import random
from functools import cache

import pytest
import tokenizers as hf

from bitnet import tokenizer
from bitnet.pre_evidence import LLAMA_3_MERGES, LLAMA_3_TOKENS, cut_share, guess
from bitnet.pretokenizers import BYTE_SYMBOLS, PATTERNS, build

SYLLABLES = [a + b + c for a in ("b", "st", "l", "m", "tr", "") for b in "aeiou" for c in ("n", "r", "st", "")]
MARKERS = {b"<|begin_of_text|>": 0, b"<|eot_id|>": 1}


@cache
def vocabulary(rules):
    """Tokens that training makes of words, numbers and code under a rule set."""
    rng = random.Random(7)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(900)]
    between = [" "] * 12 + [
        ", ",
        ".",
        "_",
        " (",
        ")\n",
        ";\n\n",
        "'s ",
        "'S ",
        " = ",
        ' += "',
        "();\n\t",
        "!!! ",
        "?\n",
        "$",
        "`",
    ]
    numbers = [str(rng.randint(0, 10 ** rng.randint(1, 5))) for _ in range(400)]
    text = "".join(rng.choice(words if rng.random() < 0.8 else numbers) + rng.choice(between) for _ in range(20_000))
    trained = hf.Tokenizer(hf.models.BPE())
    trained.pre_tokenizer = build(rules)
    trainer = hf.trainers.BpeTrainer(vocab_size=3000, initial_alphabet=sorted(BYTE_SYMBOLS), show_progress=False)
    trained.train_from_iterator([text], trainer)
    return [token.encode() for token, _ in sorted(trained.get_vocab().items(), key=lambda entry: entry[1])]


def ids_of(pieces):
    return {piece: i for i, piece in enumerate(pieces)}


@pytest.mark.parametrize("rules", PATTERNS)
def test_the_rules_of_a_vocabulary_are_found(rules):
    pieces = vocabulary(rules)
    found = guess(ids_of(pieces), 0, pieces, arch="llama")
    assert found.pre == rules
    assert "of its tokens" in found.reason or "these rules cut 0.0%" in found.reason


def test_an_architecture_that_names_the_rules_is_believed_only_if_they_fit():
    fits = guess(ids_of(vocabulary("llama-bpe")), 0, vocabulary("llama-bpe"), arch="bitnet-b1.58")
    assert fits.pre == "llama-bpe"
    assert "bitnet-b1.58 models use Llama 3's tokenizer, and the rules cut 0.0%" in fits.reason
    other = guess(ids_of(vocabulary("gpt-2")), 0, vocabulary("gpt-2"), arch="bitnet")
    assert other.pre == "gpt-2"


def test_special_tokens_that_name_the_rules_are_believed_only_if_they_fit():
    pieces = vocabulary("llama-bpe")
    assert "Llama 3's special tokens" in guess(ids_of(pieces) | MARKERS, 0, pieces, arch="").reason
    pieces = vocabulary("gpt-2")
    assert guess(ids_of(pieces) | MARKERS, 0, pieces, arch="").pre == "gpt-2"


def test_a_vocabulary_of_llama_3s_size_and_tokens_is_llama_3s():
    ids = MARKERS | {b"%d" % i: i for i in range(2, LLAMA_3_TOKENS)}
    found = guess(ids, LLAMA_3_MERGES, list(ids), arch="bitnet-b1.58")
    assert found.pre == "llama-bpe"
    assert "(128256 tokens, its special tokens and 280147 merges)" in found.reason
    assert "merges" not in guess(ids, 1, list(ids), arch="").reason


@pytest.mark.parametrize(("arch", "pre"), [("bitnet", "llama-bpe"), ("llama", "default"), ("", "default")])
def test_weak_evidence_is_called_weak(arch, pre):
    pieces = vocabulary("gpt-2")[:700]
    found = guess(ids_of(pieces), 0, pieces, arch=arch)
    assert found.pre == pre
    assert "too few tokens" in found.reason


def test_a_vocabulary_that_no_rules_fit_is_said_to_be_one():
    pieces = [f"a{i}Ġb!c".encode() for i in range(2000)]
    found = guess(ids_of(pieces), 0, pieces, arch="llama")
    assert found.pre == "default"
    assert "no known rules fit" in found.reason


def test_pieces_that_are_no_text_say_nothing():
    pieces = [b"\xff\xfe", "Ã".encode(), "日本".encode()] * 2000
    assert "too few tokens, 0" in guess({}, 0, pieces, arch="").reason


def test_how_many_are_cut():
    assert cut_share(["12345", "123", "ab", "a b"], "llama-bpe") == 0.5
    assert cut_share([], "gpt-2") == 0.0


def test_the_reason_reaches_the_tokenizer():
    pieces = vocabulary("qwen2")
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.merges": []}
    found = tokenizer.from_metadata(keys | {"general.architecture": "llama"})
    assert found.pre == "qwen2"
    assert found.pre_source.startswith("assumed: tokenizer.ggml.pre is missing, and of ")
