import base64
import contextlib
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import tokenizer, tokenizer_model
from bitnet.errors import BitNetError, TokenizerError
from bitnet.tokenizer_files import Companions
from fixtures.texts import battery, probes
from tests import tokenizer_exports as exports

GOLDEN = probes.metadata("golden:llama-bpe")
SPM = probes.metadata("tiny-llama.i2_s.gguf")
NOTHING = Companions()


def beside(keys, **changes):
    added = {token["id"]: (token["content"], token["special"]) for token in exports.added_tokens(keys)}
    return Companions(added=added, **changes)


def ranked(raw, companions):
    return tokenizer.from_metadata(tokenizer_model.parse_ranked(raw, companions, where="tokenizer.model")[0])


def pieces(raw, companions=NOTHING):
    return tokenizer.from_metadata(tokenizer_model.parse_sentencepiece(raw, companions, where="tokenizer.model")[0])


def naive(ranks, piece):
    """tiktoken's rule: merge the pair whose union ranks best, leftmost first, until none is a token."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        unions = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not unions:
            return [ranks[part] for part in parts]
        _, i = min(unions)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("name", ["golden:llama-bpe", "tiny-relu2.i2_s.gguf"])
def test_ranks_give_the_ids_of_the_gguf(name):
    keys = probes.metadata(name)
    found, embedded = ranked(exports.ranks(keys), beside(keys)), tokenizer.from_metadata(keys)
    assert (found.pre, found.bos_id, found.eos_id, found.add_bos) == (
        "llama-bpe",
        embedded.bos_id,
        embedded.eos_id,
        True,
    )
    assert found.pre_source.startswith("assumed: ")
    for text in battery.nasty_texts():
        assert found.encode(text) == embedded.encode(text)


@given(st.text(alphabet="aehinorst ", max_size=30))
@settings(max_examples=100, deadline=None)
def test_ranks_merge_as_tiktoken_merges(text):
    raw = exports.ranks(GOLDEN)
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in raw.splitlines()}
    found = RANKED.encode(text, add_special=False)
    words = tokenizer_words(text)
    assert list(found) == [i for word in words for i in ([ranks[word]] if word in ranks else naive(ranks, word))]


def tokenizer_words(text):
    from bitnet.pretokenizers import build

    return [text[slice(*span)].encode() for _, span in build("llama-bpe").pre_tokenize_str(text)] if text else []


RANKED = ranked(exports.ranks(GOLDEN), beside(GOLDEN))


def test_llama_3s_special_tokens_follow_llama_3s_ranks(monkeypatch):
    monkeypatch.setattr(tokenizer_model, "LLAMA_3_RANKS", 508)
    keys, notices = tokenizer_model.parse_ranked(exports.ranks(GOLDEN), NOTHING, where="x")
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == 508 + 256
    assert tokens[508:519] == [
        "<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4)),
        "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
        "<|reserved_special_token_5|>",
    ]  # fmt: skip
    assert tokens[-1] == "<|reserved_special_token_250|>"
    assert keys["tokenizer.ggml.bos_token_id"] == 508
    assert "Llama 3's 256 special tokens are assumed" in notices[0]


RANKS = exports.ranks(GOLDEN)
LINES = RANKS.splitlines(keepends=True)
DAMAGED_RANKS = {
    "no base64": (RANKS + b"!!! 508\n", "line 509 is not a base64 token"),
    "no rank": (RANKS + b"YWI=\n", "line 509 has rank b''"),
    "rank out of order": (LINES[0] + LINES[2], "line 2 has rank b'2', not 1"),
    "a huge rank": (LINES[0] + b"YWI= " + b"9" * 5000, "has rank"),
    "a token twice": (LINES[0] + LINES[0].replace(b" 0", b" 1"), "a repetition"),
    "a long token": (LINES[0] + base64.b64encode(b"x" * 2000) + b" 1\n", "too long"),
}


@pytest.mark.parametrize("case", DAMAGED_RANKS)
def test_damaged_ranks_are_refused_by_line(case):
    raw, message = DAMAGED_RANKS[case]
    assert tokenizer_model.is_ranked(raw)
    with pytest.raises(TokenizerError) as caught:
        ranked(raw, beside(GOLDEN))
    assert message in caught.value.what


def test_ranks_without_a_word_on_special_tokens_are_refused():
    with pytest.raises(TokenizerError, match="508 tokens and no special ones") as caught:
        ranked(RANKS, NOTHING)
    assert "tokenizer_config.json" in caught.value.remedy
    with pytest.raises(TokenizerError, match="do not go on from 508"):
        ranked(RANKS, Companions(added={600: ("<x>", True)}))


def test_sentence_pieces_give_the_ids_of_the_gguf():
    for name in ("tiny-llama.i2_s.gguf", "spm", "spm:across"):
        keys = probes.metadata(name)
        found, embedded = pieces(exports.sentencepiece_model(keys)), tokenizer.from_metadata(keys)
        assert (found.bos_id, found.eos_id, found.add_bos) == (embedded.bos_id, embedded.eos_id, True)
        for text in battery.nasty_texts():
            assert found.encode(text) == embedded.encode(text)


def test_the_export_is_what_sentencepiece_itself_reads():
    raw = exports.sentencepiece_model(SPM)
    theirs, found = sentencepiece.SentencePieceProcessor(model_proto=raw), pieces(raw)
    for text in battery.nasty_texts():
        if "</s>" not in text and "<s>" not in text and "<unk>" not in text:
            assert [theirs.bos_id(), *theirs.encode(text)] == list(found.encode(text))


def test_what_the_message_and_the_files_beside_it_say():
    raw = exports.sentencepiece_model(SPM, add_dummy_prefix=False, charsmap=b"x")
    n_vocab = len(exports.texts(SPM))
    companions = Companions(added={n_vocab: ("<new>", True)}, eos="<new>", add_bos=False)
    keys, notices = tokenizer_model.parse_sentencepiece(raw, companions, where="x")
    found = tokenizer.from_metadata(keys)
    assert (found.add_space_prefix, found.add_bos, found.eos_id, found.n_vocab) == (False, False, n_vocab, n_vocab + 1)
    assert "normalisation (identity) is not applied" in notices[0]
    with pytest.raises(TokenizerError, match="has id 9000"):
        pieces(raw, Companions(added={9000: ("<new>", True)}))


@pytest.mark.parametrize(("kind", "name"), [(1, "unigram"), (3, "of type 3")])
def test_other_models_than_byte_pairs_are_refused(kind, name):
    with pytest.raises(TokenizerError, match=f"is {name}; only byte pairs"):
        pieces(exports.sentencepiece_model(SPM, model_type=kind))


@pytest.mark.parametrize("raw", [b"", b"\x00", b"hello", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\x08"])
def test_what_is_no_model_is_refused(raw):
    with pytest.raises(TokenizerError, match="neither a tiktoken nor a SentencePiece model"):
        pieces(raw)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_message_is_read_or_refused(data):
    raw = bytearray(exports.sentencepiece_model(SPM))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BitNetError):
        pieces(bytes(raw[: data.draw(st.sampled_from([len(raw), 1000, 77]))]))


def test_types_survive():
    types = tokenizer_model.parse_sentencepiece(exports.sentencepiece_model(SPM), NOTHING, where="x")[0]
    assert np.array_equal(types["tokenizer.ggml.token_type"], SPM["tokenizer.ggml.token_type"])
