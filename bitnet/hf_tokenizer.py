"""The tokenizer beside a checkpoint, told in GGUF's `tokenizer.*` keys, and a GGUF's written as `tokenizer.json`.

Reading is `tokenizer_files`'s work; here its keys get the types of a GGUF, and names for the rows of the embedding that
no token stands for. What is written is read again: a file that gives other ids than its source is not kept, and what
else it cannot say is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as library

from bitnet import tokenizer_files
from bitnet.errors import TokenizerError
from bitnet.gguf import GGUF
from bitnet.gguf_types import StringArray, ValueType
from bitnet.pretokenizers import IGNORE_MERGES, build, rules_of
from bitnet.tokenizer import Tokenizer, from_gguf, from_metadata
from bitnet.vocabulary import MATCHED, SPECIAL, TokenType, Vocabulary

Keys = dict[str, tuple[ValueType, Any]]

_FILE, _CONFIG, _GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
_TOKENS, _TYPES, _SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))


def read_tokenizer(folder: Path, n_vocab: int, notices: list[str] | None = None) -> Keys:
    """The `tokenizer.*` keys of a checkpoint; none where no tokenizer lies in its folder.

    Args:
        folder: The checkpoint.
        n_vocab: Rows of its embedding; a shorter vocabulary is filled up.
        notices: Gets what its user should know about how it was read.

    Raises:
        TokenizerError: The tokenizer is damaged, or of a kind that no BitNet model uses.
        ResourceLimitError: It is larger than any tokenizer.
    """
    path = tokenizer_files.in_folder(folder)
    if path is None:
        return {}
    found = tokenizer_files.read(path)
    if notices is not None:
        notices += found.notices
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


def write_tokenizer(source: GGUF, folder: Path) -> tuple[str, ...]:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` from the keys of a GGUF.

    What was written is read again, and held against its source.

    Returns:
        What these files could not keep, where no id of a text changes by it.

    Raises:
        TokenizerError: It has no usable tokenizer, one that is not byte-level BPE, or one whose ids they cannot keep;
            none of them is left.
    """
    where = fspath(source.path)
    ours = from_gguf(source)
    v = ours.vocabulary
    if v.kind != "bpe":
        raise TokenizerError("a SentencePiece vocabulary has no merges to write", where=where)
    texts = _texts(v, where=where)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    ends: dict[str, Any] = {}
    for role, token in (("bos", v.bos_id), ("eos", v.eos_id)):
        if token is not None:
            settings[f"{role}_token"] = texts[token]
            ends[f"{role}_token_id"] = token
    if v.end_ids:
        ends["eos_token_id"] = sorted(v.end_ids, key=lambda i: (i != v.eos_id, i))
    template = source.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    made = _library_tokenizer(v, texts, where=where)
    try:
        made.save(fspath(folder / _FILE))
        for name, values in ((_CONFIG, settings), (_GENERATION, ends)):
            text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")
        keys = read_tokenizer(folder, len(v.tokens))
        return _not_kept(ours, from_metadata({key: value for key, (_, value) in keys.items()}, where=where), where)
    except TokenizerError as error:
        for name in (_FILE, _CONFIG, _GENERATION):
            (folder / name).unlink(missing_ok=True)
        raise TokenizerError(f"tokenizer.json cannot hold it: {error.what}", where=where) from error


def _library_tokenizer(v: Vocabulary, texts: Mapping[int, str], *, where: str) -> library.Tokenizer:
    rules = rules_of(v.pre, where=where)
    ids = {text: i for i, text in texts.items()}
    made = library.Tokenizer(library.models.BPE(ids, list(v.merges), ignore_merges=rules in IGNORE_MERGES))
    made.pre_tokenizer = build(rules, as_published=True)
    made.decoder = library.decoders.ByteLevel()
    for special, add in ((True, made.add_special_tokens), (False, made.add_tokens)):
        found = [i for i, type_ in enumerate(v.types) if type_ in MATCHED and (type_ in SPECIAL) == special]
        add([library.AddedToken(texts[i], normalized=False, special=special, rstrip=i in v.rstrip) for i in found])
    bos = [(texts[v.bos_id], v.bos_id)] if v.add_bos and v.bos_id is not None else []
    eos = [(texts[v.eos_id], v.eos_id)] if v.add_eos and v.eos_id is not None else []
    if bos or eos:
        first, last = ([text for text, _ in role] for role in (bos, eos))
        made.post_processor = library.processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *first, "$B", *last],
            special_tokens=list(dict.fromkeys(bos + eos)),
        )
    return made


def _text(piece: bytes) -> str | None:
    """A piece as JSON can hold it; None for one that is not UTF-8, which no text is encoded to."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _texts(v: Vocabulary, *, where: str) -> dict[int, str]:
    """The tokens to write, by id: not those that `read_tokenizer` fills up again, nor what JSON cannot hold."""
    texts = {i: text for i, text in enumerate(map(_text, v.tokens)) if text is not None}
    roles = [i for i in (v.bos_id, v.eos_id) if i is not None]
    for i in roles:
        if i not in texts:
            raise TokenizerError(f"token {i} is {v.tokens[i]!r}, which is not UTF-8", where=where)
    kept = {texts[i] for i in roles}.union(*((first, second, first + second) for first, second in v.merges))
    for i, type_ in enumerate(v.types):
        if type_ is TokenType.UNUSED and texts.get(i) == f"[PAD{i}]" and texts[i] not in kept:
            del texts[i]
    return texts


def _matched(v: Vocabulary) -> list[tuple[int, bytes, bool]]:
    """Tokens that are matched in running text, and whether each is special."""
    return [(i, v.tokens[i], type_ in SPECIAL) for i, type_ in enumerate(v.types) if type_ in MATCHED]


def _not_kept(ours: Tokenizer, again: Tokenizer, where: str) -> tuple[str, ...]:
    """What a tokenizer that was written and read again has otherwise; `TokenizerError` where texts get other ids."""
    v, w = ours.vocabulary, again.vocabulary
    same = {
        "pieces": all(w.ids.get(piece) == i for piece, i in v.ids.items() if _text(piece) is not None),
        "matched tokens": _matched(v) == _matched(w),
        "merges": v.merges == w.merges,
        "splitting rules": rules_of(v.pre, where=where) == rules_of(w.pre, where=where),
        "tokens around a text": (v.add_bos and v.bos_id, v.add_eos and v.eos_id)
        == (w.add_bos and w.bos_id, w.add_eos and w.eos_id),
    }
    for what, kept in same.items():
        if not kept:
            raise TokenizerError(f"its {what} would be others", where=where)
    notices = []
    unlike = [i for i in range(len(v.tokens)) if ours.token_bytes(i) != again.token_bytes(i)]
    if unlike:
        first = unlike[0]
        notices.append(
            f"tokenizer.json cannot say what {len(unlike)} tokens are, such as {ours.token_text(first)!r} (id "
            f"{first}, {v.types[first].name}): they decode to other bytes"
        )
    for role, one, other in (("bos", v.bos_id, w.bos_id), ("eos", v.eos_id, w.eos_id)):
        if one != other:
            notices.append(f"the tokenizer declares no {role} token; readers of the checkpoint take id {other}")
    lost = sorted(v.end_ids - w.end_ids)
    if lost:
        notices.append(f"tokens that end an answer only for readers of {_GENERATION}: ids {', '.join(map(str, lost))}")
    if v.rstrip != w.rstrip:
        notices.append(f"{len(v.rstrip)} tokens swallow the white space after them, which Hugging Face alone will read")
    return tuple(notices)
