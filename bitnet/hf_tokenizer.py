"""The tokenizer beside a checkpoint, told in GGUF's `tokenizer.*` keys, and a GGUF's written as `tokenizer.json`.

Reading is `tokenizer_files`'s work; here its keys get the types of a GGUF, and names for the rows of the embedding that
no token stands for.
"""

from __future__ import annotations

import json
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np

from bitnet import tokenizer_files
from bitnet.errors import TokenizerError
from bitnet.gguf import GGUF
from bitnet.gguf_types import StringArray, ValueType
from bitnet.pretokenizers import IGNORE_MERGES, build, rules_of
from bitnet.vocabulary import TokenType, read_vocabulary

Keys = dict[str, tuple[ValueType, Any]]

_FILE = "tokenizer.json"
_TOKENS, _TYPES, _SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))


def read_tokenizer(folder: Path, n_vocab: int) -> Keys:
    """The `tokenizer.*` keys of a checkpoint; none where no tokenizer lies in its folder.

    Args:
        folder: The checkpoint.
        n_vocab: Rows of its embedding; a shorter vocabulary is filled up.

    Raises:
        TokenizerError: The tokenizer is damaged, or of a kind that no BitNet model uses.
        ResourceLimitError: It is larger than any tokenizer.
    """
    path = tokenizer_files.in_folder(folder)
    if path is None:
        return {}
    found = tokenizer_files.read(path)
    plain = dict(found.metadata)
    missing = n_vocab - len(plain[_TOKENS])
    if missing > 0:
        first = len(plain[_TOKENS])
        plain[_TOKENS] = [*plain[_TOKENS], *(f"[PAD{first + i}]" for i in range(missing))]
        plain[_TYPES] = np.concatenate([plain[_TYPES], np.full(missing, TokenType.UNUSED)]).astype(np.int32)
        if _SCORES in plain:
            plain[_SCORES] = np.concatenate([plain[_SCORES], np.zeros(missing)]).astype(np.float32)
    if found.chat_template is not None:
        plain["tokenizer.chat_template"] = found.chat_template
    return {key: _typed(value) for key, value in plain.items()}


def _typed(value: Any) -> tuple[ValueType, Any]:  # noqa: ANN401  # a value of GGUF
    """A value with the type it has in a GGUF."""
    if isinstance(value, bool):
        return ValueType.BOOL, value
    if isinstance(value, int):
        return ValueType.UINT32, value
    if isinstance(value, str):
        return ValueType.STRING, value
    return ValueType.ARRAY, value if isinstance(value, (np.ndarray, StringArray)) else StringArray.of(value)


def write_tokenizer(source: GGUF, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` from the keys of a GGUF.

    Raises:
        TokenizerError: It has no usable tokenizer, or one that is not byte-level BPE.
    """
    import tokenizers as library
    from tokenizers import decoders, models, processors

    where = fspath(source.path)
    v = read_vocabulary(source.metadata, where=where)
    if v.kind != "bpe":
        raise TokenizerError("a SentencePiece vocabulary has no merges to write", where=where)
    rules = rules_of(v.pre, where=where)
    texts = [piece.decode("utf-8", "replace") for piece in v.tokens]
    ids = {text: i for i, text in enumerate(texts)}
    made = library.Tokenizer(models.BPE(ids, list(v.merges), ignore_merges=rules in IGNORE_MERGES))
    made.pre_tokenizer = build(rules, as_published=True)
    made.decoder = decoders.ByteLevel()
    for kind, add in (
        (TokenType.CONTROL, made.add_special_tokens),
        (TokenType.USER_DEFINED, made.add_tokens),
    ):
        found = [texts[i] for i, type_ in enumerate(v.types) if type_ is kind]
        add([library.AddedToken(text, normalized=False, special=kind is TokenType.CONTROL) for text in found])
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, token in (("bos", v.bos_id), ("eos", v.eos_id)):
        if token is not None:
            settings[f"{role}_token"] = texts[token]
    if v.add_bos and v.bos_id is not None:
        bos = texts[v.bos_id]
        made.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, v.bos_id)]
        )
    template = source.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    made.save(fspath(folder / _FILE))
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
