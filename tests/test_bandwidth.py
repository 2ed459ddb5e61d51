"""Memory is read, and faster than a disk."""

from __future__ import annotations

from crossval import bandwidth


def test_it_is_a_rate_of_memory(monkeypatch):
    monkeypatch.setattr(bandwidth, "BYTES", 2**22)
    for threads in (1, 2):
        assert 1e8 < bandwidth.read_bandwidth(threads) < 1e13
