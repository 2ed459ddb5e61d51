"""Errors say what, where and what to do, and carry the exit code of the command line."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pickle
import pkgutil
from pathlib import Path

import pytest

from bitnet import errors
from bitnet.errors import (
    BitNetError,
    ContextLengthError,
    GGUFError,
    ModelFileError,
    ResourceLimitError,
    TokenizerError,
    UsageError,
)

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BitNetError)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BitNetError, 1),
        (UsageError, 2),
        (ModelFileError, 3),
        (GGUFError, 3),
        (TokenizerError, 3),
        (ResourceLimitError, 6),
        (ContextLengthError, 6),
    ],
)
def test_exit_codes_are_those_of_the_design(error, code):
    assert error.exit_code == code


def test_every_error_has_an_exit_code_of_the_design_and_a_description():
    assert len(ALL) >= 6
    for error in ALL:
        assert error.exit_code in {1, 2, 3, 4, 5, 6}, error
        assert error.__doc__, error


def test_the_message_holds_what_where_and_the_remedy():
    error = UsageError("seed is −1", where="GenerationConfig", remedy="0 or more")
    assert str(error) == "GenerationConfig: seed is −1\n  hint: 0 or more"
    assert (error.what, error.where, error.remedy) == ("seed is −1", "GenerationConfig", "0 or more")


def test_where_and_remedy_may_be_absent():
    assert str(BitNetError("it broke")) == "it broke"
    assert str(BitNetError("it broke", where="here")) == "here: it broke"
    assert str(BitNetError("it broke", remedy="mend it")) == "it broke\n  hint: mend it"


def test_where_may_be_a_path():
    assert BitNetError("is empty", where=Path("models") / "a.gguf").where == str(Path("models/a.gguf"))


@pytest.mark.parametrize(
    ("places", "head"),
    [
        ({}, "a.gguf: is cut short"),
        ({"offset": 24}, "a.gguf at byte 24: is cut short"),
        ({"field": "general.name"}, "a.gguf (general.name): is cut short"),
        ({"field": "general.name", "offset": 0}, "a.gguf at byte 0 (general.name): is cut short"),
    ],
)
def test_a_gguf_error_names_the_file_the_byte_and_the_field(places, head):
    error = GGUFError("is cut short", path=Path("a.gguf"), remedy="fetch it again", **places)
    assert str(error) == f"{head}\n  hint: fetch it again"
    assert error.path == "a.gguf"
    assert error.reason == error.what == "is cut short"
    assert error.field == places.get("field")
    assert error.offset == places.get("offset")


def test_one_except_clause_catches_them_all():
    with pytest.raises(BitNetError):
        raise GGUFError("x", path="a.gguf")
    assert issubclass(TokenizerError, ModelFileError)


def every_error():
    """Every exception that our packages define."""
    for package in ("bitnet", "crossval", "receipts", "reference", "reports"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.endswith("__main__"):
                found = vars(importlib.import_module(module.name)).values()
                for kind in {v for v in found if isinstance(v, type) and issubclass(v, BaseException)}:
                    if kind.__module__ == module.name:
                        yield kind


def made(kind):
    """One of them, with every field given."""
    if kind.__init__ in (Exception.__init__, ValueError.__init__):
        return kind("what")
    fields = inspect.signature(kind).parameters.values()
    return kind("what", **{f.name: 7 if f.name == "offset" else f.name for f in fields if f.kind is f.KEYWORD_ONLY})


def check_copies(kind):
    error = made(kind)
    error.add_note("seen by a test")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert (type(again), again.args, vars(again)) == (kind, error.args, vars(error))
        assert str(again) == str(error)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_the_way_between_processes(kind):
    """As test workers and process pools send it; a pool waits for ever for an error that cannot be read."""
    check_copies(kind)


@pytest.mark.slow
def test_so_does_every_exception_of_every_package():
    kinds = set(every_error())
    assert len(kinds) > len(ALL)
    for kind in kinds:
        check_copies(kind)


@pytest.mark.parametrize("error", ALL)
def test_a_severity_says_whose_move_it_is_and_goes_with_the_exit_code(error):
    codes = {"internal": 1, "usage": 2, "data": 3, "environment": 4, "resource": 6}
    assert codes[error.severity] == error.exit_code


def test_an_error_as_plain_values():
    error = GGUFError("is cut short", path="a.gguf", offset=24, remedy="fetch it again")
    assert json.loads(json.dumps(error.to_dict())) == {
        "error": "GGUFError",
        "severity": "data",
        "what": "is cut short",
        "where": "a.gguf at byte 24",
        "remedy": "fetch it again",
        "exit_code": 3,
    }
    assert BitNetError("it broke").to_dict()["where"] is None
