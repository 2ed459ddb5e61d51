"""What a verifier found, in the forms that people and their tools read: one function a form, report in, text out.

A form is imported when it is asked for, so that a help text waits for none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receipts.verify import Report


class Format(StrEnum):
    """How to print a report."""

    TABLE = "table"
    JSON = "json"
    JUNIT = "junit"
    GITHUB = "github"
    SARIF = "sarif"


def _form(module: str, function: str) -> Callable[[Report], str]:
    def text(report: Report) -> str:
        made: str = getattr(import_module(f"receipts.formats.{module}"), function)(report)
        return made

    return text


#: All but the table, which prints itself on a console.
FORMATS: Mapping[Format, Callable[[Report], str]] = {
    Format.JSON: _form("json", "to_json"),
    Format.JUNIT: _form("junit", "junit"),
    Format.GITHUB: _form("github", "workflow_commands"),
    Format.SARIF: _form("sarif", "sarif"),
}
