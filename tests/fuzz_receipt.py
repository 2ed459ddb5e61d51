"""What a fuzzer runs on receipts: everything that reads one or its signatures; and what it starts from."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

from fixtures.receipts.build import HERE
from receipts import sign
from receipts.codec import canonical, digest_of
from receipts.errors import ReceiptError
from receipts.gate import gate
from receipts.policy import read_policy
from receipts.read import decode, parse
from receipts.record import Case, Lane, Ledger, Receipt, Rung
from receipts.rule import RULES, View
from receipts.verify import verify  # noqa: F401  # enters all rules

#: The verifier's clock and policy are its own, not the input's.
NOW = datetime(2026, 6, 1, tzinfo=UTC)
STRICT = read_policy("strict")


def stages(raw: bytes) -> str:
    """Take bytes as far as they go; returns the last stage they passed. Raises anything but `ReceiptError`."""
    stage = "nothing"
    try:
        data = parse(raw, "r.json")
        stage = "json"
        if not isinstance(data, dict):
            return stage
        if "payload" in data:
            sign.first_name(sign.decode(data).payload)
            return "envelope"
        receipt = decode(data)
        stage = "receipt"
        digest_of(data)
        again = Receipt.from_dict(receipt.to_dict())
        assert canonical(again.to_dict()) == canonical(receipt.to_dict())
        for rule in RULES.values():
            for _ in rule.check(View(receipt, tuple([] for _ in receipt.side_files), NOW)):
                pass
        gate(receipt, STRICT, now=NOW)
        stage = "verified"
    except ReceiptError as error:
        str(error)  # a message can always be made
    return stage


def sound() -> dict[str, bytes]:
    """Receipts by name: valid ones, small ones that were refused once, an envelope."""
    found = {f"valid {path.stem}": path.read_bytes() for path in sorted((HERE / "valid").glob("*.json"))}
    small = [path for path in sorted((HERE / "invalid").glob("*.json")) if path.stat().st_size < 10_000]
    found |= {f"invalid {path.stem}": path.read_bytes() for path in small}
    payload = base64.b64encode(b'{"subject":[{"name":"r.json"}]}').decode()
    signature = {"keyid": "00", "sig": base64.b64encode(bytes(64)).decode()}
    envelope = {"payloadType": sign.PAYLOAD_TYPE, "payload": payload, "signatures": [signature]}
    return found | {"envelope": json.dumps(envelope).encode()}


def words() -> list[bytes]:
    """Names of fields, and values that mean something."""
    names = [f'"{name}"'.encode() for record in (Receipt, Lane, Rung, Case, Ledger) for name in record.__slots__]
    values = [b'"pass"', b'"fail"', b"null", b"true", b"1e999", b"NaN", b"-0", b"18446744073709551615", b"[]", b"{}"]
    return [*names, *values, b"\\ud800", b"\xf0\x9f\x98\x80", b'"1.0.0"', b"9007199254740993"]
