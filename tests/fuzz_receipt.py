"""What a fuzzer runs on receipts: everything that reads one, an envelope of signatures included."""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime

from fuzz_target import MAX_GROWTH, MAX_SECONDS, Finding

from receipts import sign
from receipts.codec import canonical, digest_of
from receipts.errors import ReceiptError
from receipts.gate import gate
from receipts.policy import read_policy
from receipts.read import decode, parse
from receipts.rule import RULES, View
from receipts.verify import verify  # noqa: F401  # enters all rules

#: The verifier's clock and policy are its own, not the input's.
NOW = datetime(2026, 6, 1, tzinfo=UTC)
STRICT = read_policy("strict")


def examine_receipt(raw: bytes) -> str:
    """Take bytes as far as they go; returns the last stage they passed.

    Raises:
        Finding: They took too long, or too much memory.
        Exception: Anything but a `ReceiptError` is a finding as well.
    """
    start, peak = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stage = _stages(raw)
    seconds = time.thread_time() - start
    if seconds > MAX_SECONDS:
        raise Finding(f"{seconds:.2f} s, at stage {stage}")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    if growth > MAX_GROWTH:
        raise Finding(f"{growth >> 20} MiB, at stage {stage}")
    return stage


def _stages(raw: bytes) -> str:
    stage = "nothing"
    try:
        data = parse(raw, "r.json")
        stage = "json"
        if isinstance(data, dict) and "payload" in data:
            sign._first_name(sign.decode(data).payload)
            return "envelope"
        if not isinstance(data, dict):
            return stage
        receipt = decode(data)
        stage = "receipt"
        digest_of(data)
        assert canonical(type(receipt).from_dict(receipt.to_dict()).to_dict()) == canonical(receipt.to_dict())
        for rule in RULES.values():
            for _ in rule.check(View(receipt, tuple([] for _ in receipt.side_files), NOW)):
                pass
        gate(receipt, STRICT, now=NOW)
        stage = "verified"
    except ReceiptError as error:
        str(error)  # a message can always be made
    return stage
