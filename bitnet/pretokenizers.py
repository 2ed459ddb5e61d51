"""How byte-pair tokenizers cut text into words before merging: one table from `tokenizer.ggml.pre` to rules.

Each rule set is a list of patterns applied one after the other: a match is cut out, what lies between matches stays
as a piece of its own, and the next pattern works on the pieces. The patterns are written for `tokenizers`' regular
expressions. A wrong rule set makes a model answer from token sequences it never saw in training, so a name that is
not in the table is an error.

Letters, numbers and punctuation are those of Unicode 15.1, which is what llama.cpp knows. The library underneath
follows newer versions; what they added is taken out again, so that ids do not change with the installed release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import tokenizers as hf

from bitnet.errors import TokenizerError

# Letters, numbers and punctuation assigned in Unicode 16, 17 and 18: hexadecimal code points and ranges.
_ADDED_SINCE_15_1 = (
    "558 58B-58C 88F C5C CDC 1B4E-1B4F 1B7F 1C89-1C8A 208F 209D-209F 2E60-2E63 A7CB-A7CF A7D2 A7D4 A7DA-A7DD A7E2 "
    "A7F1 AB6C-AB6D 105C0-105F3 107BB-107BF 10940-10959 10D40-10D65 10D6E-10D85 10EC2-10EC7 10ED0 10ED9-10EEE "
    "11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3-113D5 113D7-113D8 116D0-116E3 11B0A 11BC0-11BE1 "
    "11BF0-11BF9 11DB0-11DDB 11DE0-11DE9 11DF1 1246F 12475-1247F 12550-12686 13460-143FA 16100-1611D 16130-16139 "
    "16D40-16D79 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18CFF 18D09-18D20 18D80-18DF2 "
    "18E00-19191 191A0-191D2 1B123-1B128 1B168 1CCF0-1CCF9 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF "
    "1E5D0-1E5ED 1E5F0-1E5FA 1E5FF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF "
    "2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F "
)

_CONTRACTION_ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"  # (?i:'s) would also match 'ſ
_LETTERS_AND_REST = r"[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _CONTRACTION_ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?" + _LETTERS_AND_REST
_QWEN_2 = _CONTRACTION_ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?" + _LETTERS_AND_REST
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]")

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "llama-bpe": (_LLAMA_3,),
    "gpt-2": (_GPT_2,),
    "default": _DEFAULT,
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT_2, r"[0-9][0-9][0-9]"),
    "qwen2": (_QWEN_2,),
    "starcoder": (r"\p{N}", _GPT_2),
}
"""Rule sets by their canonical name."""

ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum", "mpt", "olmo", "jais", "trillion"), "gpt-2"),
    **dict.fromkeys(("refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), "starcoder"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez"), "qwen2"),
}
"""Other names in use for the same rules."""

ADD_BOS = frozenset({"llama-bpe"})
"""Rule sets whose models get a BOS when the file does not say."""

IGNORE_MERGES = frozenset({"llama-bpe"})
"""Rule sets under which a word that is itself a token is taken whole, whatever the merges would build."""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

BYTE_SYMBOLS: Mapping[str, int] = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(_OTHERS)}
"""GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others for U+0100 and on."""

LLAMA_3_MARKERS = (b"<|begin_of_text|>", b"<|eot_id|>")


def rules_of(name: str, *, where: str) -> str:
    """Canonical name of the rule set behind a declared pre-tokenizer.

    Raises:
        TokenizerError: The name is unknown; the message lists the known ones.
    """
    canonical = ALIASES.get(name, name)
    if canonical in PATTERNS:
        return canonical
    known = ", ".join(sorted({*PATTERNS, *ALIASES}))
    raise TokenizerError(
        f"tokenizer.ggml.pre is {name!r}, whose splitting rules are not known",
        where=where,
        remedy=f"set tokenizer.ggml.pre to the rules the model was trained with; known: {known}",
    )


def build(name: str, *, as_published: bool = False) -> hf.pre_tokenizers.PreTokenizer:
    """The `tokenizers` pre-tokenizer of a canonical name: split, then spell bytes as printable characters.

    Args:
        name: Of the rules.
        as_published: Leave the categories to the Unicode of whoever reads the file, as published tokenizers do.
    """
    patterns = PATTERNS[name] if as_published else [_at_15_1(pattern) for pattern in PATTERNS[name]]
    splits = [hf.pre_tokenizers.Split(hf.Regex(pattern), "isolated") for pattern in patterns]
    byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return hf.pre_tokenizers.Sequence([*splits, byte_level])


def _at_15_1(pattern: str) -> str:
    r"""A pattern whose \p{L}, \p{N} and \p{P} leave out what Unicode added since 15.1."""
    added = "".join("-".join(rf"\x{{{point}}}" for point in points.split("-")) for points in _ADDED_SINCE_15_1.split())
    return re.sub(r"\\p\{[LNP]\}", lambda category: f"[{category[0]}&&[^{added}]]", pattern)
