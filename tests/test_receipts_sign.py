"""Signatures: over exactly these bytes, by whom one trusts, and as in-toto and DSSE have it."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from receipt_liars import NOW

from fixtures.receipts import sample
from fixtures.receipts.changes import ROWS
from receipts import ReceiptError, write
from receipts.keys import generate, read_private
from receipts.sign import PAYLOAD_TYPE, decode, encode, envelope_path, pae, read_envelope, sign
from receipts.trust import read_trust, trust_of
from receipts.verify import verify


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "ci" / "r.json"
    write(sample.minimal(), path, ROWS)
    public, _ = generate(tmp_path / "ann")
    sign(path, tmp_path / "ann")
    return path, public


def outcome(path, trust):
    report = verify(path, gate=False, trust=trust, now=NOW)
    return report.exit_code, {c.name: c.outcome for c in report.checks if c.level == "signature"}


def test_a_signed_receipt_is_believed(signed):
    path, public = signed
    code, found = outcome(path, trust_of((public,)))
    assert code == 0
    assert found == dict.fromkeys(("signature.statement", "signature.key.ann.pub", "signature.threshold"), "pass")


def test_an_unsigned_one_is_refused_where_it_is_asked(signed):
    path, public = signed
    envelope_path(path).unlink()
    assert outcome(path, trust_of((public,))) == (5, {"signature.envelope": "fail"})
    assert verify(path, gate=False, now=NOW).exit_code == 0


def test_any_byte_counts_even_white_space(signed):
    path, public = signed
    path.write_bytes(path.read_bytes() + b"\n")
    assert verify(path, gate=False, now=NOW).exit_code == 0
    assert outcome(path, trust_of((public,)))[0] == 5


def test_a_stranger_is_told_and_not_believed(signed, tmp_path):
    path, _ = signed
    other, _ = generate(tmp_path / "bob")
    code, found = outcome(path, trust_of((other,)))
    assert code == 5
    assert "inconclusive" in found.values()
    assert found["signature.threshold"] == "fail"


def test_two_signers_are_two(signed, tmp_path):
    path, ann = signed
    bob, _ = generate(tmp_path / "bob")
    both = trust_of((ann, bob), 2)
    assert outcome(path, both)[0] == 5
    sign(path, tmp_path / "bob")
    assert outcome(path, both)[0] == 0
    sign(path, tmp_path / "bob")  # again changes nothing
    assert len(read_envelope(envelope_path(path)).signatures) == 2


def test_old_and_new_keys_of_one_signer_are_one(signed, tmp_path):
    path, _ = signed
    generate(tmp_path / "new")
    sign(path, tmp_path / "new")
    text = "".join(f'[[keys]]\nname = "ann"\nfile = "{name}.pub"\n' for name in ("ann", "new"))
    (tmp_path / "trust.toml").write_text(text)
    assert outcome(path, read_trust(tmp_path / "trust.toml"))[0] == 0
    generate(tmp_path / "bob")
    (tmp_path / "trust.toml").write_text('threshold = 2\n[[keys]]\nname = "bob"\nfile = "bob.pub"\n' + text)
    assert outcome(path, read_trust(tmp_path / "trust.toml"))[0] == 5


@pytest.mark.parametrize(
    ("more", "code"),
    [("", 0), ("revoked = true", 5), ("until = 2026-01-01T00:00:00Z", 5), ("from = 2026-01-01T00:00:00Z", 0)],
)
def test_keys_have_their_time(signed, tmp_path, more, code):
    path, _ = signed
    (tmp_path / "trust.toml").write_text(f'[[keys]]\nname = "ann"\nfile = "ann.pub"\n{more}\n')
    assert outcome(path, read_trust(tmp_path / "trust.toml"))[0] == code


def test_a_signature_of_another_receipt_is_none(signed, tmp_path):
    path, public = signed
    other = tmp_path / "other" / "r.json"
    write(sample.full(), other)
    shutil.copy(envelope_path(path), envelope_path(other))
    assert outcome(other, trust_of((public,)))[1]["signature.statement"] == "fail"


def test_a_renamed_receipt_is_the_same(signed, tmp_path):
    path, public = signed
    path.rename(path.with_name("downloaded.json"))
    envelope_path(path).rename(envelope_path(path.with_name("downloaded.json")))
    assert outcome(path.with_name("downloaded.json"), trust_of((public,)))[0] == 0


def test_a_new_receipt_drops_old_signatures(signed, tmp_path):
    path, _ = signed
    generate(tmp_path / "bob")
    write(sample.full(), path)
    sign(path, tmp_path / "bob")
    assert len(read_envelope(envelope_path(path)).signatures) == 1


def test_it_is_what_in_toto_and_dsse_say(signed, tmp_path):
    path, _ = signed
    data = json.loads(envelope_path(path).read_text())
    assert data["payloadType"] == "application/vnd.in-toto+json"
    payload = base64.b64decode(data["payload"])
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"][0]["name"] == "r.json"
    assert len(statement["subject"]) == 1 + len(ROWS)
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"  # the example of DSSE's own protocol text
    )
    key = read_private(tmp_path / "ann").public_key()
    key.verify(base64.b64decode(data["signatures"][0]["sig"]), pae(PAYLOAD_TYPE, payload))


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "text/plain"},
        {"payload": "e30"},
        {"payload": "e31="},
        {"payload": 3},
        {"signatures": []},
        {"signatures": [{"keyid": "a"}]},
        {"signatures": [{"keyid": "a", "sig": "AA=="}] * 2},
        {"signatures": [{"keyid": "a", "sig": "A===="}]},
        {"more": 1},
    ],
)
def test_what_is_no_envelope_is_refused(change):
    data = {"payloadType": PAYLOAD_TYPE, "payload": "e30=", "signatures": [{"keyid": "a", "sig": "AA=="}]}
    assert decode(data).payload == b"{}"
    with pytest.raises(ReceiptError):
        decode(data | change)


@given(
    st.binary(max_size=64),
    st.lists(
        st.tuples(st.text("0123456789abcdef", max_size=8), st.binary(max_size=8)),
        min_size=1,
        max_size=4,
        unique_by=lambda s: s[0],
    ),
)
def test_envelopes_round_trip(payload, signatures):
    data = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": k, "sig": base64.b64encode(s).decode()} for k, s in signatures],
    }
    assert json.loads(encode(decode(data))) == data


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=8),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig"]), x, max_size=4)
        ),
    )
)
def test_anything_else_is_a_receipt_error(data):
    with pytest.raises(ReceiptError):
        decode(data)
