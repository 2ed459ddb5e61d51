"""Texts of files as people are shown them: none moves a cursor, hides, turns letters round, or commands a CI system."""

from __future__ import annotations

import re
import unicodedata

#: How a log line commands GitHub's runner, which takes it behind spaces, too, and so wherever a console wraps a text.
_COMMAND = re.compile(
    r":(?=:(?:error|warning|notice|debug|group|endgroup|add-mask|add-matcher|remove-matcher|add-path|echo|set-env"
    r"|set-output|save-state|stop-commands|internal-set-repo-path)\b)|#(?=#\[)",
    re.IGNORECASE,
)


def visible(text: str, *, kept: str = "") -> str:
    """A text in which nothing is hidden: controls, lone surrogates and direction marks are written as ⟨U+202E⟩.

    Args:
        text: Of a receipt, or of what it names.
        kept: Controls that stay: line breaks, where the form of the output takes care of them.
    """
    text = _COMMAND.sub(lambda found: _written(found[0]), text)
    if text.isprintable():
        return text
    return "".join(letter if letter in kept or _shown(letter) else _written(letter) for letter in text)


def _written(letter: str) -> str:
    return f"⟨U+{ord(letter):04X}⟩"


def _shown(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) in ("Zs", "Co")
