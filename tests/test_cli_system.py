"""`bitnet system info` and `devices`."""

from __future__ import annotations

from command_line import run, validated

import bitnet


def test_info_has_machine_settings_caches_and_versions(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "blob").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    document = validated(run("system", "info", "--threads", "3", "--seed", "4", "--format", "json").out)
    settings = {s["name"]: s for s in document["settings"]}
    assert (settings["BITNET_NUM_THREADS"]["value"], settings["BITNET_NUM_THREADS"]["origin"]) == ("3", "flag")
    assert settings["BITNET_SEED"]["origin"] == "flag"
    assert document["versions"]["bitnet"] == bitnet.__version__
    hub = document["caches"][0]
    assert hub["path"] == str(tmp_path)
    assert 1000 <= hub["n_bytes"] < 1200  # the blob once, and the link itself
    assert document["machine"]["memory_total"] > document["machine"]["memory_free"] > 0


def test_info_for_people():
    done = run("system", "info")
    assert done.code == 0
    for part in ("BITNET_TOKENIZER", "BITNET_OFFLINE", "HF_HOME", "HF_TOKEN", "kernels", "numba"):
        assert part in done.out


def test_devices():
    document = validated(run("system", "devices", "--format", "json").out)
    assert [d["name"] for d in document["devices"]][:2] == ["cpu", "plain"]
    listed = run("system", "devices").out
    assert all(d.name in listed for d in bitnet.devices())
    for device in document["devices"]:
        assert (device["reason"] is None) == device["available"]
