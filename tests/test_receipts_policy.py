"""Policies: what is shipped, what one writes, and every mistake by its path."""

from __future__ import annotations

from datetime import date

import pytest

from receipts.errors import SettingError
from receipts.policy import SHIPPED, read_policy

OURS = """
version = 1
name = "ours"
[[lanes]]
match = "* · oracle"
rungs = ["operations", "weights"]
[limits]
operations = 1e-6
[evidence]
cases = 10
age_days = 7
clean = true
[near_ties]
share = 0.1
[[deviations]]
name = "llama.cpp-silu"
lanes = "tiny-relu2 *"
expires = 2027-06-30
reason = "reported"
[baseline]
files = ["baselines/epyc.json"]
missing = "pass"
speed = 0.8
drift = 4
bits = true
"""


def written(tmp_path, text):
    (tmp_path / "gate.toml").write_text(text)
    return tmp_path / "gate.toml"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_policies_are_read_by_name(path):
    assert read_policy(path.stem).name == path.stem


def test_a_policy_of_ones_own(tmp_path):
    policy = read_policy(written(tmp_path, OURS))
    assert policy.name == "ours"
    assert policy.lanes[0].rungs == ("weights", "operations")  # in the order of the ladder
    assert policy.limits == {"operations": 1e-6}
    assert policy.evidence.clean
    assert policy.baseline.files == (tmp_path / "baselines" / "epyc.json",)
    assert policy.allows("llama.cpp-silu", "tiny-relu2 · x").expires == date(2027, 6, 30)
    assert policy.allows("llama.cpp-silu", "other") is None
    assert policy.allows("other", "tiny-relu2 · x") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 is not known"),
        ("version = 2", "2 is not known"),
        ("version = true", "no int"),
        ("version = 1\nlimit = 3", "not known here|is not known"),
        ("version = 1\n[limits]\noperation = 1", r"limits\.operation"),
        ("version = 1\n[limits]\noperations = -1", "at least 0"),
        ("version = 1\n[limits]\noperations = nan", "finite"),
        ('version = 1\n[[lanes]]\nmatch = "*"\nrungs = ["sums"]', "no rung"),
        ("version = 1\n[[lanes]]", r"lanes\[0\]\.match"),
        ('version = 1\n[[deviations]]\nname = "a"\nreason = "b"', "never for ever"),
        ('version = 1\n[baseline]\nmissing = "maybe"', "pass or fail"),
        ("version = 1\n[baseline]\ndrift = 0.5", "1 or more"),
        ("version = 1\n[evidence]\ncases = -1", "below 0"),
        ("version =", "not TOML"),
    ],
)
def test_every_mistake_has_its_place(tmp_path, text, message):
    with pytest.raises(SettingError, match=message) as caught:
        read_policy(written(tmp_path, text))
    assert caught.value.exit_code == 2
    assert "gate.toml" in caught.value.file


def test_a_missing_policy_names_the_shipped_ones():
    with pytest.raises(SettingError, match="release, strict"):
        read_policy("lenient")
