"""Which splitting rules a byte-pair vocabulary was trained with, when the file does not say.

Merging happens inside the words that the rules cut, so no token reaches over a cut. A rule set that would cut many
of the tokens is therefore not the one, and of those that cut none, the one whose finest habits the vocabulary follows
is: no token of two digits in a hundred thousand is no accident. A small vocabulary shows little of this, which is
said. What is found is an assumption and is reported as one, with its evidence; the file's own word always wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitnet.pretokenizers import BYTE_SYMBOLS, LLAMA_3_MARKERS, build

LLAMA_3_TOKENS, LLAMA_3_MERGES = 128_256, 280_147
"""Sizes of Llama 3's tokenizer, which BitNet-b1.58-2B-4T shares."""

_SAMPLE = 3_000  # tokens looked at, spread evenly: half a second, and a wrong rule set cuts twenty of them or more
_MAX_CUT = 0.005  # of the tokens: stray tokens that were added by hand, and context that a token alone lacks
_ENOUGH = 1_000  # tokens; fewer leave whole kinds of words unseen
#: Rule sets by what they forbid, finest first: single digits; digits in threes with punctuation apart; and so on.
_FINEST_FIRST = ("starcoder", "qwen2", "default", "falcon", "llama-bpe", "gpt-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """A rule set and why.

    Attributes:
        pre: Name of the rule set.
        reason: The evidence, as part of a sentence.
    """

    pre: str
    reason: str


def guess(ids: Mapping[bytes, int], n_merges: int, ordinary: Sequence[bytes], *, arch: str) -> Guess:
    """The rule set of a vocabulary whose file names none.

    Args:
        ids: Every piece and its id.
        n_merges: How many merges there are.
        ordinary: Pieces that merging makes, in GPT-2's spelling of bytes.
        arch: The model's architecture, "" if unknown.
    """
    if len(ids) == LLAMA_3_TOKENS and all(marker in ids for marker in LLAMA_3_MARKERS):
        counted = f"{LLAMA_3_TOKENS} tokens, its special tokens"
        if n_merges == LLAMA_3_MERGES:
            counted += f" and {LLAMA_3_MERGES} merges"
        return Guess(pre="llama-bpe", reason=f"the vocabulary is Llama 3's ({counted})")
    if arch.startswith("bitnet"):
        named = Guess(pre="llama-bpe", reason=f"{arch} models use Llama 3's tokenizer")
    elif any(marker in ids for marker in LLAMA_3_MARKERS):
        named = Guess(pre="llama-bpe", reason="the vocabulary has Llama 3's special tokens")
    else:
        named = Guess(pre="default", reason="llama.cpp then uses its default rules")
    texts = _sample(ordinary)
    if len(texts) < _ENOUGH:
        return Guess(pre=named.pre, reason=f"{named.reason} (too few tokens, {len(texts)}, to tell from them)")
    if named.pre != "default" and (share := cut_share(texts, named.pre)) <= _MAX_CUT:
        return Guess(pre=named.pre, reason=f"{named.reason}, and the rules cut {share:.1%} of its tokens")
    shares = {name: cut_share(texts, name) for name in _FINEST_FIRST}
    fitting = [name for name in _FINEST_FIRST if shares[name] <= _MAX_CUT]
    if not fitting:
        least = min(_FINEST_FIRST, key=lambda name: shares[name])
        why = f"{named.reason}; no known rules fit the vocabulary ({least} cut the fewest tokens, {shares[least]:.1%})"
        return Guess(pre=named.pre, reason=why)
    others = ", ".join(f"{name} {shares[name]:.1%}" for name in _FINEST_FIRST if name != fitting[0])
    why = f"of {len(texts)} tokens these rules cut {shares[fitting[0]]:.1%}, others more or the like ({others})"
    return Guess(pre=fitting[0], reason=why)


def cut_share(texts: Sequence[str], rules: str) -> float:
    """Share of texts that a rule set cuts."""
    splitter = build(rules)
    return sum(len(splitter.pre_tokenize_str(text)) > 1 for text in texts) / max(1, len(texts))


def _sample(ordinary: Sequence[bytes]) -> list[str]:
    """Texts of tokens of more than one character, spread evenly over the ids."""
    return [text for piece in ordinary[:: max(1, len(ordinary) // _SAMPLE)] if len(text := _plain(piece)) > 1]


def _plain(piece: bytes) -> str:
    """The text of a token, or "" for a part of a character."""
    try:
        return bytes(BYTE_SYMBOLS[symbol] for symbol in piece.decode()).decode()
    except (KeyError, UnicodeDecodeError):
        return ""
