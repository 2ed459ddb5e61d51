"""Whom a verifier believes: public keys with names, their time, and how many of them must have signed.

A trust file in TOML:

    threshold = 1                        # signers with different names that are needed

    [[keys]]
    name = "release"                     # a signer; its old and its new key share the name
    file = "release-2026.pub"            # beside this file; or pem = \"\"\"-----BEGIN PUBLIC KEY----- …\"\"\"
    from = 2026-01-01T00:00:00Z          # optional: receipts of before are not this key's
    until = 2027-01-01T00:00:00Z         # optional: nor those of afterwards

    [[keys]]
    name = "release"
    file = "release-2027.pub"
    from = 2026-12-01T00:00:00Z          # the two overlap while the key is rotated

    [[keys]]
    name = "laptop"
    file = "laptop.pub"
    revoked = true                       # stolen: whoever holds it can date a receipt as they like

A key that ended still vouches for receipts of its time; a revoked one for none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from receipts.errors import SettingError
from receipts.settings import Table, read_toml

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key and its time.

    Attributes:
        name: Of its signer.
        id: As `keys.key_id` makes it.
        key: The public key.
        since, until: Receipts written in between are believed; None is without end.
        revoked: Nothing is believed.
    """

    name: str
    id: str
    key: Ed25519PublicKey
    since: datetime | None = None
    until: datetime | None = None
    revoked: bool = False

    def refusal(self, written: datetime) -> str:
        """Why it does not vouch for a receipt of that time; "" if it does."""
        if self.revoked:
            return "the key is revoked"
        if self.since is not None and written < self.since:
            return f"the key is valid from {self.since:%Y-%m-%d} on"
        if self.until is not None and written > self.until:
            return f"the key ended on {self.until:%Y-%m-%d}"
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Who is believed.

    Attributes:
        keys: All of them.
        threshold: How many signers with different names are needed.
    """

    keys: tuple[TrustedKey, ...]
    threshold: int = 1

    def by_id(self, key_id: str) -> TrustedKey | None:
        """The key of that id, or None."""
        return next((key for key in self.keys if key.id == key_id), None)


def trust_of(paths: tuple[str | PathLike[str], ...], threshold: int = 1) -> Trust:
    """Trust in public keys by their files, each its own signer."""
    from receipts.keys import key_id, read_public  # cryptography is loaded only where something is signed

    made = [TrustedKey(name=Path(path).name, id=key_id(k), key=k) for path in paths for k in (read_public(path),)]
    return _checked(Trust(keys=tuple(made), threshold=threshold), ", ".join(os.fspath(p) for p in paths))


def read_trust(path: str | PathLike[str]) -> Trust:
    """A trust file. Raises `SettingError`."""
    root = read_toml(path)
    threshold = root.count("threshold", 1)
    keys = tuple(_key(table, Path(path).parent) for table in root.tables("keys"))
    root.end()
    return _checked(Trust(keys=keys, threshold=threshold), os.fspath(path))


def _key(table: Table, folder: Path) -> TrustedKey:
    from receipts.keys import key_id, parse_public, read_public

    name = table.text("name", needed=True)
    file, pem = table.text("file"), table.text("pem")
    if bool(file) == bool(pem):
        raise table.error("needs either `file` or `pem`", "file")
    if file and (Path(file).name != file or file in (".", "..")):
        raise table.error(f"{file!r} is not a file beside this one", "file")
    key = read_public(folder / file) if file else parse_public(pem.encode(), table.file)
    since, until, revoked = table.moment("from"), table.moment("until"), table.flag("revoked")
    table.end()
    if since is not None and until is not None and until <= since:
        raise table.error("ends before it begins", "until")
    return TrustedKey(name=name, id=key_id(key), key=key, since=since, until=until, revoked=revoked)


def _checked(trust: Trust, file: str) -> Trust:
    ids = [key.id for key in trust.keys]
    if len(set(ids)) < len(ids):
        raise SettingError("one key is entered twice", path="keys", file=file)
    if trust.threshold < 1:
        raise SettingError("nobody would have to sign", path="threshold", file=file, remedy="1 or more")
    if trust.threshold > len({key.name for key in trust.keys}):
        raise SettingError(f"{trust.threshold} signers are needed, but fewer are named", path="threshold", file=file)
    return trust
