"""The one error of reports."""

from __future__ import annotations

import os
from os import PathLike


class ReportError(Exception):
    """The report cannot be written.

    Args:
        what: Why, in one sentence.
        where: The file or folder.
        remedy: What the user can do.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | PathLike[str], remedy: str) -> None:
        super().__init__(f"{os.fspath(where)}: {what}\n  hint: {remedy}")
        self.what = what
        self.where = os.fspath(where)
        self.remedy = remedy
