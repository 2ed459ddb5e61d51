"""Key files: made safely, refused where others can read them, never mixed up."""

from __future__ import annotations

import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from receipts.errors import SettingError
from receipts.keys import generate, key_id, read_private, read_public


def test_a_pair_belongs_together(tmp_path):
    public, identifier = generate(tmp_path / "a" / "key")
    assert key_id(read_public(public)) == identifier == key_id(read_private(tmp_path / "a" / "key").public_key())
    assert len(identifier) == 64


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_the_private_key_is_its_owners_alone(tmp_path):
    generate(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(SettingError, match=r"read by others .mode 0640.*\n.*chmod 600"):
        read_private(tmp_path / "key")


def test_no_key_is_overwritten(tmp_path):
    generate(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    with pytest.raises(SettingError, match="exists already"):
        generate(tmp_path / "key")
    (tmp_path / "key").unlink()
    with pytest.raises(SettingError, match="exists already"):
        generate(tmp_path / "key")
    assert before


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path):
    generate(tmp_path / "key")
    with pytest.raises(SettingError, match="is a private key"):
        read_public(tmp_path / "key")
    (tmp_path / "key.pub").chmod(0o600)
    with pytest.raises(SettingError, match="is no private key"):
        read_private(tmp_path / "key.pub")


def test_other_kinds_of_keys_are_refused(tmp_path):
    key = generate_private_key(SECP256R1())
    path = tmp_path / "key"
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(SettingError, match="no Ed25519"):
        read_private(path)
    path.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(SettingError, match="no Ed25519"):
        read_public(path)
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(SettingError, match="is encrypted"):
        read_private(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (read_private, read_public):
        with pytest.raises(SettingError):
            read(path)


def test_a_missing_key_is_wrong_usage(tmp_path):
    with pytest.raises(SettingError, match="cannot be read") as caught:
        read_public(tmp_path / "none")
    assert caught.value.exit_code == 2
