"""Records to JSON types and back, driven by the fields of a frozen dataclass.

One walk over type hints stands in for a `to_dict` and a `from_dict` by hand per record. Every refusal names
the path of the value. `None` and defaulted fields are written too, but for `SPARSE` ones, so that equal records have
equal bytes.
The canonical form is RFC 8785; integers that a double cannot hold travel as decimal strings.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import rfc8785

from receipts.errors import ReceiptError

#: Largest integer every JSON reader holds exactly (2^53 − 1).
MAX_SAFE = 2**53 - 1
#: Digits of the largest integer that is read at all: unsigned 64 bits.
MAX_INTEGER = 2**64 - 1
_DECIMAL = re.compile(r"-?[1-9][0-9]{15,19}")

#: A type hint, or a value not yet checked against one.
Anything = Any

# Scalars with a rule. The label is the name of the rule's definition in the JSON Schema.
Sha256 = Annotated[str, "sha256"]
Sha256OrNone = Annotated[str, "sha256_or_empty"]
Name = Annotated[str, "name"]
Time = Annotated[str, "time"]
Count = Annotated[int, "count"]
Index = Annotated[int, "index"]
Token = Annotated[int, "token"]
Amount = Annotated[float, "amount"]
Share = Annotated[float, "share"]
RowsFile = Annotated[str, "rows_file"]


class Record:
    """Base of all records: JSON types out, JSON types in, validation against the schema."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types. Raises `ReceiptError` where a value has the wrong type or is not finite."""
        encoded: dict[str, Any] = _encode(type(self), self, "")
        return encoded

    @classmethod
    def from_dict(cls, data: object, *, path: str = "") -> Self:
        """From JSON types. Raises `ReceiptError` on unknown, missing or mistyped fields.

        Args:
            data: What a JSON reader returned.
            path: Where `data` was found, for messages.
        """
        decoded: Self = _decode(cls, data, path)
        return decoded

    def validate(self) -> None:
        """Checks this record against its definition in the JSON Schema. Raises `ReceiptError`."""
        from receipts.schema import check  # jsonschema is slow to import, and reading types needs none of it

        check(self.to_dict(), definition=type(self).__name__)


@cache
def hints(record: type) -> dict[str, Any]:
    """Field name → type hint, `Annotated` kept, in field order."""
    resolved = get_type_hints(record, include_extras=True)
    return {f.name: resolved[f.name] for f in fields(record)}


@cache
def optional_names(record: type) -> frozenset[str]:
    """Names of the fields that have a default, and so may be absent from older files."""
    return frozenset(f.name for f in fields(record) if f.default is not MISSING or f.default_factory is not MISSING)


@cache
def sparse_fields(record: type) -> Mapping[str, Any]:
    """Fields that are written only where they differ from their default: name → that default."""
    return {f.name: f.default for f in fields(record) if f.metadata == SPARSE}


#: Metadata of fields that not every receipt has: written only where they say something, so that a receipt without them
#: is written again as it was, to the byte.
SPARSE: Mapping[str, Any] = {"sparse": True}


def unwrap(hint: Anything) -> tuple[Any, str | None]:
    """A type hint without `Annotated`, and its label."""
    origin: Anything = get_origin(hint)
    if origin is Annotated:
        inner, label = get_args(hint)
        return inner, label
    return hint, None


def _encode(hint: Anything, value: Anything, path: str) -> Anything:
    hint, _ = unwrap(hint)
    origin: Anything = get_origin(hint)
    if origin in (Union, UnionType):
        return None if value is None else _encode(_not_none(hint), value, path)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise _mistyped("an array", value, path)
        return [_encode(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _mistyped("an object", value, path)
        return {_text(k, path): _encode(get_args(hint)[1], value[k], _join(path, str(k))) for k in value}
    if is_dataclass(hint):
        if not isinstance(value, hint):  # type: ignore[arg-type]  # a dataclass type here, never an instance
            raise _mistyped(f"a {hint.__name__}", value, path)  # type: ignore[union-attr]  # as above
        return _encode_record(hint, value, path)
    return _scalar(hint, value, path)


def _encode_record(record: Anything, value: Anything, path: str) -> dict[str, Any]:
    sparse = sparse_fields(record)
    return {
        name: _encode(kind, getattr(value, name), _join(path, name))
        for name, kind in hints(record).items()
        if name not in sparse or getattr(value, name) != sparse[name]
    }


def _decode(hint: Anything, value: Anything, path: str) -> Anything:
    hint, _ = unwrap(hint)
    origin: Anything = get_origin(hint)
    if origin in (Union, UnionType):
        return None if value is None else _decode(_not_none(hint), value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mistyped("an array", value, path)
        return tuple(_decode(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Mapping or is_dataclass(hint):
        if not isinstance(value, dict):
            raise _mistyped("an object", value, path)
        if origin is Mapping:
            return {_text(k, path): _decode(get_args(hint)[1], item, _join(path, k)) for k, item in value.items()}
        return _decode_record(hint, value, path)
    if hint is int and isinstance(value, str):
        return _long_integer(value, path)
    return _from_scalar(hint, _scalar(hint, value, path))


def _decode_record(record: Anything, value: dict[str, Any], path: str) -> Anything:
    known = hints(record)
    for name in value:
        if name not in known:
            raise ReceiptError(
                f"unknown field {_shown(name)}", path=path, remedy=f"a {record.__name__} has {', '.join(known)}"
            )
    for name in known:
        if name not in value and name not in optional_names(record):
            raise ReceiptError("required field is missing", path=_join(path, name))
    return record(**{name: _decode(known[name], item, _join(path, name)) for name, item in value.items()})


def _scalar(hint: Anything, value: Anything, path: str) -> Anything:
    """A scalar of type `hint` as the JSON type that stands for it. Scalars of numpy are taken for Python's."""
    value = plain(value)
    origin: Anything = get_origin(hint)
    if origin is Literal:
        choices = get_args(hint)
        if not isinstance(value, str) or value not in choices:
            raise ReceiptError(f"{_shown(value)} is not one of {', '.join(choices)}", path=path)
        return value
    if hint is str:
        return _text(value, path)
    if hint is bool:
        if not isinstance(value, bool):
            raise _mistyped("true or false", value, path)
        return value
    if isinstance(value, bool):
        raise _mistyped("a number", value, path)
    if hint is int:
        if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_SAFE:
            return int(value)  # JSON has one kind of number: 3.0 is 3
        if not isinstance(value, Integral):
            raise _mistyped("an integer", value, path)
        number = int(value)
        if not -MAX_INTEGER <= number <= MAX_INTEGER:
            raise ReceiptError("integer does not fit in 64 bits", path=path)
        return number if abs(number) <= MAX_SAFE else str(number)
    if hint is float:
        if not isinstance(value, Real):
            raise _mistyped("a number", value, path)
        try:
            real = float(value)
        except OverflowError:
            real = math.inf
        if not math.isfinite(real):
            raise ReceiptError(f"{real} is not a finite number", path=path)
        return real + 0.0  # −0 and 0 have one canonical form, so they are one value
    raise TypeError(f"no codec for {hint!r} at {path!r}")


def plain(value: Anything) -> Anything:
    """A numpy scalar as Python's own; anything else as it is."""
    if type(value) in (float, int, str):
        return value  # nearly always
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _from_scalar(hint: Anything, value: Anything) -> Anything:
    return int(value) if hint is int else value


def _long_integer(value: str, path: str) -> int:
    if not _DECIMAL.fullmatch(value) or abs(int(value)) <= MAX_SAFE or abs(int(value)) > MAX_INTEGER:
        raise ReceiptError(
            f"{_shown(value)} is not an integer", path=path, remedy="only integers beyond 2^53 − 1 are written as text"
        )
    return int(value)


def _text(value: Anything, path: str) -> str:
    if not isinstance(value, str):
        raise _mistyped("text", value, path)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ReceiptError("text holds half a surrogate pair", path=path) from None
    return str(value)


def _not_none(hint: Anything) -> Anything:
    return next(arm for arm in get_args(hint) if arm is not NoneType)


def _mistyped(wanted: str, value: Anything, path: str) -> ReceiptError:
    found = "nothing" if value is None else f"{type(value).__name__} {_shown(value)}"
    return ReceiptError(f"expected {wanted}, found {found}", path=path)


def _shown(value: Anything) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def canonical(data: Anything) -> bytes:
    """RFC 8785 form of JSON types. Raises `ReceiptError` on what has none (NaN, integers beyond 2^53 − 1)."""
    try:
        return rfc8785.dumps(data)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ReceiptError(f"no canonical form: {error}") from None


def digest_of(data: Mapping[str, Any]) -> str:
    """Sha256 over the canonical form of a receipt's JSON types without its `digest` field."""
    return hashlib.sha256(canonical({k: v for k, v in data.items() if k != "digest"})).hexdigest()


def ids_digest(ids: Iterable[int]) -> str:
    """Sha256 of token ids as little-endian int32, one after the other. The digest that cases carry."""
    return hashlib.sha256(b"".join(int(i).to_bytes(4, "little", signed=True) for i in ids)).hexdigest()


def pretty(data: Anything, indent: int = 0) -> str:
    """JSON for people: objects are indented, arrays of scalars stay on one line, numbers are canonical."""
    pad, inner = "  " * indent, "  " * (indent + 1)
    if isinstance(data, Mapping) and data:
        rows = [f"{inner}{canonical(k).decode()}: {pretty(v, indent + 1)}" for k, v in data.items()]
        return "{\n" + ",\n".join(rows) + f"\n{pad}}}"
    if isinstance(data, Sequence) and not isinstance(data, str):
        if any(isinstance(item, Mapping | list) for item in data):
            return "[\n" + ",\n".join(inner + pretty(item, indent + 1) for item in data) + f"\n{pad}]"
        return "[" + ", ".join(canonical(item).decode() for item in data) + "]"
    return canonical(data).decode()
