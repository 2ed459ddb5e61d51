"""Reading what a stranger wrote: limits, versions, links, and no traceback whatever the bytes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.receipts import sample
from fixtures.receipts.build import HERE
from fixtures.receipts.changes import ROWS
from receipts import MissingReceiptError, Receipt, ReceiptError, ReceiptLimitError, read, read_table, write
from receipts.read import MAX_DEPTH, MAX_RECEIPT_BYTES, check_version
from receipts.write import encode

VALID = sorted((HERE / "valid").glob("*.json"))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "inference.json"
    return path, write(sample.minimal(), path, ROWS)


@pytest.mark.parametrize("path", VALID, ids=lambda p: p.stem)
def test_round_trip_to_equal_bytes(path):
    receipt = read(path)
    assert isinstance(receipt, Receipt)
    assert encode(receipt) == path.read_bytes()


def test_tables_come_back(written):
    path, receipt = written
    tables = {side.table: read_table(path, side) for side in receipt.side_files}
    assert tables == ROWS


def test_a_missing_file_is_the_callers_mistake(tmp_path):
    with pytest.raises(MissingReceiptError, match="No such file") as caught:
        read(tmp_path / "none.json")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: os.mkfifo(p)], ids=["folder", "pipe"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    path = tmp_path / "odd.json"
    make(path)
    with pytest.raises(MissingReceiptError):
        read(path)


def test_a_path_with_a_null_byte_is_refused():
    with pytest.raises(MissingReceiptError):
        read("a\0b")


def test_the_message_names_file_and_place(tmp_path):
    path = tmp_path / "r.json"
    data = sample.minimal().to_dict()
    data["lanes"][0]["rungs"][0]["outcome"] = "great"
    path.write_text(json.dumps(data))
    with pytest.raises(ReceiptError, match=r"r.json: 'great' is not one of .* in 'lanes\[0\].rungs\[0\].outcome'"):
        read(path)


def test_too_large_is_refused(tmp_path):
    path = tmp_path / "r.json"
    with path.open("wb") as stream:
        stream.truncate(MAX_RECEIPT_BYTES + 1)
    with pytest.raises(ReceiptLimitError, match="larger"):
        read(path)


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 1000, "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)])
def test_too_deep_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ReceiptLimitError, match="deeper"):
        read(path)


def test_brackets_in_text_are_no_depth(tmp_path):
    path = tmp_path / "r.json"
    receipt = sample.minimal()
    write(replace(receipt, identity=replace(receipt.identity, command='["\\"' + "[{" * 100)), path)
    assert read(path).identity.command.count("[") == 101


def test_unended_text_full_of_quotes_takes_linear_time(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('"' + '\\"' * 2_000_000)
    with pytest.raises(ReceiptError, match="not JSON"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"nul", b"1" * 5000, b'{"a":1,"a":2}', b"[]", b"3", b"\xef\xbb\xbf{}", b'{"a":1e999}']
)
def test_every_other_text_is_refused_plainly(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ReceiptError) as caught:
        read(path)
    assert caught.value.file == str(path)
    assert not isinstance(caught.value, MissingReceiptError)


@pytest.mark.parametrize("version", ["1.0.0", "1.0"])
def test_known_versions_are_read(version):
    check_version(version)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("2.0.0", "schema 2 is not known"),
        ("0.9.0", "schema 0 is not known"),
        ("1.1.0", "newer than this package"),
        ("1", "not a version"),
        ("1.0.0 ", "not a version"),
        ("01.0.0", "not a version"),
        ("٣.0.0", "not a version|not known"),
        (1.0, "not a version"),
        (None, "missing"),
        ([], "not a version"),
    ],
)
def test_other_versions_are_refused(version, why):
    with pytest.raises(ReceiptError, match=why) as caught:
        check_version(version)
    assert caught.value.path == "schema_version"


def test_an_older_minor_version_is_read(monkeypatch, tmp_path):
    path = tmp_path / "r.json"
    write(sample.minimal(), path)
    module = importlib.import_module("receipts.read")  # the name `receipts.read` is the function
    monkeypatch.setattr(module, "SCHEMA_VERSION", "1.7.0")
    assert read(path).schema_version == "1.0.0"


def test_a_changed_side_file_is_refused(written):
    path, receipt = written
    side = receipt.side_files[0]
    file = path.parent / side.file
    file.write_bytes(file.read_bytes().replace(b"1280", b"1281"))
    with pytest.raises(ReceiptError, match="differs from the listed sha256"):
        read_table(path, side)


def test_a_missing_side_file_is_refused(written):
    path, receipt = written
    (path.parent / receipt.side_files[0].file).unlink()
    with pytest.raises(ReceiptError, match="missing") as caught:
        read_table(path, receipt.side_files[0])
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("file", ["../rows.json", "/etc/passwd", "rows/../../x.json", "rows/x.json", "rows/a.json\n"])
def test_no_side_file_is_opened_elsewhere(written, file):
    path, receipt = written
    with pytest.raises(ReceiptError, match=r"not rows/<sha256>\.json"):
        read_table(path, replace(receipt.side_files[0], file=file))


def test_no_link_is_followed_out_of_the_folder(written, tmp_path_factory):
    path, receipt = written
    side = receipt.side_files[0]
    file = path.parent / side.file
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "rows.json"
    elsewhere.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(elsewhere)
    with pytest.raises(ReceiptError, match="leads out"):
        read_table(path, side)


def test_a_table_with_other_rows_than_listed_is_refused(written):
    path, receipt = written
    with pytest.raises(ReceiptError, match="3 listed rows"):
        read_table(path, replace(receipt.side_files[0], rows=3))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 9000), put=st.binary(max_size=3), gone=st.integers(0, 3))
def test_no_bytes_make_anything_but_a_receipt_or_its_error(tmp_path, cut, put, gone):
    content = (HERE / "valid" / "minimal.json").read_bytes()
    path = tmp_path / "r.json"
    path.write_bytes(content[:cut] + put + content[cut + gone :])
    with contextlib.suppress(ReceiptError):
        assert isinstance(read(path), Receipt)
