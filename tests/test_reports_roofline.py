"""Documents of `bitnet benchmark` as pictures, and what is none."""

from __future__ import annotations

import json

import pytest

from reports import roofline
from reports.errors import ReportError

ROW = {
    "engine": "bitnet",
    "what": "decode",
    "tokens": 8,
    "position": 0,
    "threads": 1,
    "batch": 1,
    "seconds": [0.5],
    "tokens_per_second": 16.0,
    "interval": [15.0, 17.0],
    "weight_bytes": 1000,
    "memory_bytes_per_second": [1e9],
    "share_of_bandwidth": 0.5,
}
DOCUMENT = {
    "schema": "urn:bitnet-crossval:benchmark-1",
    "version": "0.1.0",
    "machine": {"cpu": "a CPU", "arch": "x86_64", "isa": "avx2"},
    "model": {"file": "m.gguf", "bytes": 1000},
    "head": "screened",
    "bandwidth": [{"threads": 1, "bytes_per_second": 1e9}],
    "rows": [ROW],
    "ratios": [],
    "slowdowns": [],
}


def read(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return roofline.read(path)


def row(**fields):
    return json.dumps(DOCUMENT | {"rows": [ROW | fields]})


@pytest.mark.parametrize("name", ["a.png", "a.SVG"])
def test_a_picture(tmp_path, name):
    out = tmp_path / "new" / name
    names = {"machine": DOCUMENT["machine"] | {"cpu": "a \x07 CPU"}, "model": {"file": "$a^$", "bytes": 1}}
    odd = DOCUMENT | names | {"rows": [ROW | {"engine": "$\\frac$"}]}
    roofline.draw(read(tmp_path, json.dumps(odd)), out)
    assert out.stat().st_size > 5000


@pytest.mark.parametrize("name", ["a.txt", "a", "a.pdf"])
def test_a_name_of_no_picture(tmp_path, name):
    with pytest.raises(ReportError, match=r"hint: let it end with \.png or \.svg"):
        roofline.draw(read(tmp_path, json.dumps(DOCUMENT)), tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "text",
    [
        *("{", b"\xff", "[" * 100_000, "[]", "3", "null"),
        *('{"schema": "other"}', '{"schema": "urn:bitnet-crossval:benchmark-1"}'),
        json.dumps({name: value for name, value in DOCUMENT.items() if name != "bandwidth"}),
        json.dumps(DOCUMENT | {"rows": []}),
        row(what="prefill"),
        row(tokens_per_second="x"),
        row(tokens_per_second=float("nan")),
        row(interval=[17.0, 18.0]),
        row(interval=[15.0]),
        row(weight_bytes=-1),
        row().replace("16.0", "1e999"),
        row(weight_bytes=10**400),
        row(weight_bytes=10**4200),
    ],
)
def test_a_document_that_is_none(tmp_path, text):
    with pytest.raises(ReportError, match="hint: give what") as refused:
        read(tmp_path, text)
    assert len(str(refused.value)) < 1000
