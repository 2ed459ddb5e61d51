"""Settings files of the verifier's own, in TOML: read within limits, every key known, every mistake named by its path.

They are the verifier's word against the receipt's, so nothing in them is guessed: a key that is misspelt would
otherwise be a demand that is never made.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from datetime import date, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from receipts.errors import MissingReceiptError, ReceiptLimitError, SettingError
from receipts.read import contents

#: A policy or a trust file is a page or two.
MAX_BYTES = 2**20


def read_toml(path: str | PathLike[str]) -> Table:
    """The root table of a file. Raises `SettingError` if there is none."""
    file = os.fspath(path)
    try:
        return Table(tomllib.loads(contents(Path(path), MAX_BYTES).decode("utf-8")), "", file)
    except (MissingReceiptError, ReceiptLimitError) as error:
        raise SettingError(error.reason, file=file) from None
    except UnicodeDecodeError as error:
        raise SettingError(f"is not UTF-8 at byte {error.start}", file=file) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingError(f"is not TOML: {error}", file=file) from None


class Table:
    """A table of a settings file, emptied key by key; what is left in the end is a mistake.

    Args:
        data: As `tomllib` read it.
        path: Where in the file.
        file: Its name, for messages.
    """

    def __init__(self, data: Mapping[str, Any], path: str, file: str) -> None:
        self._left = dict(data)
        self._known: list[str] = []
        self.path = path
        self.file = file

    def place(self, key: str) -> str:
        """The path of a key."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, reason: str, key: str, remedy: str | None = None) -> SettingError:
        """A mistake in the value of a key."""
        return SettingError(reason, path=self.place(key), file=self.file, remedy=remedy)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any, *, needed: bool = False) -> Any:  # noqa: ANN401  # whatever `kind` says
        """The value of a key, of a type. Raises `SettingError` if it has another, or is `needed` and missing."""
        self._known.append(key)
        if key not in self._left:
            if needed:
                raise self.error("is missing", key)
            return default
        value = self._left.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(f"{value!r:.60} is no {' or '.join(k.__name__ for k in kinds)}", key)
        return value

    def text(self, key: str, default: str = "", *, needed: bool = False) -> str:
        """A string."""
        return str(self.take(key, str, default, needed=needed))

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        return bool(self.take(key, bool, default))

    def number(self, key: str, default: float | None = None) -> float | None:
        """A number of at least 0."""
        value = self.take(key, (int, float), default)
        if value is not None and not 0 <= value < float("inf"):
            raise self.error(f"{value!r} is not a finite number of at least 0", key)
        return None if value is None else float(value)

    def count(self, key: str, default: int = 0) -> int:
        """A whole number of at least 0."""
        value = int(self.take(key, int, default))
        if value < 0:
            raise self.error(f"{value} is below 0", key)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise self.error("is no list of strings", key)
        return tuple(values)

    def day(self, key: str) -> date | None:
        """A date."""
        value = self.take(key, date, None)
        return value.date() if isinstance(value, datetime) else value

    def moment(self, key: str) -> datetime | None:
        """A time with a zone."""
        value = self.take(key, datetime, None)
        if value is not None and value.tzinfo is None:
            raise self.error(f"{value} has no time zone", key, "append Z for UTC")
        return value  # type: ignore[no-any-return]  # `take` checked it

    def table(self, key: str) -> Table:
        """A table; an empty one where there is none."""
        return Table(self.take(key, dict, {}), self.place(key), self.file)

    def tables(self, key: str) -> tuple[Table, ...]:
        """An array of tables."""
        values = self.take(key, list, [])
        if not all(isinstance(value, dict) for value in values):
            raise self.error("is no array of tables", key, f"write [[{self.place(key)}]]")
        return tuple(Table(value, f"{self.place(key)}[{i}]", self.file) for i, value in enumerate(values))

    def end(self) -> None:
        """Raises `SettingError` for a key that nobody took."""
        for key in self._left:
            raise self.error("is not known", key, f"known here: {', '.join(self._known)}")
