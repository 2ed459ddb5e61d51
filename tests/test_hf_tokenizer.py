"""A tokenizer from a GGUF to a checkpoint and back keeps every id."""

import json

import numpy as np
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import hf_tokenizer, tokenizer_files
from bitnet import tokenizer as tokenizers
from bitnet.errors import TokenizerError
from bitnet.gguf import ValueType, read, write
from bitnet.hf_tokenizer import read_tokenizer, write_tokenizer
from bitnet.pretokenizers import PATTERNS
from bitnet.vocabulary import TokenType

TEXTS = ("the heat, the tea; 1234567 they're", "  two\n\nlines\t", "ÄÖ 🙂 ½ ٣٤", "<|268|> in the middle", "")


def gguf(tmp_path, **changes):
    keys = small_models.vocabulary() | {f"tokenizer.{k.replace('__', '.')}": v for k, v in changes.items()}
    path = tmp_path / "tokenizer.gguf"
    write(path, {"general.architecture": "llama", **keys}, [])
    return read(path)


@pytest.mark.parametrize("rules", PATTERNS)
def test_there_and_back(tmp_path, rules):
    source = gguf(tmp_path, ggml__pre=rules, ggml__add_bos_token=(ValueType.BOOL, True))
    write_tokenizer(source, tmp_path)
    keys = read_tokenizer(tmp_path, small_models.N_VOCAB)
    assert keys["tokenizer.ggml.pre"] == (ValueType.STRING, rules)
    ours = tokenizers.from_gguf(source)
    back = tokenizers.from_metadata({key: value for key, (_, value) in keys.items()})
    assert [back.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert keys["tokenizer.chat_template"][1] == source.metadata["tokenizer.chat_template"]


def test_the_library_itself_reads_what_is_written(tmp_path):
    import tokenizers as library

    source = gguf(tmp_path, ggml__add_bos_token=(ValueType.BOOL, True))
    write_tokenizer(source, tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = tokenizers.from_gguf(source)
    assert [tuple(theirs.encode(text).ids) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_rows_that_no_token_stands_for_get_names(tmp_path):
    write_tokenizer(gguf(tmp_path), tmp_path)
    keys = read_tokenizer(tmp_path, small_models.N_VOCAB + 3)
    tokens = list(keys["tokenizer.ggml.tokens"][1])
    assert tokens[-3:] == [b"[PAD270]", b"[PAD271]", b"[PAD272]"]
    assert keys["tokenizer.ggml.token_type"][1].dtype == np.int32
    assert len(keys["tokenizer.ggml.token_type"][1]) == len(tokens) == small_models.N_VOCAB + 3


def test_a_folder_without_one_has_no_keys(tmp_path):
    assert read_tokenizer(tmp_path, 10) == {}


def test_a_damaged_one(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {')
    with pytest.raises(TokenizerError, match="JSON"):
        read_tokenizer(tmp_path, 10)


def test_sentencepiece_has_no_merges_to_write(tmp_path):
    path = tmp_path / "spm.gguf"
    write(path, {"general.architecture": "llama", **small_models.vocabulary("llama")}, [])
    with pytest.raises(TokenizerError, match="no merges"):
        write_tokenizer(read(path), tmp_path)


def test_special_tokens_keep_their_roles(tmp_path):
    write_tokenizer(gguf(tmp_path), tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (written["bos_token"], written["eos_token"]) == ("<|268|>", "<|269|>")


def there_and_back(source, folder):
    """Notices of the writing, the tokenizer of the GGUF, and what is read again."""
    notices = write_tokenizer(source, folder)
    return notices, tokenizers.from_gguf(source), tokenizer_files.read(folder / "tokenizer.json").tokenizer


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_the_tokens_around_a_text_are_kept_for_us_and_for_the_library(tmp_path, bos, eos):
    import tokenizers as library

    flags = {"ggml__add_bos_token": (ValueType.BOOL, bos), "ggml__add_eos_token": (ValueType.BOOL, eos)}
    notices, ours, again = there_and_back(gguf(tmp_path, **flags), tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text) == tuple(theirs.encode(text).ids)
    assert len(ours.encode("the")) == 1 + bos + eos
    assert notices == ()


def test_every_token_that_ends_an_answer_is_listed_and_read_again(tmp_path):
    ends = {"ggml__eot_token_id": 65, "ggml__eom_token_id": 260}
    notices, ours, again = there_and_back(gguf(tmp_path, **ends), tmp_path)
    assert ours.end_ids == again.end_ids == {269, 65, 260}
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [269, 65, 260]
    assert notices == ()


@pytest.mark.parametrize(
    ("listed", "ends", "told"),
    [(65, {269, 65}, ""), ([269, 1, 2, 3, 999], {269, 1, 2}, "ids 3, 999"), (None, {269}, ""), ([], {269}, "")],
)
def test_ends_that_a_checkpoint_lists(tmp_path, listed, ends, told):
    write_tokenizer(gguf(tmp_path), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    found = tokenizer_files.read(tmp_path)
    assert found.tokenizer.end_ids == ends
    assert bool(found.notices) == bool(told)
    assert told in " ".join(found.notices)


@pytest.mark.parametrize("listed", ["</s>", [True], [-1], {}, 1.5])
def test_ends_that_are_no_ids(tmp_path, listed):
    write_tokenizer(gguf(tmp_path), tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    with pytest.raises(TokenizerError, match="eos_token_id is") as caught:
        tokenizer_files.read(tmp_path)
    assert caught.value.where == str(tmp_path / "generation_config.json")


def typed(**changes):
    """The vocabulary with tokens of other types or texts: `t5=(TEXT, TYPE)`."""
    keys = small_models.vocabulary()
    tokens, types = list(keys["tokenizer.ggml.tokens"]), keys["tokenizer.ggml.token_type"].copy()
    for name, (text, type_) in changes.items():
        i = int(name[1:])
        tokens[i], types[i] = tokens[i] if text is None else text, type_
    return {"ggml__tokens": tokens, "ggml__token_type": types}


def test_an_unknown_token_is_matched_and_not_spelled(tmp_path):
    source = gguf(tmp_path, **typed(t260=("<unk>", TokenType.UNKNOWN)))
    notices, ours, again = there_and_back(source, tmp_path)
    assert ours.encode("a<unk>the") == again.encode("a<unk>the")
    assert ours.token_bytes(260) == again.token_bytes(260) == b""
    assert again.is_special(260)
    assert notices == ()


def test_rows_without_a_token_stay_so(tmp_path):
    source = gguf(tmp_path, **typed(t259=("[PAD259]", TokenType.UNUSED), t267=("[PAD267]", TokenType.UNUSED)))
    notices, ours, again = there_and_back(source, tmp_path)
    assert notices == ()
    assert again.vocabulary.types == ours.vocabulary.types
    assert again.vocabulary.tokens == ours.vocabulary.tokens
    assert "[PAD267]" not in (tmp_path / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("i", "text", "type_"),
    [
        (258, None, TokenType.UNUSED),  # which a merge makes
        (258, None, TokenType.UNDEFINED),
        (262, "<never>", TokenType.UNUSED),
        (262, "<0x41>", TokenType.BYTE),
    ],
)
def test_a_token_that_these_files_have_no_word_for_is_told_and_changes_no_id(tmp_path, i, text, type_):
    notices, ours, again = there_and_back(gguf(tmp_path, **typed(**{f"t{i}": (text, type_)})), tmp_path)
    assert [ours.encode(text) for text in TEXTS] == [again.encode(text) for text in TEXTS]
    assert ours.token_bytes(i) != again.token_bytes(i)
    assert len(notices) == 1
    assert f"cannot say what 1 tokens are, such as {ours.token_text(i)!r} (id {i}, " in notices[0]


def test_pieces_that_are_no_text_do_not_become_one(tmp_path):
    source = gguf(tmp_path, **typed(t260=(b"\xff\xfe", TokenType.NORMAL), t261=(b"\xfe", TokenType.NORMAL)))
    notices, ours, again = there_and_back(source, tmp_path)
    assert [ours.encode(text) for text in (*TEXTS, "\ufffd")] == [again.encode(text) for text in (*TEXTS, "\ufffd")]
    assert "cannot say what 2 tokens are" in notices[0]
    assert "�" not in (tmp_path / "tokenizer.json").read_text()


def test_white_space_that_only_some_readers_swallow_is_told(tmp_path):
    keys = small_models.vocabulary() | {"general.architecture": "llama", "general.name": "Phi-3 mini"}
    write(tmp_path / "t.gguf", keys, [])
    notices = write_tokenizer(read(tmp_path / "t.gguf"), tmp_path)
    assert any("swallow the white space after them" in notice for notice in notices)
    assert '"rstrip": true' in (tmp_path / "tokenizer.json").read_text()


def test_an_end_that_the_files_do_not_name_is_told(tmp_path):
    changes = typed(t260=("</s>", TokenType.CONTROL))
    keys = small_models.vocabulary() | {f"tokenizer.{k.replace('__', '.')}": v for k, v in changes.items()}
    del keys["tokenizer.ggml.eos_token_id"]
    write(tmp_path / "t.gguf", {"general.architecture": "llama", **keys}, [])
    notices = write_tokenizer(read(tmp_path / "t.gguf"), tmp_path)
    assert notices == ("the tokenizer declares no eos token; readers of the checkpoint take id 260",)


def test_what_would_give_other_ids_is_not_left(tmp_path, monkeypatch):
    source = gguf(tmp_path)
    read_again = hf_tokenizer.read_tokenizer

    def without_a_merge(folder, n_vocab):
        keys = read_again(folder, n_vocab)
        type_, merges = keys["tokenizer.ggml.merges"]
        return keys | {"tokenizer.ggml.merges": (type_, list(merges)[1:])}

    monkeypatch.setattr(hf_tokenizer, "read_tokenizer", without_a_merge)
    with pytest.raises(TokenizerError, match="cannot hold it: its merges would be others") as caught:
        write_tokenizer(source, tmp_path)
    assert caught.value.where == str(source.path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.gguf"]


@given(st.lists(st.sampled_from(list(TokenType)), min_size=9, max_size=9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_the_types_are_ids_are_kept_or_nothing_is_written(tmp_path_factory, types, eos):
    folder = tmp_path_factory.mktemp("t")
    changes = typed(**{f"t{i}": (None, type_) for i, type_ in enumerate(types, start=259)})
    source = gguf(folder, **changes, ggml__add_eos_token=(ValueType.BOOL, eos))
    _, ours, again = there_and_back(source, folder)
    for text in (*TEXTS, *(f"x<|{i}|> y" for i in range(259, 268))):
        assert ours.encode(text) == again.encode(text)
        assert ours.encode(text, parse_special=False) == again.encode(text, parse_special=False)
