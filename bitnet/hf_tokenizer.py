"""`tokenizer.json` beside a checkpoint, told in GGUF's `tokenizer.*` keys, and the other way.

Byte-level byte-pair tokenizers only (Llama 3, Falcon3, GPT-2 and their kin). The name of the splitting rules is found
by evidence, not by a table of fingerprints: the keys are read back by this engine's own tokenizer under each rule set,
and the one that gives the ids of `tokenizer.json` itself on a text full of edge cases is declared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np

from bitnet import tokenizer as tokenizers
from bitnet.errors import TokenizerError
from bitnet.gguf import GGUF
from bitnet.gguf_types import StringArray, ValueType
from bitnet.pretokenizers import IGNORE_MERGES, PATTERNS, build, rules_of
from bitnet.safetensors_file import read_json
from bitnet.vocabulary import TokenType, read_vocabulary

Keys = dict[str, tuple[ValueType, Any]]

_FILE = "tokenizer.json"
_PROBE = (
    "Hello world, it's 2026! I'LL pay $1234567.89 (or 50%) — naïve café\n\n\tdef f(x): return x**2  # done\r\n"
    "   three spaces; ÄÖÜ ß 東京 привет 🙂🙂 ½ ٣٤ we've they're O'Neil's ''' \u00a0end  \n 12 345 6789   "
)


def read_tokenizer(folder: Path, config: Mapping[str, Any], arch: str) -> Keys:
    """The `tokenizer.*` keys of a checkpoint; none where it has no `tokenizer.json`.

    Args:
        folder: The checkpoint.
        config: Its `config.json`, for the special ids.
        arch: The architecture name, for messages.

    Raises:
        TokenizerError: The tokenizer is damaged, of another kind, or split by rules that this engine does not have.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    import tokenizers as library

    text = path.read_text("utf-8", "replace")
    try:
        theirs = library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower type
        raise TokenizerError(f"is no tokenizer: {error}", where=path, remedy="download it again") from None
    state = read_json(path)
    model = state.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback") or not _is_byte_level(state.get("pre_tokenizer")):
        raise TokenizerError(
            f"is of type {model.get('type')!r}, not byte-level BPE",
            where=path,
            remedy=f"give the tokenizer of {arch} as a GGUF or a SentencePiece file",
        )
    added = {entry["id"]: entry for entry in state.get("added_tokens", [])}
    n_vocab = max(1 + max(theirs.get_vocab().values(), default=0), int(config.get("vocab_size", 0)))
    known = [theirs.id_to_token(i) for i in range(n_vocab)]
    tokens = [f"[PAD{i}]" if token is None else token for i, token in enumerate(known)]  # rows no token stands for
    special = _read_optional(folder / "tokenizer_config.json")
    types = np.array([TokenType.UNUSED if token is None else TokenType.NORMAL for token in known], np.int32)
    for i, entry in added.items():
        types[i] = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
    keys: Keys = {
        "tokenizer.ggml.model": (ValueType.STRING, "gpt2"),
        "tokenizer.ggml.tokens": (ValueType.ARRAY, StringArray.of(tokens)),
        "tokenizer.ggml.token_type": (ValueType.ARRAY, types),
        "tokenizer.ggml.merges": (ValueType.ARRAY, StringArray.of(_merges(model.get("merges", [])))),
    }
    begins = theirs.encode("a").ids
    for role in ("bos", "eos", "unk", "pad"):
        token = _special_id(role, special, config, theirs.token_to_id)
        if token is not None and 0 <= token < n_vocab:
            name = "padding" if role == "pad" else "unknown" if role == "unk" else role
            keys[f"tokenizer.ggml.{name}_token_id"] = (ValueType.UINT32, token)
    bos = keys.get("tokenizer.ggml.bos_token_id", (None, None))[1]
    eos = keys.get("tokenizer.ggml.eos_token_id", (None, None))[1]
    keys["tokenizer.ggml.add_bos_token"] = (ValueType.BOOL, bos is not None and begins[:1] == [bos])
    keys["tokenizer.ggml.add_eos_token"] = (ValueType.BOOL, eos is not None and len(begins) > 1 and begins[-1] == eos)
    template = _template(folder, special)
    if template is not None:
        keys["tokenizer.chat_template"] = (ValueType.STRING, template)
    wanted = tuple(theirs.encode(_PROBE, add_special_tokens=False).ids)
    return {"tokenizer.ggml.model": keys["tokenizer.ggml.model"], "tokenizer.ggml.pre": _pre(keys, wanted, path)} | keys


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
    made.pre_tokenizer = build(rules)
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


def _pre(keys: Keys, wanted: tuple[int, ...], path: Path) -> tuple[ValueType, str]:
    """The rule set under which our ids are theirs."""
    plain = {key: value for key, (_, value) in keys.items()}
    for name in PATTERNS:
        ours = tokenizers.from_metadata({**plain, "tokenizer.ggml.pre": name}, where=str(path))
        if ours.encode(_PROBE, add_special=False) == wanted:
            return ValueType.STRING, name
    raise TokenizerError(
        "splits text by rules that this engine does not have",
        where=path,
        remedy=f"known are {', '.join(PATTERNS)}; give token ids, or the tokenizer in another form",
    )


def _is_byte_level(pre_tokenizer: object) -> bool:
    if not isinstance(pre_tokenizer, dict):
        return False
    if pre_tokenizer.get("type") == "Sequence":
        return any(_is_byte_level(part) for part in pre_tokenizer.get("pretokenizers", []))
    return pre_tokenizer.get("type") == "ByteLevel"


def _merges(merges: Sequence[Any]) -> list[str]:
    """As `first second`; newer files hold pairs."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _special_id(role: str, special: Mapping[str, Any], config: Mapping[str, Any], find: Any) -> int | None:  # noqa: ANN401  # a bound method of the library
    """The id of a role: by the text that the tokenizer's configuration names, else the model configuration's number."""
    text = special.get(f"{role}_token")
    text = text.get("content") if isinstance(text, dict) else text
    if isinstance(text, str) and (found := find(text)) is not None:
        return int(found)
    number = config.get(f"{role}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _template(folder: Path, special: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8", "replace")
    template = special.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
