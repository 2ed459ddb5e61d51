"""Small tables for notebooks: everything escaped, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_LEFT = ' style="text-align:left"'


def table(caption: str, rows: Mapping[str, str]) -> str:
    """Names and values, one pair a row."""
    body = "".join(f"<tr><th{_LEFT}>{escape(k)}</th><td{_LEFT}>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def grid(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header."""
    head = "".join(f"<th{_LEFT}>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td{_LEFT}>{escape(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>{body}</table>"


def text(title: str, content: str) -> str:
    """A paragraph that keeps its line breaks."""
    return f'<p><b>{escape(title)}</b></p><pre style="white-space:pre-wrap">{escape(content)}</pre>'
