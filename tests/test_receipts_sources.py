"""Places where receipts lie: every kind is read, nothing is unpacked, and bombs are refused in time."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
import time
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts import MissingReceiptError, ReceiptError, ReceiptLimitError, sources

FILES = {"a.json": b'{"n": 1}', "deep/b.json": b'{"n": 2}', "c.jsonl": b'{"n": 3}\n\n{"n": 4}\n'}
PASSED_OVER = {"rows/d.json": b"[]", "e.txt": b"{}", "deep/rows/f.json": b"[]"}
FOUND = [b'{"n": 1}', b'{"n": 2}', b'{"n": 3}', b'{"n": 4}']


def read(*places):
    return [(name, one if isinstance(one, bytes) else one.read_bytes()) for name, one in sources.sources(places)]


def contents(*places):
    return sorted(content.strip() for _, content in read(*places))


def packed_zip(path, files=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files or FILES | PASSED_OVER).items():
            archive.writestr(name, content)
    return path


def packed_tar(path, files=None, mode="w:gz", **changes):
    with tarfile.open(path, mode) as archive:
        for name, content in (files or FILES | PASSED_OVER).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in changes.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_tar_archives(tmp_path, suffix):
    mode = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[suffix]
    path = packed_tar(tmp_path / f"all.{suffix}", mode=mode)
    assert contents(path) == FOUND
    assert {name for name, _ in read(path)} >= {f"{path}!a.json", f"{path}!c.jsonl:3"}


def test_zip_archives_and_folders_and_lines(tmp_path):
    assert contents(packed_zip(tmp_path / "all.zip")) == FOUND
    folder = tmp_path / "folder"
    for name, content in (FILES | PASSED_OVER).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert contents(folder) == FOUND[:2]
    assert contents(folder, folder / "c.jsonl") == FOUND


def test_members_that_lead_elsewhere_are_names_alone(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('"secret"')
    nasty = {"../../up.json": b"1", "/etc/x.json": b"2", "C:\\x.json": b"3"}
    before = sorted(tmp_path.rglob("*"))
    assert contents(packed_tar(tmp_path / "n.tar", nasty, "w")) == [b"1", b"2", b"3"]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        linked = packed_tar(tmp_path / "l.tar", {"a.json": b""}, "w", type=kind, linkname=str(secret))
        assert contents(linked) == []
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "n.tar", tmp_path / "l.tar"])


def test_a_bomb_is_refused_before_it_goes_off(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_UNPACKED", 64 * 2**20)
    began = time.monotonic()
    big = b" " * (32 * 2**20)
    for path in (packed_zip(tmp_path / "b.zip", {"a.json": big}), packed_tar(tmp_path / "b.tgz", {"a.json": big})):
        with pytest.raises(ReceiptLimitError, match="larger than"):
            read(path)
    many = {f"{i}.bin": big for i in range(4)}
    for path in (packed_zip(tmp_path / "m.zip", many), packed_tar(tmp_path / "m.tgz", many)):
        with pytest.raises(ReceiptLimitError, match="packs more"):
            read(path)
    assert time.monotonic() - began < 20


def test_too_many_members_or_receipts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_MEMBERS", 3)
    for path in (packed_zip(tmp_path / "m.zip"), packed_tar(tmp_path / "m.tar", mode="w")):
        with pytest.raises(ReceiptLimitError, match="packs more"):
            read(path)
    monkeypatch.setattr(sources, "MAX_RECEIPTS", 1)
    (tmp_path / "l.jsonl").write_bytes(FILES["c.jsonl"])
    with pytest.raises(ReceiptLimitError, match="more than 1"):
        read(tmp_path / "l.jsonl")


def test_a_giant_header_is_refused_before_it_is_held(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    path = tmp_path / "pax.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(4096)))
    with pytest.raises(ReceiptError):
        read(path)


def test_a_giant_directory_is_refused_before_it_is_read(tmp_path):
    path = packed_zip(tmp_path / "d.zip")
    raw = bytearray(path.read_bytes())
    raw[-10:-6] = (2**31).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ReceiptLimitError, match="directory"):
        read(path)
    path.write_bytes(raw[:-22] + b"PK\6\7" + bytes(16) + raw[-22:-10] + bytes(4) + raw[-6:])
    with pytest.raises(ReceiptLimitError, match="directory"):
        read(path)


@settings(max_examples=150)
@given(st.data())
def test_damage_is_a_receipt_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damage"
    folder.mkdir(exist_ok=True)
    suffix = data.draw(st.sampled_from(["zip", "tar", "tgz", "tar.xz", "tar.bz2"]))
    path = folder / f"a{os.getpid()}.{suffix}"
    if suffix == "zip":
        packed_zip(path)
    else:
        packed_tar(path, mode={"tar": "w", "tgz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}[suffix])
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(ReceiptError):
        read(path)


def test_what_is_missing_or_cut_is_told(tmp_path):
    with pytest.raises(MissingReceiptError):
        read(tmp_path / "none")
    whole = packed_tar(tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReceiptError, match="no archive"):
        read(tmp_path / "a.tgz")
    (tmp_path / "b.zip").write_bytes(zlib.compress(b"x"))
    with pytest.raises(ReceiptError, match="no archive"):
        read(tmp_path / "b.zip")
