"""A tokenizer from a GGUF to a checkpoint and back keeps every id."""

import json

import numpy as np
import pytest
import small_models

from bitnet import tokenizer as tokenizers
from bitnet.errors import TokenizerError
from bitnet.gguf import ValueType, read, write
from bitnet.hf_tokenizer import read_tokenizer, write_tokenizer
from bitnet.pretokenizers import PATTERNS

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
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|268|>", "<|269|>")
