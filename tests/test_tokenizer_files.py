import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import gguf, tokenizer_files
from bitnet.errors import BitNetError, ResourceLimitError, TokenizerError
from fixtures.texts import battery, probes
from tests import tokenizer_exports as exports

KEYS = probes.metadata("golden:llama-bpe")
SPM = probes.metadata("tiny-llama.i2_s.gguf")


def config(folder, **content):
    return exports.write(folder, "tokenizer_config.json", content)


def test_every_format_of_one_vocabulary_gives_the_same_ids(tmp_path):
    ids = {}
    exports.write(tmp_path, "tokenizer_config.json", exports.tokenizer_config(KEYS))
    for name, content in (("tokenizer.json", exports.tokenizer_json(KEYS)), ("tokenizer.model", exports.ranks(KEYS))):
        found = tokenizer_files.read(exports.write(tmp_path, name, content))
        assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
        ids[found.format] = [found.tokenizer.encode(text) for text in battery.nasty_texts()]
    found = tokenizer_files.read(probes.GOLDEN)
    ids[found.format] = [found.tokenizer.encode(text) for text in battery.nasty_texts()]
    assert ids["tokenizer.json"] == ids["tiktoken"] == ids["gguf"]


def test_the_content_decides_the_format_not_the_name(tmp_path):
    formats = {
        "a.bin": (exports.ranks(KEYS), "tiktoken"),
        "b.bin": (exports.sentencepiece_model(SPM), "sentencepiece"),
        "c.bin": (exports.tokenizer_json(SPM), "tokenizer.json"),
        "d.bin": (probes.GOLDEN.read_bytes(), "gguf"),
    }
    for name, (content, expected) in formats.items():
        if expected == "tiktoken":
            exports.write(tmp_path, "tokenizer_config.json", exports.tokenizer_config(KEYS))
        else:
            (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
        assert tokenizer_files.read(exports.write(tmp_path, name, content)).format == expected


def test_a_folder_stands_for_the_tokenizer_in_it(tmp_path):
    with pytest.raises(TokenizerError, match="cannot be read") as caught:
        tokenizer_files.read(tmp_path)
    assert caught.value.where.endswith("tokenizer.json")
    exports.write(tmp_path, "tokenizer.model", exports.sentencepiece_model(SPM))
    assert tokenizer_files.read(tmp_path).format == "sentencepiece"
    exports.write(tmp_path, "tokenizer.json", exports.tokenizer_json(SPM))
    assert tokenizer_files.read(tmp_path).format == "tokenizer.json"


def test_what_the_config_beside_says(tmp_path):
    config(
        tmp_path,
        bos_token="<s>",
        eos_token={"content": "</s>"},
        add_bos_token=True,
        add_eos_token=None,
        added_tokens_decoder={"7": {"content": "<x>", "special": True}, "8": {"content": "y"}},
        chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
    )
    found = tokenizer_files.read_companions(tmp_path)
    assert (found.bos, found.eos, found.add_bos, found.add_eos) == ("<s>", "</s>", True, None)
    assert found.added == {7: ("<x>", True), 8: ("y", False)}
    assert found.chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("its own file wins")
    assert tokenizer_files.read_companions(tmp_path).chat_template == "its own file wins"


def test_nothing_beside_says_nothing(tmp_path):
    assert tokenizer_files.read_companions(tmp_path) == tokenizer_files.Companions()


DAMAGED = {
    "no JSON": ("{", "not valid JSON"),
    "a key twice": ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
    "a list": ("[]", "not a JSON object"),
    "nested": ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nests too deeply"),
    "no UTF-8": (b'{"a": "\xff"}', "not valid JSON"),
    "a flag of text": ('{"add_bos_token": "yes"}', "add_bos_token is str"),
    "added tokens in a list": ('{"added_tokens_decoder": []}', "added_tokens_decoder is not an object"),
    "an added token without id": ('{"added_tokens_decoder": {"x": {"content": "a"}}}', "added_tokens_decoder['x']"),
    "an added token without text": ('{"added_tokens_decoder": {"1": {}}}', "added_tokens_decoder['1']"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_config_is_refused_by_name(case, tmp_path):
    content, message = DAMAGED[case]
    exports.write(tmp_path, "tokenizer_config.json", content)
    with pytest.raises(TokenizerError) as caught:
        tokenizer_files.read_companions(tmp_path)
    assert message in caught.value.what
    assert caught.value.where.endswith("tokenizer_config.json")


def test_a_template_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="is not UTF-8"):
        tokenizer_files.read_companions(tmp_path)


def test_a_file_larger_than_any_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_files, "MAX_FILE", 100)
    with pytest.raises(ResourceLimitError, match="larger than 100 bytes") as caught:
        tokenizer_files.read(exports.write(tmp_path, "x", b"x" * 101))
    assert caught.value.exit_code == 6


def test_the_digest_of_an_embedded_tokenizer_is_of_its_keys_alone(tmp_path):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    probes.write(first, KEYS)
    probes.write(second, KEYS | {"general.name": "another"})
    digests = {tokenizer_files.embedded_sha256(gguf.read(path).metadata) for path in (first, second)}
    assert len(digests) == 1
    probes.write(second, KEYS | {"tokenizer.ggml.add_bos_token": False})
    assert tokenizer_files.embedded_sha256(gguf.read(second).metadata) not in digests


@given(st.binary(max_size=200) | st.text(max_size=50).map(str.encode) | st.just(json.dumps({"model": {}}).encode()))
@settings(max_examples=100, deadline=None)
def test_any_file_is_read_or_refused(tmp_path_factory, raw):
    path = exports.write(tmp_path_factory.getbasetemp(), "any", raw)
    with pytest.raises(BitNetError):
        tokenizer_files.read(path)
