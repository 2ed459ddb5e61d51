"""What a verifier found, in the forms that people and their tools read: one function a form, report in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from receipts.formats.github import workflow_commands
from receipts.formats.json import to_json
from receipts.formats.junit import junit
from receipts.formats.sarif import sarif
from receipts.verify import Report


class Format(StrEnum):
    """How to print a report."""

    TABLE = "table"
    JSON = "json"
    JUNIT = "junit"
    GITHUB = "github"
    SARIF = "sarif"


#: All but the table, which prints itself on a console.
FORMATS: Mapping[Format, Callable[[Report], str]] = {
    Format.JSON: to_json,
    Format.JUNIT: junit,
    Format.GITHUB: workflow_commands,
    Format.SARIF: sarif,
}
