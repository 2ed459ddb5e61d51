"""The devices of a machine, with and without a graphics card that works."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

import bitnet
from bitnet import machine
from bitnet.api import default_threads
from bitnet.kernels import instruction_set
from bitnet.machine import Devices


def fake_cupy(monkeypatch, *, cards=1, error=None):
    def available():
        if error is not None:
            raise error
        return cards > 0

    runtime = SimpleNamespace(
        getDeviceCount=lambda: cards,
        getDeviceProperties=lambda i: {"name": b"NVIDIA H200 <b>", "major": 9, "minor": 0},
        memGetInfo=lambda: (100 << 30, 140 << 30),
    )
    cuda = SimpleNamespace(is_available=available, runtime=runtime, Device=lambda i: nullcontext())
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))


def test_the_processor():
    cpu, plain, *_ = bitnet.devices()
    assert (cpu.name, plain.name) == ("cpu", "plain")
    for device in (cpu, plain):
        assert device.available
        assert device.reason is None
        assert device.threads == default_threads()
        assert 0 < device.memory_free <= device.memory_total
        assert device.description
    assert instruction_set("cpu") in cpu.capabilities


def test_a_device_that_is_available_can_be_loaded_on():
    from golden_models import model

    for device in bitnet.devices():
        if device.available:
            assert bitnet.load(model("b158_a"), device=device.name).logits([1]).shape == (1, 512)
        else:
            with pytest.raises(bitnet.UsageError, match="no device"):
                bitnet.load(model("b158_a"), device=device.name)


def test_no_cupy(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    card = bitnet.devices()[-1]
    assert (card.name, card.kind, card.available) == ("cuda", "gpu", False)
    assert "pip install" in card.reason
    assert card.memory_total is None


def test_cupy_without_a_card(monkeypatch):
    fake_cupy(monkeypatch, cards=0)
    assert "no CUDA device" in bitnet.devices()[-1].reason


def test_cupy_that_does_not_work(monkeypatch):
    fake_cupy(monkeypatch, error=RuntimeError("libcuda.so\nis missing"))
    assert bitnet.devices()[-1].reason == "cupy does not work: libcuda.so is missing"


def test_cards(monkeypatch):
    fake_cupy(monkeypatch, cards=2)
    cards = bitnet.devices()[2:]
    assert [card.name for card in cards] == ["cuda:0", "cuda:1"]
    assert (cards[0].memory_free, cards[0].memory_total) == (100 << 30, 140 << 30)
    assert cards[0].capabilities == ("sm_90",)
    assert not cards[0].available  # there are no kernels for it, and it says so
    assert cards[0].reason


def test_for_programs_and_for_readers(monkeypatch):
    fake_cupy(monkeypatch)
    found = bitnet.devices()
    assert isinstance(found, Devices)
    assert len(json.loads(json.dumps([d.to_dict() for d in found]))) == 3
    page = found._repr_html_()
    assert "NVIDIA H200 &lt;b&gt;" in page
    assert page.count("<tr>") == 4
    assert found[0].description in found[0]._repr_html_()


def test_the_processor_names_itself_or_its_machine(monkeypatch):
    def nothing(*_, **__):
        raise OSError

    monkeypatch.setattr(machine.Path, "read_text", nothing)
    assert machine._processor()
