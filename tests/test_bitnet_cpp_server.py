"""A server as a reference: what it tells becomes rows of logits, what it cannot is refused, and no lie is believed."""

import os
import time
from pathlib import Path

import fake_llama_server as fake
import golden_models
import numpy as np
import pytest

from bitnet import gguf
from bitnet.errors import GGUFError
from bitnet.gguf import GGMLType, TensorData
from crossval.metrics import log_softmax
from reference.bitnet_cpp_server import BitnetCppServer, find_server
from reference.process import ProcessRunner
from reference.runner import LOG_PROBABILITY_ERROR, ReferenceFailedError, ReferenceUnavailableError, Request

IDS = (3, 1, 4, 1, 5)
HEAD_ROUNDS = 1e-3  # relative L2: bitnet.cpp rounds the input of its head to float16 for one row, and not for several


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    embedding = TensorData(
        name="token_embd.weight",
        shape=(fake.N_VOCAB, 4),
        type=GGMLType.F16,
        data=np.zeros(fake.N_VOCAB * 8, np.uint8),
    )
    gguf.write(path, {"general.architecture": "bitnet", "bitnet.context_length": 64}, [embedding])
    return path


@pytest.fixture
def server(tmp_path, monkeypatch, model):
    opened = []

    def start(mode="good", **options):
        monkeypatch.setenv("FAKE_SERVER", mode)
        opened.append(BitnetCppServer(model, fake.place(tmp_path), n_threads=1, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def expected(ids):
    return np.array([fake.log_probabilities(fake.table(ids[: i + 1])) for i in range(len(ids))])


@pytest.mark.parametrize("mode", ["good", "older"])
@pytest.mark.parametrize("n_batch", [None, 1, 3])
def test_rows_are_the_log_probabilities_of_every_prefix(server, mode, n_batch):
    seen = server(mode).run(Request(ids=IDS, n_batch=n_batch, n_greedy=3))
    assert seen.ids == (*IDS, *seen.generated)
    assert seen.logits.shape == (len(IDS) + 2, fake.N_VOCAB)
    assert np.abs(seen.logits - expected(seen.ids[:-1])).max() < LOG_PROBABILITY_ERROR
    assert seen.generated == tuple(seen.logits[len(IDS) - 1 :].argmax(axis=1))


@pytest.mark.parametrize("n_batch", [None, 2])
def test_the_last_position_alone(server, n_batch):
    one = server()
    for n_greedy in (0, 1, 3):
        request = Request(ids=IDS, n_batch=n_batch, n_greedy=n_greedy)
        last = one.run(Request(ids=IDS, n_batch=n_batch, n_greedy=n_greedy, last_only=True))
        every = one.run(request)
        assert (last.logits == every.logits[len(IDS) - 1 :]).all()
        assert last.ids == every.ids


def test_a_part_of_a_character_is_listed_in_spite_of_the_server(server):
    """It lists nothing where it would choose token 9, whose text is two bytes of three."""
    ids = next((i, k) for i in range(fake.N_VOCAB) for k in range(fake.N_VOCAB) if best((i, k)) == 9)
    seen = server("older").run(Request(ids=ids))
    assert np.abs(seen.logits - expected(ids)).max() < LOG_PROBABILITY_ERROR
    assert seen.logits[-1].argmax() == 9


def best(ids):
    row = fake.table(ids)
    return row.index(max(row))


def test_who_it_is(server, model):
    info = server(why="no compiler").info
    assert (info.obtained, info.family, info.name, info.log_probabilities) == ("server", "ggml", "llama.cpp", True)
    assert info.numerics["head"] == "f16"
    assert info.model_sha256 == gguf.read(model).sha256()
    assert len(info.library_sha256) == 64
    assert info.detail["chosen"].endswith("no compiler")
    assert "up to a constant" in info.detail["logits"]


def test_ids_of_a_text(server):
    one = server()
    assert one.tokenize("ab") == (1, ord("a") % fake.N_VOCAB, ord("b") % fake.N_VOCAB)
    assert one.tokenize("", add_special=False) == ()
    with pytest.raises(ReferenceUnavailableError, match="always parses"):
        one.tokenize("a", parse_special=False)
    with pytest.raises(ReferenceUnavailableError, match="no UTF-8"):
        one.tokenize("\udcff")
    with pytest.raises(ReferenceFailedError, match="no list of ids"):
        server("nonsense_tokens").tokenize("a")


def test_what_it_cannot_do_is_refused(server):
    one = server()
    for request, why in (
        (Request(ids=IDS, taps=True), "shows no operations"),
        (Request(ids=IDS, lock={("embd", -1): np.zeros((5, 4), np.float32)}), "shows no operations"),
        (Request(ids=()), "asked to evaluate"),
        (Request(ids=(fake.N_VOCAB,)), "asked to evaluate"),
    ):
        with pytest.raises(ReferenceUnavailableError, match=why):
            one.run(request)
    with pytest.raises(ReferenceUnavailableError, match="does not show how it decodes"):
        one.weights("token_embd.weight")


LIES = {
    "few": "39 probabilities for a vocabulary of 40",
    "nan": "no JSON",
    "text": "is no number",
    "twice": "is there twice",
    "other_ids": "is no id|is no token's text|is missing",
    "halved": "do not sum to 1",
    "other_choice": "it chose",
    "two": "not the probabilities of one token",
    "fewer_tokens": "it evaluated 2 tokens, and was given 3",
    "truncates": "it evaluated 3 tokens",
    "list": "it evaluated None tokens",
    "not_json": "no JSON",
    "dies": "SIGABRT",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_no_answer(server, lie):
    one = server(lie)
    with pytest.raises(ReferenceFailedError, match=LIES[lie]):
        one.run(Request(ids=IDS))


@pytest.mark.parametrize("lie", ["few", "text", "twice", "other_ids", "halved", "other_choice", "two"])
def test_a_lie_of_an_older_one_is_no_answer(server, lie):
    one = server(f"older_{lie}")
    with pytest.raises(ReferenceFailedError, match=LIES[lie]):
        one.run(Request(ids=IDS))


def test_a_server_that_hangs_is_ended(server):
    one = server("hangs", answer_seconds=1.0)
    began = time.monotonic()
    with pytest.raises(ReferenceFailedError, match="no answer within 1 s"):
        one.run(Request(ids=IDS))
    with pytest.raises(ReferenceFailedError):
        one.run(Request(ids=IDS))
    assert time.monotonic() - began < 60.0


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("zero", "below what float32 tells"),
        ("older_zero", "below what float32 tells"),
        ("no_probabilities", "gives no probabilities"),
        ("other_form", "a form that is not known"),
        ("refuses", "exceeds the context"),
    ],
)
def test_what_a_build_does_not_tell_is_unavailable(server, mode, why):
    one = server(mode)
    with pytest.raises(ReferenceUnavailableError, match=why):
        one.run(Request(ids=IDS))


def test_a_build_that_cannot_be_used_says_so_when_it_starts(server, model, tmp_path):
    with pytest.raises(ReferenceUnavailableError, match="6 of this model's have one text"):
        server("older_ambiguous")
    with pytest.raises(ReferenceUnavailableError, match="not which text is whose"):
        server("older_without_pieces")
    with pytest.raises(ReferenceUnavailableError, match="no model file"):
        BitnetCppServer(tmp_path / "none.gguf", fake.place(tmp_path))
    gguf.write(tmp_path / "empty.gguf", {"general.architecture": "bitnet"}, [])
    with pytest.raises(ReferenceUnavailableError, match=r"no model that a server.*token_embd"):
        BitnetCppServer(tmp_path / "empty.gguf", fake.place(tmp_path))
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(GGUFError):
        BitnetCppServer(tmp_path / "bad.gguf", fake.place(tmp_path))


def test_single_tokens_that_were_none_are_not_taken_for_some(server):
    """A server that evaluates everything again shows a batch, whatever it was asked for."""
    one = server("never_keeps")
    assert one.run(Request(ids=IDS)).logits.shape == (len(IDS), fake.N_VOCAB)
    with pytest.raises(ReferenceUnavailableError, match="evaluated 2 tokens at once, and not 1"):
        one.run(Request(ids=IDS, n_batch=1))


def test_the_newest_program_of_a_tree_is_taken(tmp_path):
    with pytest.raises(ReferenceUnavailableError, match="no llama-server"):
        find_server(tmp_path)
    old, new = fake.place(tmp_path / "a"), fake.place(tmp_path / "b")
    os.utime(old, (1, 1))
    assert find_server(tmp_path) == new
    new.chmod(0o644)
    assert find_server(tmp_path) == old


def no_server():
    """Why there is no real one to ask."""
    if "BITNET_CPP_DIR" not in os.environ:
        return "BITNET_CPP_DIR names no bitnet.cpp"
    try:
        find_server(Path(os.environ["BITNET_CPP_DIR"]))
    except ReferenceUnavailableError as why:
        return str(why)
    return ""


@pytest.mark.skipif(bool(no_server()), reason=no_server())
@pytest.mark.parametrize("name", ["b158_a", "bitnet_silu", "llama_tied"])
def test_a_real_server_tells_what_the_interface_shows(name):
    kwargs = {"model": str(golden_models.model(name))}
    factory = "reference.bitnet_cpp_way:open_bitnet_cpp"
    with (
        ProcessRunner(factory, {**kwargs, "wish": "shim"}, timeout=300) as shim,
        ProcessRunner(factory, {**kwargs, "wish": "server"}, timeout=300) as server,
    ):
        for n_batch in (1, None):
            request = Request(ids=IDS, n_batch=n_batch, n_greedy=12)
            shown, told = shim.run(request), server.run(request)
            assert told.ids == shown.ids
            off = np.abs(log_softmax(shown.logits) - told.logits).max(axis=1)
            assert off[len(IDS) if n_batch is None else 0 :].max() <= LOG_PROBABILITY_ERROR
            assert off.max() <= HEAD_ROUNDS * np.linalg.norm(shown.logits, axis=1).min()
        assert server.info.library_sha256 == shim.info.library_sha256
        for text in ("Once upon a time", "naïve — 🙂", ""):
            assert server.tokenize(text) == shim.tokenize(text)
