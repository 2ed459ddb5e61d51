"""One tree of errors: what happened, where, and what to do about it.

Every error a user can cause is a `BitNetError`. It carries the exit code of the command line, so that
a caller in a shell and a caller in Python learn the same thing.
"""

from __future__ import annotations

from os import PathLike, fspath


class BitNetError(Exception):
    """Base of all errors of this package.

    Args:
        what: One sentence: what is wrong.
        where: The file, field, offset or argument it was found in.
        remedy: One sentence: what the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | PathLike[str] | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else fspath(where)
        self.remedy = remedy

    def __str__(self) -> str:
        head = self.what if self.where is None else f"{self.where}: {self.what}"
        return head if self.remedy is None else f"{head}\n  hint: {self.remedy}"


class UsageError(BitNetError):
    """An argument or an environment variable has no meaning here."""

    exit_code = 2


class ModelFileError(BitNetError):
    """A model file is damaged, incomplete, or not what it says it is."""

    exit_code = 3

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


class ResourceLimitError(BitNetError):
    """A limit on memory, size or time would be passed; nothing was allocated."""

    exit_code = 6
