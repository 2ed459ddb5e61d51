"""Trust files: names, times, thresholds, and every mistake by its path."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from receipts.errors import SettingError
from receipts.keys import generate
from receipts.trust import read_trust, trust_of


@pytest.fixture
def keys(tmp_path):
    return [generate(tmp_path / name)[0] for name in ("one", "two")]


def written(tmp_path, text):
    (tmp_path / "trust.toml").write_text(text)
    return tmp_path / "trust.toml"


def entry(name, file, more=""):
    return f'[[keys]]\nname = "{name}"\nfile = "{file}"\n{more}\n'


def test_a_file_says_who_is_believed(tmp_path, keys):
    pem = keys[1].read_text()
    text = f'threshold = 2\n{entry("ann", "one.pub")}[[keys]]\nname = "bob"\npem = """{pem}"""\n'
    trust = read_trust(written(tmp_path, text))
    assert trust.threshold == 2
    assert [key.name for key in trust.keys] == ["ann", "bob"]
    assert trust.by_id(trust.keys[1].id).name == "bob"
    assert trust.by_id("0" * 64) is None


def test_a_key_has_its_time(tmp_path, keys):
    text = entry("ann", "one.pub", "from = 2026-01-01T00:00:00Z\nuntil = 2027-01-01T00:00:00Z")
    [key] = read_trust(written(tmp_path, text)).keys
    assert "from 2026" in key.refusal(datetime(2025, 12, 31, tzinfo=UTC))
    assert key.refusal(datetime(2026, 6, 1, tzinfo=UTC)) == ""
    assert "ended" in key.refusal(datetime(2027, 6, 1, tzinfo=UTC))
    [key] = read_trust(written(tmp_path, entry("ann", "one.pub", "revoked = true"))).keys
    assert "revoked" in key.refusal(datetime(2026, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "signers are needed"),
        (entry("ann", "one.pub") * 2, "entered twice"),
        ("threshold = 0\n" + entry("ann", "one.pub"), "nobody would have to sign"),
        ("threshold = 2\n" + entry("ann", "one.pub") + entry("ann", "two.pub"), "signers are needed"),
        (entry("ann", "../one.pub"), "beside this one"),
        (entry("ann", "none.pub"), "cannot be read"),
        (entry("ann", "one.pub", "form = 3"), r"not known.*keys\[0\].form"),
        (entry("ann", "one.pub", "from = 2026-01-01T00:00:00"), "no time zone"),
        (entry("ann", "one.pub", "from = 2026-01-02T00:00:00Z\nuntil = 2026-01-01T00:00:00Z"), "ends before"),
        ('[[keys]]\nname = "ann"\n', "either"),
        ("[[keys]]\nname = 3\n", "no str"),
        ("keys = 3", "no list"),
        ("x = [", "not TOML"),
    ],
)
def test_every_mistake_has_its_place(tmp_path, keys, text, message):
    with pytest.raises(SettingError, match=message) as caught:
        read_trust(written(tmp_path, text))
    assert caught.value.exit_code == 2


def test_keys_can_be_named_one_by_one(keys):
    assert trust_of(tuple(keys), 2).threshold == 2
    with pytest.raises(SettingError, match="3 signers"):
        trust_of(tuple(keys), 3)
