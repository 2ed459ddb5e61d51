"""`bitnet infer run`: one prompt."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from command_line import MODELS, ROOT, TINY, run, validated

import bitnet


def infer(*more, stdin=""):
    return run("infer", "run", "-m", TINY, "-n", "12", *more, stdin=stdin)


@pytest.fixture(scope="module")
def model():
    with bitnet.load(TINY) as loaded:
        yield loaded


def test_the_text_is_the_library_s(model):
    done = infer("-p", "One day Anna")
    text = model.generate("One day Anna", max_new_tokens=12).text
    assert done.out == f"One day Anna{text}\n"
    assert "4 prompt tokens" in done.err
    assert "12 new" in done.err
    quiet = infer("-p", "One day Anna", "-q")
    assert (quiet.out, quiet.err) == (f"{text}\n", "")
    assert infer("-p", "-", stdin="One day Anna").out == done.out


@pytest.mark.parametrize("preset", ["greedy", "balanced", "creative"])
def test_presets(preset, model):
    document = validated(infer("-p", "The duck", "--preset", preset, "--seed", "7", "--format", "json").out)
    config = getattr(bitnet.GenerationConfig, preset)(max_new_tokens=12, seed=7)
    assert document["settings"] == config.to_dict()
    assert document["ids"] == list(model.generate("The duck", config).ids)


def test_what_is_named_beside_a_preset_wins(monkeypatch):
    monkeypatch.setenv("BITNET_SEED", "5")
    more = ("--preset", "creative", "--temperature", "0.5", "--stop", ".", "--stop", "!", "--context", "slide")
    settings = validated(infer("-p", "The duck", *more, "--format", "json").out)["settings"]
    assert (settings["temperature"], settings["top_p"], settings["seed"]) == (0.5, 0.95, 5)
    assert (settings["stop"], settings["context"]) == ([".", "!"], "slide")


def test_chat(model):
    done = infer("-p", "Who are you?", "--chat", "-q")
    assert done.out == model.generate([{"role": "user", "content": "Who are you?"}], max_new_tokens=12).text + "\n"
    assert run("infer", "run", "-m", MODELS / "tiny-llama.f32.gguf", "-p", "x", "--chat").code == 3


def test_the_device_and_the_threads_do_not_change_the_text():
    texts = {infer("-p", "The duck", "-q", *more).out for more in ([], ["--threads", "1"], ["--device", "plain"])}
    assert len(texts) == 1


def test_a_checkpoint_and_a_tokenizer_of_one_s_own(tmp_path):
    folder = ROOT / "fixtures/hf/bitnet-bitlinear"
    assert run("infer", "run", "-m", folder, "-p", "x").code == 3  # it has no tokenizer
    done = infer("-p", "The duck", "--tokenizer", TINY)
    assert "explicit path" in done.err


def test_a_model_by_the_name_of_its_repository(monkeypatch, tmp_path):
    from hub_server import serve

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for variable in ("HF_HUB_CACHE", "BITNET_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with serve() as hub, open(TINY, "rb") as file:  # noqa: PTH123  # a fixture
        hub.files = {"tiny.gguf": file.read()}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = run("infer", "run", "-m", "someone/tiny", "-p", "One day Anna", "-n", "12", "-q")
    assert done.code == 0
    assert done.out == infer("-p", "One day Anna", "-q").out


@pytest.mark.slow
def test_where_nothing_can_be_written_one_note_says_so_and_it_works(tmp_path):
    """The home and its cache lie below a file, which stops even the superuser; kernels are compiled in memory."""
    (tmp_path / "file").write_text("")
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    home = str(tmp_path / "file" / "home")
    command = [sys.executable, "-m", "bitnet", "infer", "run", "-m", TINY, "-p", "One day", "-n", "2"]
    done = subprocess.run(
        command,
        env=environment | {"HOME": home, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("One day")
    assert done.stderr.count("no cache folder can be written") == 1
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--format", "json"]])
def test_where_kernels_cannot_be_kept_one_note_says_so_and_it_works(more, tmp_path):
    command = [sys.executable, "-m", "bitnet", "infer", "run", "-m", TINY, "-p", "One day", "-n", "2", *more]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 20; exec "$@"', "sh", *command],
        env={k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"XDG_CACHE_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "One day" in done.stdout or more
    told = done.stdout if more else done.stderr
    assert told.count("cannot keep kernels (File too large), so kernels are compiled at every start") == 1
