"""Limits from the environment are numbers, or an error that says what they may be."""

from __future__ import annotations

import pytest

import bitnet
from bitnet.errors import ResourceLimitError, UsageError
from bitnet.limits import BATCH, MEMORY, batch_size, check_room, memory_limit, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("2000000", 2_000_000),
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        ("512M", 512_000_000),
        ("512Mi", 512 << 20),
        (" 4k ", 4000),
        ("1T", 10**12),
        ("100B", 100),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text, where="x") == size


@pytest.mark.parametrize("text", ["", "0", "0.0001k", "-1", "two", "2XB", "1e9", "²", "१", "2 G B", "9" * 40, "inf"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="a number of bytes") as caught:
        parse_bytes(text, where="there")
    assert caught.value.where == "there"


def test_the_memory_limit(monkeypatch):
    monkeypatch.delenv(MEMORY, raising=False)
    assert memory_limit() is None
    monkeypatch.setenv(MEMORY, "  ")
    assert memory_limit() is None
    monkeypatch.setenv(MEMORY, "3GB")
    assert memory_limit() == 3_000_000_000
    monkeypatch.setenv(MEMORY, "much")
    with pytest.raises(UsageError, match="BITNET_MEMORY_LIMIT: is 'much'"):
        memory_limit()


def test_the_size_of_a_batch(monkeypatch):
    monkeypatch.delenv(BATCH, raising=False)
    assert batch_size() == 8
    monkeypatch.setenv(BATCH, " 3 ")
    assert (batch_size(), batch_size(5)) == (3, 5)
    for bad in ("0", "many", "-1", "1025", "²", "1.0", 5000 * "9"):
        monkeypatch.setenv(BATCH, bad)
        with pytest.raises(UsageError, match="BITNET_BATCH_SIZE"):
            batch_size()
    for asked in (0, -3, 1025):
        with pytest.raises(UsageError, match=f"n_batch is {asked}"):
            batch_size(asked)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.delenv(MEMORY, raising=False)
    check_room(1 << 60)
    monkeypatch.setenv(MEMORY, "100GB")
    check_room(1 << 30)
    with pytest.raises(ResourceLimitError, match="the weights take 1152922 MB") as caught:
        check_room(1152922 * 10**6)
    assert caught.value.exit_code == 6
    monkeypatch.setenv(MEMORY, "1MB")
    with pytest.raises(ResourceLimitError, match="of 1 MB 0 MB are left"):
        bitnet.load("fixtures/models/tiny-relu2.i2_s.gguf")
