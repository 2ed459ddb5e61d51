"""Settings files: typed, whole, and every mistake with its path."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receipts.errors import SettingError
from receipts.settings import MAX_BYTES, read_toml


def table(tmp_path, text):
    (tmp_path / "s.toml").write_text(text)
    return read_toml(tmp_path / "s.toml")


def test_values_have_types(tmp_path):
    root = table(tmp_path, 'a = "x"\nb = true\nc = 1.5\nd = 3\ne = ["y"]\nf = 2026-01-02\n[g]\nh = 1\n[[i]]\nj = 1\n')
    assert (root.text("a"), root.flag("b"), root.number("c"), root.count("d")) == ("x", True, 1.5, 3)
    assert root.texts("e") == ("y",)
    assert root.day("f").isoformat() == "2026-01-02"
    assert root.table("g").count("h") == 1
    assert [inner.path for inner in root.tables("i")] == ["i[0]"]
    root.end()


def test_absent_keys_have_defaults(tmp_path):
    root = table(tmp_path, "")
    assert (root.text("a"), root.flag("b"), root.number("c"), root.count("d", 7)) == ("", False, None, 7)
    assert root.day("f") is None
    assert root.moment("f") is None


def test_what_nobody_took_is_a_mistake(tmp_path):
    root = table(tmp_path, "a = 1\nb = 2\n")
    root.count("a")
    with pytest.raises(SettingError, match=r"not known.*'b'"):
        root.end()


@pytest.mark.parametrize("ask", ["text", "flag", "texts", "day", "moment", "table", "tables"])
def test_another_type_is_a_mistake(tmp_path, ask):
    with pytest.raises(SettingError, match="in 'a'"):
        getattr(table(tmp_path, "a = 1.5"), ask)("a")


def test_too_large_a_file_is_refused(tmp_path):
    with pytest.raises(SettingError, match="larger"):
        table(tmp_path, "#" * (MAX_BYTES + 1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_a_mistake(tmp_path, raw):
    (tmp_path / "s.toml").write_bytes(raw)
    try:
        read_toml(tmp_path / "s.toml").end()
    except SettingError as error:
        assert error.file  # noqa: PT017  # most bytes are no mistake at all
