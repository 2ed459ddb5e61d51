from itertools import pairwise

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import tokenizer
from bitnet.errors import TokenizerError
from bitnet.tokenizer_spm import SentencePieceModel


def slow_merge(word, ids, scores):
    """The rule as a person would say it: merge the best-scored neighbours, the leftmost of equals, until none fit."""
    symbols = list(word)
    while True:
        joined = [(a + b).encode() for a, b in pairwise(symbols)]
        pairs = [(-scores[ids[piece]], i) for i, piece in enumerate(joined) if piece in ids]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


PIECES = st.dictionaries(st.text("ab▁", min_size=1, max_size=4), st.integers(-3, 0).map(float), max_size=12)


@given(PIECES, st.text("ab▁c", max_size=24))
@settings(max_examples=150, deadline=None)
def test_merging_follows_the_rule(pieces, text):
    tokens = [f"<0x{b:02X}>" for b in range(256)] + list(pieces)
    ids = {token.encode(): i for i, token in enumerate(tokens)}
    scores = [0.0] * 256 + list(pieces.values())
    expected = [
        i
        for symbol in slow_merge(text, ids, scores)
        for i in ([ids[symbol.encode()]] if symbol.encode() in ids else [*symbol.encode()])
    ]
    assert SentencePieceModel(ids, scores, where="x").encode(text) == expected


def test_no_ranks_of_merges_express_equal_scores():
    pieces = {"a": -1.0, "b": -1.0, "ab": 0.0, "ba": 0.0}
    ids = {piece: i for i, piece in enumerate(pieces)}
    rule = SentencePieceModel({p.encode(): i for p, i in ids.items()}, list(pieces.values()), where="x").encode
    assert [rule("aba"), rule("bab")] == [[2, 0], [3, 1]]
    for merges in ([("a", "b"), ("b", "a")], [("b", "a"), ("a", "b")]):
        ranked = hf.Tokenizer(hf.models.BPE(ids, merges))
        assert [ranked.encode("aba").ids, ranked.encode("bab").ids] != [[2, 0], [3, 1]]


def test_spm_without_byte_tokens_says_what_it_cannot_spell():
    found = tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a"],
            "tokenizer.ggml.scores": np.zeros(5, np.float32),
        },
        where="model.gguf",
    )
    assert found.encode("aa a") == (1, 3, 4, 4, 3, 4)
    with pytest.raises(TokenizerError, match="'é'"):
        found.encode("é")
