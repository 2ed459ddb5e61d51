"""A badge: what a receipt comes to, as a small picture that says the same to a screen reader.

It shows what was verified when it was made: an invalid receipt has a badge that says so. Colour never stands alone.
"""

from __future__ import annotations

from html import escape

from receipts.verify import Report

_COLOURS = {"good": "#0b6b4d", "bad": "#a5300f", "open": "#5a5a5a"}
_LABEL = "#3d4148"
#: Width of a letter of an 11 px sans-serif, pixels, by its kind: texts are laid out without a font at hand.
_NARROW, _WIDE, _USUAL = frozenset("ijl.,:;'|!ft() "), frozenset("mwMW%@–—✓✗"), 6.6


def badge(report: Report, *, label: str = "cross-validation") -> str:
    """SVG of a verified receipt.

    Args:
        report: What `receipts.verify` found, with a gate.
        label: Left half.
    """
    word, mark, colour = _verdict(report)
    said = f"{mark} {word}"
    left, right = _width(label) + 12, _width(said) + 12
    title = escape(f"{label}: {word}")
    text = 'font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" fill="#ffffff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{title}">'
        f"<title>{title}</title>"
        f'<rect width="{left + right}" height="20" rx="3" fill="{_COLOURS[colour]}"/>'
        f'<path d="M3 0h{left - 3}v20h-{left - 3}a3 3 0 0 1-3-3v-14a3 3 0 0 1 3-3z" fill="{_LABEL}"/>'
        f'<g {text}><text x="{left / 2:g}" y="14" textLength="{left - 12}">{escape(label)}</text>'
        f'<text x="{left + right / 2:g}" y="14" textLength="{right - 12}">{escape(said)}</text></g></svg>\n'
    )


def _verdict(report: Report) -> tuple[str, str, str]:
    """In words, with a mark and a colour."""
    if report.receipt is None or not report.valid:
        return "invalid receipt", "✗", "bad"
    parity = report.receipt.parity
    if report.gate_passed is None:
        return "not gated", "–", "open"
    told = f"{parity.passed} of {parity.required} lanes passed"
    if parity.deviations:
        told += f", {parity.deviations} as declared"
    return (told, "✓", "good") if report.gate_passed else (f"failed, {told}", "✗", "bad")


def _width(text: str) -> int:
    """Pixels that a text takes."""
    narrow = sum(letter in _NARROW for letter in text)
    wide = sum(letter in _WIDE for letter in text)
    return round(_USUAL * (len(text) - narrow - wide) + 4 * narrow + 10 * wide)
