"""Ed25519 keys in files: a private one that only its owner can read, and a public one to hand out.

Both are PEM, as other tools read and write them: PKCS#8 for the private key, SubjectPublicKeyInfo for the public one.
A key's id is the sha256 of the latter in DER.
"""

from __future__ import annotations

import hashlib
import os
import stat
from os import PathLike
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from receipts.errors import MissingReceiptError, ReceiptLimitError, SettingError
from receipts.read import contents

#: A PEM file of one key is some hundred bytes.
MAX_BYTES = 64 * 2**10
#: Permissions of a private key: its owner reads and writes it, nobody else anything.
PRIVATE = 0o600


def generate(path: str | PathLike[str]) -> tuple[Path, str]:
    """Make a key pair: the private key at `path`, the public one beside it as `path`.pub.

    Returns:
        The public key's file, and the key's id.

    Raises:
        SettingError: One of the files exists (a key is never overwritten), or cannot be written.
    """
    private, public = Path(path), Path(f"{os.fspath(path)}.pub")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for file in (private, public):
        if file.exists():
            raise SettingError("exists already", file=str(file), remedy="a key is never overwritten; name another")
    try:
        private.parent.mkdir(parents=True, exist_ok=True)
        _create(private, secret, PRIVATE)
        _create(public, shown, 0o644)
    except OSError as error:
        raise SettingError(f"cannot be written ({error.strerror})", file=str(error.filename or private)) from None
    return public, key_id(key.public_key())


def _create(path: Path, content: bytes, mode: int) -> None:
    """A new file with exactly these permissions from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def read_private(path: str | PathLike[str]) -> Ed25519PrivateKey:
    """A private key. Raises `SettingError` if others can read it, or if it is no Ed25519 key."""
    file = os.fspath(path)
    content = _content(path)
    if os.name == "posix" and (mode := stat.S_IMODE(Path(path).stat().st_mode)) & 0o077:
        raise SettingError(
            f"can be read by others (mode {mode:04o})", file=file, remedy=f"chmod 600 {file}; if it was, make a new one"
        )
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError:
        raise SettingError("is encrypted", file=file, remedy="store it unencrypted with mode 0600") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingError("is no private key", file=file, remedy="`python -m receipts keygen` makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError("is no Ed25519 key", file=file)
    return key


def read_public(path: str | PathLike[str]) -> Ed25519PublicKey:
    """A public key from its file. Raises `SettingError`."""
    return parse_public(_content(path), os.fspath(path))


def parse_public(content: bytes, file: str) -> Ed25519PublicKey:
    """A public key in PEM. Raises `SettingError`, naming `file`."""
    if b"PRIVATE KEY" in content:
        raise SettingError("is a private key", file=file, remedy="name the .pub file, and keep this one to yourself")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise SettingError("is no public key", file=file) from None
    if not isinstance(key, Ed25519PublicKey):
        raise SettingError("is no Ed25519 key", file=file)
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """Sha256 of the public key in DER, hexadecimal."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _content(path: str | PathLike[str]) -> bytes:
    try:
        return contents(Path(path), MAX_BYTES)
    except (MissingReceiptError, ReceiptLimitError) as error:
        raise SettingError(error.reason, file=os.fspath(path)) from None
