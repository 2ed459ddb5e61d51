"""Hypothesis strategies for every record of a receipt, made from the same type hints as the codec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from hypothesis import strategies as st

import receipts.record
from receipts.codec import MAX_INTEGER, Record, hints, unwrap

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SHA = st.text("0123456789abcdef", min_size=64, max_size=64)
SCALARS = {
    "sha256": SHA,
    "sha256_or_empty": st.just("") | SHA,
    "name": st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12),
    "time": st.datetimes().map(lambda t: t.isoformat() + "Z"),
    "count": st.integers(0, 9) | st.integers(0, MAX_INTEGER),
    "token": st.integers(0, 2**31 - 1),
    "index": st.integers(-1, 99),
    "amount": st.floats(0, allow_infinity=False),
    "share": st.floats(max_value=1, allow_nan=False, allow_infinity=False),
    "rows_file": SHA.map(lambda digest: f"rows/{digest}.json"),
}
PLAIN = {
    str: TEXT,
    bool: st.booleans(),
    int: st.integers(-MAX_INTEGER, MAX_INTEGER),
    float: st.floats(allow_nan=False, allow_infinity=False),
}
RECORDS = sorted(
    (value for value in vars(receipts.record).values() if isinstance(value, type) and issubclass(value, Record)),
    key=lambda record: record.__name__,
)
RECORDS.remove(Record)


def values(hint):
    """Values of a type hint."""
    hint, label = unwrap(hint)
    if label is not None:
        return SCALARS[label]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return st.none() | values(next(arm for arm in arguments if arm is not NoneType))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=2)
    if origin is Literal:
        return st.sampled_from(arguments)
    if is_dataclass(hint):
        return records(hint)
    return PLAIN[hint]


def records(record):
    """Records with any values that their types allow."""
    return st.builds(record, **{name: values(hint) for name, hint in hints(record).items()})
