"""Tokenizers in files of their own: every published format becomes the `tokenizer.ggml.*` keys that a GGUF holds.

One vocabulary reader and one encoder therefore serve all of them, and equal vocabularies give equal ids:

- `tokenizer.json` of Hugging Face (`tokenizer_json`);
- `tokenizer.model` with a rank for each base64 token, as Llama 3 has it, and `.model` of SentencePiece
  (`tokenizer_model`); the content decides which, not the name;
- a GGUF.

What such a file leaves to its neighbours (which tokens begin and end a text, the chat template) is read from
`tokenizer_config.json`, `chat_template.jinja` and `generation_config.json` beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.errors import ResourceLimitError, TokenizerError
from bitnet.gguf_types import StringArray
from bitnet.tokenizer import Tokenizer, from_metadata

MAX_FILE = 1 << 26  # bytes; the largest published tokenizer.json has half of it
MAX_CONFIG = 1 << 23  # bytes of a file beside it; it may list some thousand added tokens
NAMES = ("tokenizer.json", "tokenizer.model")
"""Files that hold a whole vocabulary, in the order they are looked for."""
COMPANIONS = ("tokenizer_config.json", "chat_template.jinja")
"""Files that complete them."""

_GENERATION = "generation_config.json"  # of the model; its eos_token_id lists every token that ends an answer
_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")  # GGUF's room for ends beside the EOS
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """A tokenizer read from a file.

    Attributes:
        path: The file.
        sha256: Digest of its bytes.
        format: "tokenizer.json", "tiktoken", "sentencepiece" or "gguf".
        tokenizer: The tokenizer.
        metadata: Its `tokenizer.ggml.*` keys.
        chat_template: Jinja source that the file or its neighbours give, or None.
        notices: What its user should know about how it was read.
    """

    path: Path
    sha256: str
    format: str
    tokenizer: Tokenizer
    metadata: Mapping[str, Any]
    chat_template: str | None
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What the files beside a vocabulary say.

    Attributes:
        bos: Text of the token that begins a sequence, or None.
        eos: Text of the token that ends one, or None.
        add_bos: Whether encoding prepends `bos`; None if nothing is said.
        add_eos: Whether encoding appends `eos`; None if nothing is said.
        added: Tokens outside the vocabulary proper: id → (text, whether it is a control token).
        chat_template: Jinja source, or None.
        end_ids: Tokens that end an answer, whatever else ends it.
    """

    bos: str | None = None
    eos: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    added: Mapping[int, tuple[str, bool]] = field(default_factory=dict)
    chat_template: str | None = None
    end_ids: tuple[int, ...] = ()


def read(path: str | PathLike[str]) -> TokenizerFile:
    """Read a tokenizer file of any format; a folder stands for the tokenizer in it.

    Raises:
        TokenizerError: There is none, it is damaged, or it is of a kind that no BitNet model uses.
        ResourceLimitError: It is larger than any tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = in_folder(path) or path / NAMES[0]
    if _begins(path, _GGUF_MAGIC):
        return _from_gguf(path)
    from bitnet import tokenizer_json, tokenizer_model

    raw = read_bytes(path, MAX_FILE)
    where = str(path)
    beside = read_companions(path.parent)
    if raw[:1] == b"{" or path.suffix == ".json":
        form = "tokenizer.json"
        metadata, notices = tokenizer_json.parse(raw, beside, where=where)
    elif tokenizer_model.is_ranked(raw):
        form = "tiktoken"
        metadata, notices = tokenizer_model.parse_ranked(raw, beside, where=where)
    else:
        form = "sentencepiece"
        metadata, notices = tokenizer_model.parse_sentencepiece(raw, beside, where=where)
    tokenizer = from_metadata(metadata, where=where)
    ends = _further_ends(beside, tokenizer, notices)
    if ends:
        metadata |= ends
        tokenizer = from_metadata(metadata, where=where)
    return TokenizerFile(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        format=form,
        tokenizer=tokenizer,
        metadata=metadata,
        chat_template=beside.chat_template,
        notices=tuple(notices),
    )


def _further_ends(beside: Companions, tokenizer: Tokenizer, notices: list[str]) -> dict[str, int]:
    """Keys for the ends that the model's configuration lists, and the vocabulary alone does not give away."""
    further = [i for i in dict.fromkeys(beside.end_ids) if i not in tokenizer.end_ids]
    known = [i for i in further if i < tokenizer.n_vocab]
    left = [i for i in further if i not in known[: len(_END_KEYS)]]
    if left:
        notices.append(f"{_GENERATION} lists ends that are not taken as such: ids {', '.join(map(str, left))}")
    return dict(zip(_END_KEYS, known, strict=False))


def in_folder(folder: Path) -> Path | None:
    """The tokenizer file of a folder, or None."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file of bounded size.

    Raises:
        TokenizerError: It cannot be read.
        ResourceLimitError: It is larger than the limit.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise TokenizerError(
            f"cannot be read: {error.strerror}", where=path, remedy="name a tokenizer.json, tokenizer.model or GGUF"
        ) from None
    if len(raw) > limit:
        raise ResourceLimitError(
            f"is larger than {limit} bytes", where=path, remedy="this is no tokenizer; name another file"
        )
    return raw


def parse_json(raw: bytes, *, where: str) -> dict[str, Any]:
    """A JSON object whose keys each come once.

    Raises:
        TokenizerError: It is not one.
    """
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        what = "nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise damaged(f"is not valid JSON: {what}", where=where) from None
    if not isinstance(value, dict):
        raise damaged("is not a JSON object", where=where)
    return value


def damaged(what: str, *, where: str) -> TokenizerError:
    """The error of a file that breaks its format."""
    return TokenizerError(what, where=where, remedy="the file is damaged; fetch it again")


def read_companions(folder: Path) -> Companions:
    """What `tokenizer_config.json` and its kin in a folder say; nothing where they are absent.

    Raises:
        TokenizerError: One of them is damaged.
    """
    path = folder / COMPANIONS[0]
    config = parse_json(read_bytes(path, MAX_CONFIG), where=str(path)) if path.is_file() else {}
    template = _template(config.get("chat_template"))
    if (folder / COMPANIONS[1]).is_file():
        try:
            template = read_bytes(folder / COMPANIONS[1], MAX_CONFIG).decode()
        except UnicodeDecodeError:
            raise damaged("is not UTF-8", where=str(folder / COMPANIONS[1])) from None
    return Companions(
        bos=_text(config.get("bos_token")),
        eos=_text(config.get("eos_token")),
        add_bos=_flag(config, "add_bos_token", where=str(path)),
        add_eos=_flag(config, "add_eos_token", where=str(path)),
        added=_added(config.get("added_tokens_decoder", {}), where=str(path)),
        chat_template=template,
        end_ids=_listed_ends(folder / _GENERATION),
    )


def _listed_ends(path: Path) -> tuple[int, ...]:
    found = parse_json(read_bytes(path, MAX_CONFIG), where=str(path)).get("eos_token_id") if path.is_file() else None
    ends = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and i >= 0 for i in ends):
        raise damaged(f"eos_token_id is {found!r}, which is no id and no list of ids", where=str(path))
    return tuple(ends)


def _from_gguf(path: Path) -> TokenizerFile:
    from bitnet import gguf

    file = gguf.read(path)
    template = file.metadata.get("tokenizer.chat_template")
    return TokenizerFile(
        path=path,
        sha256=embedded_sha256(file.metadata),
        format="gguf",
        tokenizer=from_metadata(file.metadata, where=str(path)),
        metadata=file.metadata,
        chat_template=template if isinstance(template, str) and template else None,
        notices=tuple(file.notices),
    )


def embedded_sha256(metadata: Mapping[str, Any]) -> str:
    """Digest of the tokenizer keys of a GGUF: of their names and values, whatever else the file holds."""
    digest = hashlib.sha256()
    for key in sorted(key for key in metadata if key.startswith("tokenizer.")):
        value = metadata[key]
        if isinstance(value, StringArray):  # holds its strings as they are digested here
            digest.update(key.encode() + b"\0" + value.block)
            continue
        item = cache(_item) if getattr(value, "dtype", np.dtype(object)).kind in "iu" else _item  # few token types
        items = [value] if isinstance(value, str | bytes | int | float | bool) else value
        digest.update(key.encode() + b"\0" + b"".join(map(item, items)))
    return digest.hexdigest()


def _item(item: str | bytes | float) -> bytes:
    raw = item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # adds
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _text(value: object) -> str | None:
    """A token's text, given as it is or as the content of an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _template(value: object) -> str | None:
    """A template, or of several named ones the default."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) and value else None


def _flag(config: Mapping[str, Any], key: str, *, where: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise damaged(f"{key} is {type(value).__name__}, not a boolean", where=where)
    return value


def _added(value: object, *, where: str) -> dict[int, tuple[str, bool]]:
    if not isinstance(value, dict):
        raise damaged("added_tokens_decoder is not an object", where=where)
    added = {}
    for key, token in value.items():
        text = _text(token)
        if not key.isdecimal() or len(key) > 9 or text is None:
            raise damaged(f"added_tokens_decoder[{key!r}] is not a token with an id", where=where)
        added[int(key)] = text, bool(isinstance(token, dict) and token.get("special", False))
    return added
