import contextlib
import copy
import json

import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import tokenizer, tokenizer_json
from bitnet.errors import BitNetError, TokenizerError
from bitnet.tokenizer_files import Companions
from fixtures.texts import battery, probes
from fixtures.texts.probes import few_pieces
from tests import tokenizer_exports as exports

NOTHING = Companions()
GOLDEN = probes.metadata("golden:llama-bpe")


def parse(content, beside=NOTHING):
    return tokenizer_json.parse(json.dumps(content).encode(), beside, where="tokenizer.json")


def read(content, beside=NOTHING):
    return tokenizer.from_metadata(parse(content, beside)[0])


@pytest.mark.parametrize("rules", exports.PRE_TOKENIZERS)
@pytest.mark.parametrize("pairs", [True, False])
def test_byte_pairs_give_the_ids_of_the_gguf_and_of_hugging_face(rules, pairs):
    keys = probes.metadata(f"golden:{rules}")
    content = exports.tokenizer_json(keys, rules=rules, pairs=pairs)
    found, embedded = read(content), tokenizer.from_metadata(keys)
    theirs = hf.Tokenizer.from_str(json.dumps(content))
    assert (found.pre, found.n_vocab, found.bos_id, found.eos_id) == (rules, 512, embedded.bos_id, embedded.eos_id)
    assert (found.end_ids, found.special_tokens) == (embedded.end_ids, embedded.special_tokens)
    for text in battery.nasty_texts():
        assert found.encode(text) == embedded.encode(text) == tuple(theirs.encode(text).ids)


@pytest.mark.parametrize("name", ["tiny-relu2.i2_s.gguf", "tiny-llama.i2_s.gguf"])
def test_a_fixture_models_vocabulary_gives_its_ids(name):
    keys = probes.metadata(name)
    content = exports.tokenizer_json(keys)
    found, embedded = read(content), tokenizer.from_metadata(keys)
    theirs = hf.Tokenizer.from_str(json.dumps(content))
    for text in battery.nasty_texts():
        assert found.encode(text) == embedded.encode(text) == tuple(theirs.encode(text).ids)
        assert found.decode(found.encode(text)) == embedded.decode(embedded.encode(text))


def test_the_other_spellings_of_llama_3s_expression():
    content = copy.deepcopy(exports.tokenizer_json(GOLDEN))
    split = content["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = exports.LLAMA_3_SPLIT.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
    split["behavior"], split["invert"] = "Removed", True
    assert read(content).pre == "llama-bpe"


def test_metaspace_is_sentencepiece_too():
    keys = probes.metadata("tiny-llama.i2_s.gguf")
    content = exports.tokenizer_json(keys) | {"normalizer": None}
    for scheme, prefix in (("always", True), ("first", True), ("never", False)):
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        assert read(content).add_space_prefix is prefix


def test_what_the_files_beside_say_wins():
    beside = Companions(bos="<|eot_id|>", eos="<|begin_of_text|>", add_bos=False, add_eos=True)
    found = read(exports.tokenizer_json(GOLDEN), beside)
    assert (found.add_bos, found.add_eos, found.eos_id) == (False, True, 508)
    assert found.bos_id == found.special_tokens["<|eot_id|>"]
    with pytest.raises(TokenizerError, match="'<nothing>', which the vocabulary lacks"):
        parse(exports.tokenizer_json(GOLDEN), Companions(bos="<nothing>"))


def test_tokens_added_in_the_config_and_holes_between_them():
    found = read(exports.tokenizer_json(GOLDEN), Companions(added={515: ("<new>", True), 513: ("user", False)}))
    assert found.n_vocab == 516
    assert found.encode("<new>user", add_special=False) == (515, 513)
    assert found.token_text(514) == "[PAD514]"
    assert found.token_bytes(514) == b""


def test_what_is_not_done_is_said():
    content = exports.tokenizer_json(GOLDEN)
    content["normalizer"] = {"type": "NFC"}
    content["model"]["ignore_merges"] = False
    content["added_tokens"][0]["rstrip"] = True
    notices = " ".join(parse(content)[1])
    assert "the normaliser (NFC) is not applied" in notices
    assert "ignore_merges is False" in notices
    assert "swallow white space" in notices
    assert "no file names the eos token; <|end_of_text|> is taken" in notices


def test_what_is_of_batches_and_training_is_said_and_nothing_is_where_it_is_off():
    content = exports.tokenizer_json(GOLDEN)
    content["model"]["dropout"], content["truncation"], content["padding"] = 0.5, {"max_length": 4}, {"pad_id": 0}
    content["added_tokens"][1]["single_word"] = True
    notices = " ".join(parse(content)[1])
    for told in (
        "model.dropout is 0.5, for training",
        "truncation is set in the file; here no text is cut",
        "padding is set in the file; here no text is filled up",
        f"such as {content['added_tokens'][1]['content']!r}, are read as words of their own alone",
    ):
        assert told in notices
    content = exports.tokenizer_json(GOLDEN)
    content["model"] |= {"dropout": 0.0, "end_of_word_suffix": "", "continuing_subword_prefix": ""}
    assert parse(content)[1] == parse(exports.tokenizer_json(GOLDEN))[1]


SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}


def around(single, table):
    """A tokenizer whose template is `single`: texts of tokens, None for the text; `table` has the ids of each."""
    content = copy.deepcopy(exports.tokenizer_json(GOLDEN))
    listed = {name: {"id": name, "ids": ids, "tokens": [name] * len(ids)} for name, ids in table.items()}
    entries = [SEQUENCE if name is None else {"SpecialToken": {"id": name, "type_id": 0}} for name in single]
    content["post_processor"]["processors"][1] |= {"single": entries, "special_tokens": listed}
    return content


BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
IDS = {text: i for i, text in enumerate(exports.texts(GOLDEN))}


@given(
    before=st.lists(st.sampled_from([BOS, EOS]), max_size=2), after=st.lists(st.sampled_from([BOS, EOS]), max_size=2)
)
@settings(max_examples=30, deadline=None)
def test_tokens_around_a_text_are_those_of_hugging_face_or_refused(before, after):
    content = around([*before, None, *after], {name: [IDS[name]] for name in (BOS, EOS)})
    theirs = hf.Tokenizer.from_str(json.dumps(content))
    if len(before) > 1 or len(after) > 1:
        with pytest.raises(TokenizerError, match=r"puts 2 tokens (before|after) a text"):
            parse(content)
        return
    found = read(content)
    for text in ("the duck", ""):
        assert found.encode(text) == tuple(theirs.encode(text).ids)


def test_a_token_of_the_template_is_that_of_its_id_whatever_its_name_there():
    content = around(["start", None], {"start": [IDS[EOS]]})
    theirs = hf.Tokenizer.from_str(json.dumps(content))
    assert read(content).encode("a duck") == tuple(theirs.encode("a duck").ids)
    assert read(content).bos_id == IDS[EOS]


@pytest.mark.parametrize(
    ("single", "table", "message"),
    [
        ([BOS, None], {BOS: [IDS[BOS], 5]}, "puts 2 tokens for '<|begin_of_text|>'"),
        ([BOS, None], {BOS: [10**6]}, "has no ids of the vocabulary"),
        ([BOS, None], {BOS: []}, "has no ids of the vocabulary"),
        ([BOS, None], {}, "has no ids of the vocabulary"),
        ([BOS], {BOS: [IDS[BOS]]}, "has 0 texts, not one"),
        ([None, None], {}, "has 2 texts, not one"),
    ],
)
def test_a_template_that_says_something_else(single, table, message):
    with pytest.raises(TokenizerError) as caught:
        parse(around(single, table))
    assert message in caught.value.what


def test_two_files_that_name_other_tokens_around_a_text():
    content = exports.tokenizer_json(GOLDEN)
    with pytest.raises(TokenizerError, match=r"adds '<\|begin_of_text\|>', but the bos token beside is '<\|eot_id\|>'"):
        parse(content, Companions(bos="<|eot_id|>"))
    content = around([None, EOS], {EOS: [IDS[EOS]]})
    with pytest.raises(TokenizerError, match=r"but the eos token beside is '<\|eot_id\|>'"):
        parse(content, Companions(eos="<|eot_id|>", add_eos=True))
    assert not read(content, Companions(eos="<|eot_id|>", add_eos=False)).add_eos


def test_no_bos_is_added_where_none_is_known():
    content = exports.tokenizer_json(GOLDEN)
    content["post_processor"] = None
    assert not read(content).add_bos


def edited(path, value):
    content = copy.deepcopy(exports.tokenizer_json(GOLDEN))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return content


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
REFUSED = {
    "no model": (("model",), None, "model is not an object"),
    "unigram": (("model", "type"), "Unigram", "'Unigram', which is not supported"),
    "word pieces": (("model", "type"), "WordPiece", "'WordPiece'"),
    "no vocabulary": (("model", "vocab"), [], "model.vocab is not"),
    "an id that is no number": (("model", "vocab", "a"), "1", "an id that is not a number"),
    "an id that is a truth": (("model", "vocab", "a"), True, "an id that is not a number"),
    "an id twice": (("model", "vocab", "new"), 3, "one id"),
    "an id far away": (("model", "vocab", "new"), 10**9, "at most 1048576"),
    "a negative added id": (("added_tokens", 0, "id"), -1, "ids go from -1"),
    "an added token elsewhere": (("added_tokens", 0, "id"), 3, "among the added tokens"),
    "an added token without text": (("added_tokens", 0, "content"), "", "added_tokens[0]"),
    "no merges": (("model", "merges"), None, "model.merges is not a list"),
    "a merge of three": (("model", "merges", 2), ["a", "b", "c"], "model.merges[2]"),
    "a merge of nothing": (("model", "merges", 2), "ab", "model.merges[2]"),
    "a lone surrogate": (("added_tokens", 0, "content"), "\ud800", "surrogate"),
    "another expression": ((*SPLIT, "pattern"), {"Regex": r"\w+"}, r"Split('\\w+')"),
    "another behaviour": ((*SPLIT, "behavior"), "MergedWithNext", "whose rules are not known"),
    "a plain string": ((*SPLIT, "pattern"), {"String": " "}, "whose rules are not known"),
    "a prefix": (("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True, "whose rules are not known"),
    "no pre-tokenizer": (("pre_tokenizer",), None, "is absent"),
    "whitespace": (("pre_tokenizer",), {"type": "Whitespace"}, "is Whitespace"),
    "ends of words": (("model", "end_of_word_suffix"), "</w>", "model.end_of_word_suffix is '</w>'"),
    "insides of words": (("model", "continuing_subword_prefix"), "##", "model.continuing_subword_prefix is '##'"),
    "another post-processor": (
        ("post_processor",),
        {"type": "RobertaProcessing"},
        "post-processor is RobertaProcessing",
    ),
    "two templates": (
        ("post_processor", "processors", 0),
        {"type": "TemplateProcessing"},
        "is TemplateProcessing, TemplateProcessing",
    ),
    "no post-processor": (("post_processor",), 3, "post_processor is not an object"),
    "nested": (("pre_tokenizer", "pretokenizers"), [{"type": "Sequence"}, {"type": "ByteLevel"}], "not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_damaged_or_unknown_is_refused_by_name(case):
    path, value, message = REFUSED[case]
    with pytest.raises(TokenizerError) as caught:
        parse(edited(path, value))
    assert message in caught.value.what
    assert caught.value.where == "tokenizer.json"
    assert caught.value.remedy


def test_tied_scores_cannot_be_written_as_merges_but_distinct_ones_can():
    pieces = {"a": -9.0, "b": -9.5, "▁": -9.7, "ab": -1.0, "aba": -2.0, "▁a": -3.0}
    keys = few_pieces(pieces) | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    found, embedded = read(exports.tokenizer_json(keys)), tokenizer.from_metadata(keys)
    for text in ("aba", "ababab", " a b", "bab a"):
        assert found.encode(text) == embedded.encode(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.text(max_size=4) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PLACES = [path for path, _, _ in REFUSED.values()] + [
    ("added_tokens",), ("normalizer",), ("post_processor",), ("post_processor", "processors"),
    ("post_processor", "processors", 1, "single"), ("pre_tokenizer", "pretokenizers"), ("model", "byte_fallback"),
]  # fmt: skip


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=150, deadline=None)
def test_anything_anywhere_is_read_or_refused(path, value):
    with contextlib.suppress(BitNetError):
        read(edited(path, value))
