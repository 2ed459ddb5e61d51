"""Pages of one file: markup, style, data and script inside, nothing fetched, nothing of a receipt ever run.

A receipt may come from a stranger. Its texts are therefore cleaned once (controls, and marks that turn the direction
of writing, become visible), escaped where they enter the markup, and enter the data with every letter that could end
the script element written as an escape. The policy in the page's head allows the one script and the one style sheet
by their hashes, and nothing else: whatever slipped through would not run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from receipts.visible import visible as every_letter

PAGES = Path(__file__).parent / "pages"
#: Texts longer than this are cut: no honest sentence of a receipt comes near it.
MAX_TEXT = 4000
_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
_KEPT = "\n\t"


def render(template: str, *, script: str, title: str, data: object, **context: object) -> str:
    """One page.

    Args:
        template: File in `pages/`, which extends `shell.html`.
        script: File in `pages/`.
        title: Of the window.
        data: JSON types for the script; NaN and infinity become null.
        context: What the template shows.

    Returns:
        The whole page, with texts cleaned by `visible` and escaped.
    """
    style, program = _asset("style.css"), _asset("common.js") + _asset(script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(program)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    shown: dict[str, Any] = clean(context)
    page: str = (
        _environment()
        .get_template(template)
        .render(
            title=visible(title),
            policy=policy,
            # Ours, and hashed above: the only texts that enter unescaped, beside the data with its escapes.
            style=Markup(style),  # noqa: S704  # a file of this package
            program=Markup(program),  # noqa: S704  # likewise
            data=Markup(embed(clean(data))),  # noqa: S704  # `embed` leaves no letter that ends the element
            **shown,
        )
    )
    return page


def embed(data: object) -> str:
    """JSON that can stand inside a script element, whatever texts it holds."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def clean(value: object) -> Any:  # noqa: ANN401  # JSON types, nested
    """JSON types with every text made `visible`, and null for numbers that are not finite."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {visible(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [clean(item) for item in value]
    return value


def visible(text: str) -> str:
    """A text in which nothing is hidden: controls, lone surrogates and direction marks are written as ⟨U+202E⟩.

    Line breaks and tabs stay; a text beyond `MAX_TEXT` ends in an ellipsis.
    """
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "…"
    return every_letter(text, kept=_KEPT)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
