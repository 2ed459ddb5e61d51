"""Hugging Face's `tokenizer.json` as `tokenizer.ggml.*` keys.

The file describes a pipeline: normaliser, pre-tokenizer, model, post-processor. Of the pipelines that can be
written down, BitNet models use two: byte-level byte pairs behind one of the known splitting rules, and SentencePiece
spelled as byte pairs with byte fallback. Anything else is refused by name, because ids that are nearly right are
the kind of error nobody notices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitnet.errors import TokenizerError
from bitnet.pretokenizers import IGNORE_MERGES, PATTERNS
from bitnet.tokenizer_files import Companions, damaged, parse_json
from bitnet.tokenizer_spm import SPACE_MARK
from bitnet.vocabulary import TokenType

MAX_VOCABULARY = 1 << 20  # ids; four times the largest published vocabulary

_SURROGATE = re.compile("[\ud800-\udfff]")
_LLAMA_3, _QWEN_2, _GPT_2 = (PATTERNS[name][0] for name in ("llama-bpe", "qwen2", "gpt-2"))
_CONTRACTION = _LLAMA_3[: _LLAMA_3.index("|[^")]
_SPELLINGS = (_CONTRACTION, "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:[sdmt]|ll|ve|re)", "'(?i:[sdmt]|ll|ve|re)")
_FULL_COVER = {
    spelling + pattern[len(_CONTRACTION) :]: name
    for pattern, name in ((_LLAMA_3, "llama-bpe"), (_QWEN_2, "qwen2"))
    for spelling in _SPELLINGS
} | {_GPT_2: "gpt-2"}
"""Expressions that match every character of any text, by the rules they stand for."""


def parse(raw: bytes, beside: Companions, *, where: str) -> tuple[dict[str, Any], list[str]]:
    """Keys and notices of a `tokenizer.json`.

    Raises:
        TokenizerError: It is damaged, or describes a pipeline that no BitNet model uses.
    """
    file = _File(parse_json(raw, where=where), where)
    model = file.object("model")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise TokenizerError(
            f"model.type is {kind!r}, which is not supported",
            where=where,
            remedy="BitNet models use byte pairs (BPE); convert the tokenizer, or use the one in the model's GGUF",
        )
    pieces = _pieces(file, model, beside)
    merges = _merges(file, model)
    steps = _steps(file.content.get("pre_tokenizer"))
    notices = _not_done(file, model)
    if any(step["type"] == "ByteLevel" for step in steps):
        keys = _byte_level(file, model, steps, pieces, merges, notices)
    else:
        keys = _sentence_pieces(file, model, steps, pieces, merges)
    return keys | _ends(file, beside, pieces, notices), notices


class _File:
    """The JSON, with errors that name the field."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = content
        self.where = where

    def error(self, what: str) -> TokenizerError:
        return damaged(what, where=self.where)

    def unknown(self, what: str) -> TokenizerError:
        return TokenizerError(
            f"{what}, whose rules are not known",
            where=self.where,
            remedy="use the tokenizer in the model's GGUF, or one of a BitNet, Llama 3, Falcon or Qwen 2 model",
        )

    def untold(self, what: str) -> TokenizerError:
        return TokenizerError(
            f"{what}; there are no keys of a GGUF that say so",
            where=self.where,
            remedy="change that in the tokenizer's files, or use the tokenizer in the model's GGUF",
        )

    def object(self, name: str) -> Mapping[str, Any]:
        value = self.content.get(name)
        if not isinstance(value, dict):
            raise self.error(f"{name} is not an object")
        return value

    def added(self) -> list[tuple[int, str, bool]]:
        """Id, text and whether it is a control token, of each added token."""
        listed = self.content.get("added_tokens") or []
        found: list[tuple[int, str, bool]] = []
        for token in listed if isinstance(listed, list) else [None]:
            if (
                not isinstance(token, dict)
                or type(token.get("id")) is not int
                or not isinstance(token.get("content"), str)
                or not token["content"]
            ):
                raise self.error(f"added_tokens[{len(found)}] is not a token with an id")
            found.append((token["id"], token["content"], bool(token.get("special"))))
        return found


class _Pieces:
    """Texts and types by id, and ids by text."""

    def __init__(self, texts: list[str], types: list[int], ids: Mapping[str, int]) -> None:
        self.texts = texts
        self.types = types
        self.ids = ids

    def keys(self) -> dict[str, Any]:
        return {
            "tokenizer.ggml.tokens": self.texts,
            "tokenizer.ggml.token_type": np.array(self.types, np.int32),
        }


def _pieces(file: _File, model: Mapping[str, Any], beside: Companions) -> _Pieces:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise file.error("model.vocab is not an object of tokens and ids")
    if not all(type(i) is int and i >= 0 for i in vocabulary.values()):
        raise file.error("model.vocab holds an id that is not a number")
    added = {i: (text, special) for i, text, special in file.added()}
    for i, token in beside.added.items():
        added.setdefault(i, token)
    texts = {i: text for text, i in vocabulary.items()}
    if len(texts) != len(vocabulary):
        twice = next(text for text, i in vocabulary.items() if texts[i] != text)
        raise file.error(f"model.vocab gives {twice!r} and {texts[vocabulary[twice]]!r} one id")
    for i, (text, _) in added.items():
        if texts.setdefault(i, text) != text:
            raise file.error(f"id {i} is {texts[i]!r} in model.vocab and {text!r} among the added tokens")
    n_vocab = max(texts) + 1
    if min(texts) < 0 or n_vocab > MAX_VOCABULARY:
        raise file.error(f"ids go from {min(texts)} to {n_vocab - 1}; at most {MAX_VOCABULARY} are accepted")
    types = [int(TokenType.UNUSED)] * n_vocab
    for i in vocabulary.values():
        types[i] = TokenType.NORMAL
    for i, (_, special) in added.items():
        types[i] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    if any(_SURROGATE.search(text) for text in texts.values()):
        raise file.error("a token holds a lone surrogate, which is no character")
    filled = [texts.get(i) or f"[PAD{i}]" for i in range(n_vocab)]
    return _Pieces(filled, types, {text: i for i, text in enumerate(filled)})


def _merges(file: _File, model: Mapping[str, Any]) -> list[str]:
    """Merges as `first second`, whichever way they are written."""
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise file.error("model.merges is not a list")
    merges = []
    for i, merge in enumerate(listed):
        parts = merge if isinstance(merge, list) else merge.split(" ") if isinstance(merge, str) else []
        if len(parts) != 2 or not all(isinstance(part, str) and part and " " not in part for part in parts):
            raise file.error(f"model.merges[{i}] is {merge!r}, which is not two parts")
        merges.append(f"{parts[0]} {parts[1]}")
    return merges


def _steps(step: object) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, in order."""
    if not isinstance(step, dict):
        return []
    if step.get("type") != "Sequence":
        return [{"type": "", **step}]
    inner = step.get("pretokenizers") or step.get("normalizers")
    return [
        {"type": "", **part} if isinstance(part, dict) else {"type": repr(part)[:50]}
        for part in (inner if isinstance(inner, list) else [])
    ]


def _byte_level(
    file: _File,
    model: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    pieces: _Pieces,
    merges: list[str],
    notices: list[str],
) -> dict[str, Any]:
    rules = _rules(steps)
    if rules is None:
        spelled = ", ".join(_spelled(step) for step in steps)
        raise file.unknown(f"the pre-tokenizer is {spelled}")
    if bool(model.get("ignore_merges")) != (rules in IGNORE_MERGES):
        notices.append(
            f"ignore_merges is {bool(model.get('ignore_merges'))}, unlike other {rules} tokenizers; "
            "words that are tokens are read as those rules do"
        )
    normalisers = [str(step["type"]) for step in _steps(file.content.get("normalizer"))]
    if normalisers:
        notices.append(f"the normaliser ({', '.join(normalisers)}) is not applied, as in llama.cpp")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rules,
        "tokenizer.ggml.merges": merges,
        **pieces.keys(),
    }


def _rules(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The rule set that the steps of a byte-level pre-tokenizer stand for."""
    *before, last = steps
    if any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in steps):
        return None
    by_itself = last.get("type") == "ByteLevel" and last.get("use_regex", True)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "gpt-2" if by_itself else None
    if kinds == ["Digits", "ByteLevel"] and by_itself and before[0].get("individual_digits"):
        return "starcoder"
    if kinds == ["Split", "ByteLevel"] and not by_itself:
        behaviour = str(before[0].get("behavior")).lower(), bool(before[0].get("invert"))
        if behaviour in (("isolated", False), ("removed", True)):
            return _FULL_COVER.get(_expression(before[0]))
    if not by_itself and kinds == ["Split"] * len(before) + ["ByteLevel"]:
        isolated = all(str(s.get("behavior")).lower() == "isolated" and not s.get("invert") for s in before)
        spelled = tuple(_expression(s) for s in before)
        return next((name for name, patterns in PATTERNS.items() if isolated and patterns == spelled), None)
    if kinds == ["Punctuation", "ByteLevel", "Digits", "Split"] and steps[1].get("use_regex", True):
        contiguous = str(steps[0].get("behavior")).lower() == "contiguous"
        triples = _expression(last) == "[0-9][0-9][0-9]" and not last.get("invert")
        if contiguous and triples and not steps[2].get("individual_digits"):
            return "falcon"
    return None


def _expression(split: Mapping[str, Any]) -> str:
    pattern = split.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else ""


def _spelled(step: Mapping[str, Any]) -> str:
    return f"Split({_expression(step)[:200]!r})" if step["type"] == "Split" else str(step["type"])


def _sentence_pieces(
    file: _File, model: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], pieces: _Pieces, merges: list[str]
) -> dict[str, Any]:
    """SentencePiece written as merges: a piece scores as well as the first merge that makes it."""
    normalisers = _steps(file.content.get("normalizer"))
    marked = [*normalisers, *steps]
    if not model.get("byte_fallback") or not all(
        step["type"] in ("Prepend", "Replace", "Metaspace") for step in marked
    ):
        spelled = ", ".join(_spelled(step) for step in marked) or "absent"
        raise file.unknown(f"the pre-tokenizer is {spelled}")
    prefix = any(step["type"] == "Prepend" and step.get("prepend") == SPACE_MARK for step in normalisers)
    for step in steps:
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        prefix = prefix or scheme in ("always", "first")
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    scores = [-float(rank.get(text, len(merges) + i)) for i, text in enumerate(pieces.texts)]
    for byte in range(256):
        at = pieces.ids.get(f"<0x{byte:02X}>")
        if at is not None:
            pieces.types[at] = TokenType.BYTE
    unknown = pieces.ids.get(str(model.get("unk_token")))
    if unknown is not None:
        pieces.types[unknown] = TokenType.UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.add_space_prefix": prefix,
        **pieces.keys(),
    }


def _ends(file: _File, beside: Companions, pieces: _Pieces, notices: list[str]) -> dict[str, Any]:
    """The tokens that begin and end a text: from the files beside, else from the post-processor."""
    first, last = _template_ends(file, pieces)
    for role, put, named, flag in (
        ("bos", first, beside.bos, beside.add_bos),
        ("eos", last, beside.eos, beside.add_eos),
    ):
        if put is not None and named in pieces.ids and named != put and flag is not False:
            raise file.untold(f"the post-processor adds {put!r}, but the {role} token beside is {named!r}")
    keys: dict[str, Any] = {
        "tokenizer.ggml.add_bos_token": first is not None if beside.add_bos is None else beside.add_bos,
        "tokenizer.ggml.add_eos_token": last is not None if beside.add_eos is None else beside.add_eos,
    }
    for role, text, known in (
        ("bos", beside.bos or first, ("<|begin_of_text|>", "<s>")),
        ("eos", beside.eos or last, ("<|end_of_text|>", "</s>", "<|endoftext|>")),
    ):
        key = f"tokenizer.ggml.{role}_token_id"
        if text is not None:
            if text not in pieces.ids:
                raise file.error(f"the {role} token is {text!r}, which the vocabulary lacks")
            keys[key] = pieces.ids[text]
        elif found := next((name for name in known if name in pieces.ids), None):
            keys[key] = pieces.ids[found]
            notices.append(f"no file names the {role} token; {found} is taken, by its text")
    if "tokenizer.ggml.bos_token_id" not in keys and beside.add_bos is None:
        keys["tokenizer.ggml.add_bos_token"] = False
    return keys


def _template_ends(file: _File, pieces: _Pieces) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts before and after a text, one each at most."""
    processor = file.content.get("post_processor")
    if processor is None:
        return None, None
    kind = processor.get("type") if isinstance(processor, dict) else None
    parts = processor.get("processors") if kind == "Sequence" else [processor]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise file.error("post_processor is not an object")
    templates = [part for part in parts if part.get("type") == "TemplateProcessing"]
    strange = [part for part in parts if part.get("type") not in ("ByteLevel", "TemplateProcessing")]
    if strange or len(templates) > 1:
        spelled = ", ".join(str(part.get("type")) for part in parts)
        raise file.unknown(f"the post-processor is {spelled}")
    return _around(file, pieces, templates[0]) if templates else (None, None)


def _around(file: _File, pieces: _Pieces, template: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What a template has around its one text."""
    single = template.get("single")
    if not isinstance(single, list) or not all(isinstance(entry, dict) for entry in single):
        raise file.error("the single template of the post-processor is not a list of tokens and a text")
    texts = [i for i, entry in enumerate(single) if "Sequence" in entry]
    if len(texts) != 1:
        raise file.error(f"the single template of the post-processor has {len(texts)} texts, not one")
    before, after = (
        [_put(file, pieces, template, entry) for entry in part] for part in (single[: texts[0]], single[texts[0] + 1 :])
    )
    for where, found in (("before", before), ("after", after)):
        if len(found) > 1:
            raise file.untold(f"the post-processor puts {len(found)} tokens {where} a text ({', '.join(found)})")
    return next(iter(before), None), next(iter(after), None)


def _put(file: _File, pieces: _Pieces, template: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The token that an entry of a template stands for: its name is a key of a table that has the ids."""
    special, table = entry.get("SpecialToken"), template.get("special_tokens")
    name = special.get("id") if isinstance(special, dict) else None
    listed = table.get(name) if isinstance(table, dict) and isinstance(name, str) else None
    ids = listed.get("ids") if isinstance(listed, dict) else None
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < len(pieces.texts) for i in ids):
        raise file.error(f"the post-processor puts {name!r}, for which it has no ids of the vocabulary")
    if len(ids) > 1:
        raise file.untold(f"the post-processor puts {len(ids)} tokens for {name!r}")
    return pieces.texts[ids[0]]


def _not_done(file: _File, model: Mapping[str, Any]) -> list[str]:
    """What Hugging Face does beyond these rules; what changes words is refused, what is of batches or training is told.

    Raises:
        TokenizerError: The model marks the ends or the insides of words.
    """
    for field in ("end_of_word_suffix", "continuing_subword_prefix"):
        if model.get(field):
            raise file.unknown(f"model.{field} is {model[field]!r}")
    notices = []
    if model.get("dropout"):
        notices.append(f"model.dropout is {model['dropout']}, for training; no merge is left out here")
    for field, what in (("truncation", "cut"), ("padding", "filled up")):
        if file.content.get(field) is not None:
            notices.append(f"{field} is set in the file; here no text is {what}")
    listed = [token for token in file.content.get("added_tokens") or [] if isinstance(token, dict)]
    for flags, what, instead in (
        (("lstrip", "rstrip"), "swallow white space", "it is kept"),
        (("single_word",), "are read as words of their own alone", "they are read everywhere"),
    ):
        found = [token.get("content") for token in listed if any(token.get(flag) for flag in flags)]
        if found:
            notices.append(
                f"{len(found)} added tokens, such as {found[0]!r}, {what} in Hugging Face's reading; "
                f"here {instead}, as in llama.cpp"
            )
    return notices
