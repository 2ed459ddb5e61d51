"""Whether a tokenizer belongs to a model.

What makes every id mean something else is an error: more tokens than the embedding has rows, or other ordinary tokens
than the model embeds. Other special ids, splitting rules or merges may be a repair of the model's own, so they are
said and allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitnet.errors import TokenizerError
from bitnet.tokenizer import Tokenizer
from bitnet.vocabulary import TokenType, Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a model says about its tokenizer.

    Attributes:
        where: The model, for messages.
        n_vocab: Rows of the embedding, or None if unknown.
        special_ids: Ids of "bos" and "eos" that the model's configuration gives, where it does.
        embedded: The vocabulary inside the model, or None.
    """

    where: str
    n_vocab: int | None = None
    special_ids: Mapping[str, int] | None = None
    embedded: Vocabulary | None = None


def check(tokenizer: Tokenizer, expected: Expected) -> tuple[str, ...]:
    """Hold a tokenizer against its model.

    Returns:
        Notices about differences that are odd but possible.

    Raises:
        TokenizerError: It belongs to another model.
    """
    notices = []
    if expected.n_vocab is not None and tokenizer.n_vocab > expected.n_vocab:
        raise _unfit(f"the tokenizer has {tokenizer.n_vocab} tokens, the embedding {expected.n_vocab} rows", expected)
    if expected.n_vocab is not None and tokenizer.n_vocab < expected.n_vocab:
        notices.append(f"the embedding has {expected.n_vocab} rows, the tokenizer {tokenizer.n_vocab} tokens")
    special_ids = dict(expected.special_ids or {})
    embedded = expected.embedded
    if embedded is not None and embedded is not tokenizer.vocabulary:
        notices += _against_embedded(tokenizer.vocabulary, embedded, expected)
        special_ids |= {role: i for role, i in (("bos", embedded.bos_id), ("eos", embedded.eos_id)) if i is not None}
    for role, declared in special_ids.items():
        found = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}.get(role)
        if expected.n_vocab is not None and not 0 <= declared < expected.n_vocab:
            raise _unfit(f"the model's {role} id is {declared}, outside its {expected.n_vocab} rows", expected)
        if found != declared:
            notices.append(f"the model's {role} id is {declared}, the tokenizer's {found}; the tokenizer's is used")
    return tuple(notices)


def _against_embedded(found: Vocabulary, embedded: Vocabulary, expected: Expected) -> list[str]:
    if found.kind != embedded.kind:
        raise _unfit(f"the tokenizer is {found.kind}, the one in the model {embedded.kind}", expected)
    notices, renamed = [], 0
    for i, (a, b) in enumerate(zip(found.tokens, embedded.tokens, strict=False)):
        if a == b:
            continue
        if TokenType.NORMAL in (found.types[i], embedded.types[i]):
            ours, theirs = (piece.decode("utf-8", "backslashreplace") for piece in (a, b))
            raise _unfit(f"token {i} is {ours!r}, and the model embeds {theirs!r}", expected)
        renamed += 1
    if renamed:
        notices.append(f"{renamed} special tokens have other texts than in the model")
    if len(found.tokens) != len(embedded.tokens):
        notices.append(f"the tokenizer has {len(found.tokens)} tokens, the model embeds {len(embedded.tokens)}")
    if found.pre != embedded.pre:
        ours, theirs = (f"{v.pre} ({v.pre_source})" for v in (found, embedded))
        notices.append(f"the splitting rules are {ours}, the model's {theirs}")
    if found.merges != embedded.merges:
        notices.append(f"the {len(found.merges)} merges are not the {len(embedded.merges)} in the model")
    return notices


def _unfit(what: str, expected: Expected) -> TokenizerError:
    return TokenizerError(
        what, where=expected.where, remedy="the tokenizer belongs to another model; name the right one"
    )
