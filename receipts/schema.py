"""The JSON Schema of receipts: made from the records, shipped as data, and checked against.

`generate` writes the schema that the records stand for; `schemas/inference-1.schema.json` is its committed
output, and a test compares the two. The folder `schemas/` lies beside this package both in a checkout and in
site-packages, so it is found by that place and not by an import: any other package called `schemas` on the
path cannot take its stead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from receipts.codec import MAX_SAFE, Anything, hints, optional_names, pretty, unwrap
from receipts.errors import ReceiptError
from receipts.record import SCHEMA_ID, Receipt

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "schemas" / "inference-1.schema.json"

#: End of text. `$` alone would let a line break through in engines where it matches before one.
_END = "$(?!\\n)"

#: Scalars with a rule, by the label they carry in `receipts.codec`.
SCALARS: Mapping[str, dict[str, Any]] = {
    "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}" + _END},
    "sha256_or_empty": {"type": "string", "pattern": "^([0-9a-f]{64})?" + _END},
    "name": {"type": "string", "minLength": 1, "maxLength": 4096},
    "time": {
        "type": "string",
        "pattern": "^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,9})?Z" + _END,
    },
    "count": {
        # Beyond 2^53 − 1 a decimal string. Keywords for one type say nothing about the other.
        "type": ["integer", "string"],
        "minimum": 0,
        "maximum": MAX_SAFE,
        "pattern": "^[1-9][0-9]{15,19}" + _END,
    },
    "token": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "index": {"type": "integer", "minimum": -1, "maximum": MAX_SAFE},
    "amount": {"type": "number", "minimum": 0},
    "share": {"type": "number", "maximum": 1},
    "rows_file": {"type": "string", "pattern": "^rows/[0-9a-f]{64}\\.json" + _END},
}
_REQUIRED = re.compile("'(.+)' is a required property")
_PLAIN: Mapping[type, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
}


def generate() -> dict[str, Any]:
    """The schema as JSON types: one closed definition per record."""
    definitions: dict[str, Any] = {}
    root = _reference(Receipt, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Receipt of a cross-validated inference run, schema 1",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _reference(hint: Anything, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type hint; records are added to `definitions` and referred to."""
    hint, label = unwrap(hint)
    origin: Anything = get_origin(hint)
    if label is not None:
        return dict(SCALARS[label])
    if origin in (Union, UnionType):
        arms = [arm for arm in get_args(hint) if arm is not NoneType]
        return {"anyOf": [_reference(arms[0], definitions), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _reference(get_args(hint)[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _reference(get_args(hint)[1], definitions)}
    if origin is Literal:
        return {"enum": list(get_args(hint))}
    if is_dataclass(hint):
        _define(hint, definitions)  # type: ignore[arg-type]  # a dataclass type here, never an instance
        return {"$ref": f"#/$defs/{hint.__name__}"}  # type: ignore[union-attr]  # as above
    return dict(_PLAIN[hint])


def _define(record: type, definitions: dict[str, Any]) -> None:
    if record.__name__ in definitions:
        return
    definitions[record.__name__] = {}
    summary, described = _documented(record)
    properties = {}
    for name, hint in hints(record).items():
        properties[name] = _reference(hint, definitions)
        if name in described:
            properties[name] = {"description": described[name], **properties[name]}
    definitions[record.__name__] = {
        "description": summary,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional_names(record)],
        "additionalProperties": False,
    }


def _documented(record: type) -> tuple[str, dict[str, str]]:
    """Summary line and attribute descriptions of a record's docstring."""
    summary, _, attributes = (getdoc(record) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", attributes, flags=re.MULTILINE)
    return summary.split("\n\n")[0].strip(), {name: re.sub(r"\s+", " ", text) for name, text in entries}


def text() -> str:
    """The schema as the committed file holds it."""
    return pretty(generate()) + "\n"


@cache
def load() -> dict[str, Any]:
    """The shipped schema. Raises `ReceiptError` if the installation lacks it."""
    try:
        schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReceiptError(
            f"the schema is missing ({error.strerror})", file=str(SCHEMA_FILE), remedy="install the package again"
        ) from None
    return schema


@cache
def _validator(definition: str) -> Any:  # noqa: ANN401  # jsonschema's validator classes are made at run time
    from jsonschema import Draft202012Validator  # slow to import; only checking needs it

    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": load()["$defs"] | SCALARS})


def problems(data: Anything, *, definition: str = "Receipt", limit: int = 20) -> list[ReceiptError]:
    """Every breach of the schema in `data`, at most `limit`, in the order of their paths."""
    found = []
    for breach in _validator(definition).iter_errors(data):
        error = breach.context[0] if breach.context else breach  # the first arm of an anyOf is the rule itself
        missing = _REQUIRED.fullmatch(error.message) if error.validator == "required" else None
        if missing:
            error.path.append(missing[1])
        found.append(
            ReceiptError(
                "required field is missing" if missing else error.message[:300], path=_path(error.absolute_path)
            )
        )
        if len(found) >= limit:
            break
    return sorted(found, key=lambda error: error.path)


def check(data: Anything, *, definition: str = "Receipt") -> None:
    """Raises the first of `problems`."""
    for problem in problems(data, definition=definition, limit=1):
        raise problem


def _path(parts: Any) -> str:  # noqa: ANN401  # a deque of str and int that jsonschema leaves untyped
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
