"""Signatures: who vouches for a receipt. A DSSE envelope around an in-toto Statement v1, signed with Ed25519, offline.

The statement names the receipt's file and every side file by sha256, so that one signature covers all bytes. The same
statement is what attestation services of CI systems take. The envelope lies beside the receipt as `<receipt>.dsse`;
several signers sign one payload.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from receipts.codec import canonical, pretty
from receipts.errors import MissingReceiptError, ReceiptError, SettingError
from receipts.read import MAX_RECEIPT_BYTES, contents, parse, read
from receipts.record import SCHEMA_ID, Receipt
from receipts.trust import Trust
from receipts.write import replace_file

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
#: A statement names a receipt and two tables, an envelope a few signers.
MAX_BYTES = 2**20
MAX_SIGNATURES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature of an envelope."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A DSSE envelope.

    Attributes:
        payload: The statement's bytes.
        signatures: Over the payload and its type.
    """

    payload: bytes
    signatures: tuple[Signature, ...] = ()


def envelope_path(receipt_path: str | PathLike[str]) -> Path:
    """Where the envelope of a receipt lies."""
    return Path(f"{os.fspath(receipt_path)}.dsse")


def statement(receipt: Receipt, content: bytes, name: str) -> dict[str, Any]:
    """The in-toto statement about a receipt.

    Args:
        receipt: As read.
        content: The bytes of its file.
        name: Of the file, without a folder.
    """
    subjects = [{"name": name, "digest": {"sha256": hashlib.sha256(content).hexdigest()}}]
    subjects += [{"name": side.file, "digest": {"sha256": side.sha256}} for side in receipt.side_files]
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": SCHEMA_ID,
        "predicate": {
            "schema_version": receipt.schema_version,
            "digest": receipt.digest,
            "run_id": receipt.identity.run_id,
            "timestamp": receipt.timestamp,
            "git_commit": receipt.identity.git_commit,
            "package_version": receipt.identity.package_version,
            "parity": receipt.parity.status,
            "models": [{"name": model.name, "sha256": model.sha256} for model in receipt.models],
        },
    }


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed, with no two readings."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(path: str | PathLike[str], key_path: str | PathLike[str]) -> tuple[Path, str]:
    """Sign a receipt; a signature by another key over the same bytes is kept beside the new one.

    Returns:
        The envelope's file, and the key's id.

    Raises:
        ReceiptError: There is no such receipt, or it is not whole. SettingError: The key cannot be used.
    """
    from receipts.keys import key_id, read_private

    key = read_private(key_path)
    payload = canonical(statement(read(path), contents(Path(path), MAX_RECEIPT_BYTES), Path(path).name))
    own = Signature(keyid=key_id(key.public_key()), sig=key.sign(pae(PAYLOAD_TYPE, payload)))
    others: tuple[Signature, ...] = ()
    target = envelope_path(path)
    if target.exists():
        known = read_envelope(target)
        if known.payload == payload:  # else it belonged to an older receipt of the same name
            others = tuple(s for s in known.signatures if s.keyid != own.keyid)
    if len(others) >= MAX_SIGNATURES:
        raise SettingError(f"holds {MAX_SIGNATURES} signatures already", file=str(target))
    try:
        replace_file(target, encode(Envelope(payload=payload, signatures=(*others, own))))
    except OSError as error:
        raise SettingError(f"cannot be written ({error.strerror})", file=str(target)) from None
    return target, own.keyid


def encode(envelope: Envelope) -> bytes:
    """The text of an envelope's file."""
    data = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(envelope.payload).decode(),
        "signatures": [
            {"keyid": signature.keyid, "sig": base64.b64encode(signature.sig).decode()}
            for signature in envelope.signatures
        ],
    }
    return (pretty(data) + "\n").encode()


def read_envelope(path: str | PathLike[str]) -> Envelope:
    """An envelope. Raises `MissingReceiptError` if there is none, `ReceiptError` if it is none."""
    file = os.fspath(path)
    try:
        return decode(parse(contents(Path(path), MAX_BYTES), file))
    except MissingReceiptError:
        raise MissingReceiptError(
            "there is no signature", file=file, remedy="`python -m receipts sign` makes one"
        ) from None
    except ReceiptError as error:
        raise (error if error.file else error.inside(file)) from None


def decode(data: object) -> Envelope:
    """An envelope in JSON types. Raises `ReceiptError` where it is anything else."""
    if not isinstance(data, dict) or data.keys() != {"payloadType", "payload", "signatures"}:
        raise ReceiptError("is no DSSE envelope")
    if data["payloadType"] != PAYLOAD_TYPE:
        raise ReceiptError(f"{data['payloadType']!r:.60} is not {PAYLOAD_TYPE}", path="payloadType")
    listed = data["signatures"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise ReceiptError(f"expected 1 to {MAX_SIGNATURES} signatures", path="signatures")
    made = []
    for i, item in enumerate(listed):
        if not isinstance(item, dict) or item.keys() != {"keyid", "sig"} or not isinstance(item["keyid"], str):
            raise ReceiptError("is no signature", path=f"signatures[{i}]")
        made.append(Signature(keyid=item["keyid"], sig=_unbase64(item["sig"], f"signatures[{i}].sig")))
    if len({signature.keyid for signature in made}) < len(made):
        raise ReceiptError("one key signed twice", path="signatures")
    return Envelope(payload=_unbase64(data["payload"], "payload"), signatures=tuple(made))


def _unbase64(text: object, path: str) -> bytes:
    """Bytes from base64; only the one spelling that `b64encode` gives, so that no byte of it is idle."""
    try:
        raw = base64.b64decode(text if isinstance(text, str) else "!", validate=True)
    except (binascii.Error, ValueError):
        raise ReceiptError("is not base64", path=path) from None
    if base64.b64encode(raw).decode() != text:
        raise ReceiptError("is not in base64's one canonical spelling", path=path)
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one signature, or of the statement as a whole.

    Attributes:
        name: `signature.statement`, `signature.key.<name or id>`, `signature.threshold`.
        held: Whether it holds; None where the key is not known here, which alone is no fault.
        path: In the envelope.
        why: One sentence.
    """

    name: str
    held: bool | None
    path: str
    why: str


def check_signature(path: str | PathLike[str], receipt: Receipt, trust: Trust) -> Iterator[Verdict]:
    """Every signature of a receipt against the keys that are trusted.

    The last verdict is the answer: whether enough different signers vouch for exactly these bytes.
    """
    try:
        envelope = read_envelope(envelope_path(path))
    except ReceiptError as error:
        yield Verdict(name="signature.envelope", held=False, path=error.path, why=error.reason)
        return
    content = contents(Path(path), MAX_RECEIPT_BYTES)
    names = {Path(path).name} | first_name(envelope.payload)
    if any(envelope.payload == canonical(statement(receipt, content, name)) for name in names):
        yield Verdict(name="signature.statement", held=True, path="payload", why="It is about exactly these files.")
    else:
        why = "it is about other bytes than this receipt's"
        yield Verdict(name="signature.statement", held=False, path="payload", why=why)
    vouching: set[str] = set()
    for i, signature in enumerate(envelope.signatures):
        verdict, signer = _one(signature, envelope.payload, receipt, trust, f"signatures[{i}]")
        if signer:
            vouching.add(signer)
        yield verdict
    enough = len(vouching) >= trust.threshold
    who = ", ".join(sorted(vouching)) or "nobody"
    yield Verdict(
        name="signature.threshold",
        held=enough,
        path="signatures",
        why=f"{who} signed it; {trust.threshold} of {len({k.name for k in trust.keys})} signers are needed",
    )


def _one(signature: Signature, payload: bytes, receipt: Receipt, trust: Trust, path: str) -> tuple[Verdict, str]:
    """A verdict, and the signer's name if it vouches."""
    from cryptography.exceptions import InvalidSignature

    known = trust.by_id(signature.keyid)
    if known is None:
        name = f"signature.key.{signature.keyid[:12] or '?'}"
        return Verdict(name=name, held=None, path=path, why="the key is not among the trusted ones"), ""
    name = f"signature.key.{known.name}"
    try:
        known.key.verify(signature.sig, pae(PAYLOAD_TYPE, payload))
    except InvalidSignature:
        return Verdict(name=name, held=False, path=path, why=f"{known.name} did not sign this"), ""
    if refusal := known.refusal(_written(receipt)):
        return Verdict(name=name, held=False, path=path, why=refusal), ""
    return Verdict(name=name, held=True, path=path, why=f"signed by {known.name} ({known.id[:12]})"), known.name


def _written(receipt: Receipt) -> datetime:
    try:
        return datetime.fromisoformat(receipt.timestamp).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.max.replace(tzinfo=UTC)  # no time at all is not in any key's time but an endless one's


def first_name(payload: bytes) -> set[str]:
    """The name under which the receipt was signed: a file may be renamed, as by who downloads it."""
    try:
        name = parse(payload, "")["subject"][0]["name"]
    except (ReceiptError, KeyError, IndexError, TypeError):
        return set()
    return {name} if isinstance(name, str) else set()
