"""The one error of reports."""

from __future__ import annotations

import os
from os import PathLike
from typing import Any


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

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, field by field: pickle and copy would call the constructor, without its keywords."""
        return type(self).__new__, (type(self), *self.args), self.__dict__
