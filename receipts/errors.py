"""The one error of receipts: what is wrong, and the exact place it was found."""

from __future__ import annotations

from receipts.visible import visible


class ReceiptError(Exception):
    """A receipt, or a part of one, breaks a rule.

    Args:
        reason: What is wrong, in one sentence without the place.
        path: The place inside the record, as `lanes[2].rungs[0].outcome`; "" is the record itself.
        file: The file it was read from, if any.
        remedy: One sentence: what can be done about it.
    """

    exit_code = 5

    def __init__(self, reason: str, *, path: str = "", file: str = "", remedy: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path
        self.file = file
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.file}: {self.reason}" if self.file else self.reason
        if self.path:
            text += f" in '{self.path}'"
        hint = "" if self.remedy is None else f"\n  hint: {visible(self.remedy)}"
        return visible(text) + hint

    def inside(self, file: str) -> ReceiptError:
        """The same error with the file it was found in."""
        return type(self)(self.reason, path=self.path, file=file, remedy=self.remedy)


class MissingReceiptError(ReceiptError):
    """There is no receipt to read: the caller named the wrong file, or nothing has been run yet."""

    exit_code = 2


class SettingError(ReceiptError):
    """A key, a trust file, a policy or another setting of the verifier's own cannot be used."""

    exit_code = 2


class UnavailableError(ReceiptError):
    """What a check needs is not here: an engine, or a model file. Nothing could be concluded."""

    exit_code = 4


class ReceiptLimitError(ReceiptError):
    """A receipt is larger, deeper or longer than any honest one; nothing of it was kept."""
