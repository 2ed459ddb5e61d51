"""One tree of errors: what happened, where, and what to do about it.

Every error a user can cause is a `BitNetError`. It carries the exit code of the command line, so that
a caller in a shell and a caller in Python learn the same thing, and a severity that says whose move it is:

    usage         the caller's: an argument or a setting has no meaning
    data          the file's: it is damaged, incomplete, or not what it says
    environment   the surroundings': no network, no permission, a server or a program that is not there
    resource      nobody's yet: a limit would be passed; with less to do, or a higher limit, it works
    internal      ours, or the model's: what came out cannot be used
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, ClassVar, Literal

Severity = Literal["usage", "data", "environment", "resource", "internal"]


class BitNetError(Exception):
    """Base of all errors of this package.

    Args:
        what: One sentence: what is wrong.
        where: The file, field, offset or argument it was found in.
        remedy: One sentence: what the user can do.

    Attributes:
        exit_code: Of the command line.
        severity: Whose move it is.
    """

    exit_code: ClassVar[int] = 1
    severity: ClassVar[Severity] = "internal"

    def __init__(self, what: str, *, where: str | PathLike[str] | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else fspath(where)
        self.remedy = remedy

    def __str__(self) -> str:
        head = self.what if self.where is None else f"{self.where}: {self.what}"
        return head if self.remedy is None else f"{head}\n  hint: {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, field by field: pickle and copy would call the constructor, without its keywords."""
        return type(self).__new__, (type(self), *self.args), self.__dict__

    def to_dict(self) -> dict[str, str | int | None]:
        """What a log or another program needs of it."""
        return {
            "error": type(self).__name__,
            "severity": self.severity,
            "what": self.what,
            "where": self.where,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class UsageError(BitNetError):
    """An argument or an environment variable has no meaning here."""

    exit_code = 2
    severity = "usage"


class ModelFileError(BitNetError):
    """A model file is damaged, incomplete, or not what it says it is."""

    exit_code = 3
    severity = "data"

    def __init__(self, what: str, *, where: str | PathLike[str] | None = None, remedy: str | None = None) -> None:
        super().__init__(what, where=where, remedy=remedy or "the file is damaged; download or convert it again")


class GGUFError(ModelFileError):
    """The GGUF container breaks a rule of its format.

    Args:
        reason: What rule is broken.
        path: The file.
        field: The key, tensor or header field at fault.
        offset: Byte offset in the file.
        remedy: What the user can do.
    """

    def __init__(
        self,
        reason: str,
        *,
        path: str | PathLike[str],
        field: str | None = None,
        offset: int | None = None,
        remedy: str | None = None,
    ) -> None:
        place = fspath(path)
        if offset is not None:
            place += f" at byte {offset}"
        if field is not None:
            place += f" ({field})"
        super().__init__(reason, where=place, remedy=remedy)
        self.path = fspath(path)
        self.field = field
        self.offset = offset
        self.reason = reason


class TokenizerError(ModelFileError):
    """A tokenizer is missing, damaged, or does not belong to its model."""


class DownloadError(BitNetError):
    """A file cannot be fetched: no network, no permission, no such file, or a server that does not keep its word."""

    exit_code = 4
    severity = "environment"


class ResourceLimitError(BitNetError):
    """A limit on memory, size or time would be passed; nothing was allocated."""

    exit_code = 6
    severity = "resource"


class ContextLengthError(ResourceLimitError):
    """A prompt does not fit in the model's context, however much memory there is."""
