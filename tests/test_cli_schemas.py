"""Every command with --format json: one document on stdout, by its schema; and the schemas themselves."""

from __future__ import annotations

import json

import pytest
from command_line import MODELS, ROOT, TINY, leaves, run, schema, validated
from hub_server import serve
from jsonschema import Draft202012Validator

#: Commands → (arguments, exit code, schema). HERE is a folder of the test's own.
CASES = {
    ("model", "info"): [([TINY], 0), ([TINY, "--tensors", "--sha256"], 0), ([ROOT / "fixtures/hf/bitnet-bf16"], 0)],
    ("model", "list"): [([MODELS], 0), ([ROOT / "fixtures/hf"], 0)],
    ("model", "download"): [(["someone/tiny"], 0)],
    ("model", "verify"): [([TINY], 0)],
    ("model", "compat"): [
        ([TINY], 0),
        ([MODELS / "tiny-llama.tq2_0.gguf"], 0),
        ([ROOT / "fixtures/hf/bitnet-bf16"], 0),
    ],
    ("model", "compare"): [([TINY, TINY], 0), ([TINY, MODELS / "tiny-llama.f32.gguf"], 1)],
    ("model", "convert"): [([TINY, "HERE/out.gguf", "--type", "tq2_0"], 0)],
    ("infer", "run"): [
        (["-m", TINY, "-p", "One day", "-n", "3"], 0),
        (["-m", TINY, "-p", "Hi", "--chat", "-n", "2"], 0),
    ],
    ("infer", "batch"): [(["HERE/in.jsonl", "-o", "HERE/out.jsonl", "-m", TINY, "-n", "3"], 1)],
    ("system", "info"): [([], 0), (["--threads", "1", "--device", "plain"], 0)],
    ("system", "devices"): [([], 0)],
    ("system", "doctor"): [([], 0)],
}
WITHOUT = {("infer", "chat")}  # a conversation is no report; what /save writes has a schema, and a test of its own
NAMES = sorted(path.name.removesuffix(".schema.json") for path in (ROOT / "schemas").glob("*.schema.json"))
OURS = [name for name in NAMES if name != "inference-1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"prompt": "One day"}\n{"prompt": 3}\n')
    with serve() as hub:
        hub.files = {"tiny.gguf": b"content"}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for variable in ("HF_HUB_CACHE", "BITNET_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "LLAMA_CPP_LIB_PATH"):
            monkeypatch.delenv(variable, raising=False)
        yield tmp_path


def test_every_command_is_tried():
    assert set(CASES) | WITHOUT == {words for words, _ in leaves()}
    with_format = {words for words, c in leaves() if any("--format" in p.opts for p in c.params)}
    assert with_format == set(CASES)


@pytest.mark.parametrize(
    ("words", "arguments", "code"), [(w, a, c) for w, cases in CASES.items() for a, c in cases], ids=str
)
def test_the_document_is_alone_on_stdout_and_valid(words, arguments, code, here):
    done = run(*words, *(str(a).replace("HERE", str(here)) for a in arguments), "--format", "json")
    assert done.code == code, done.err
    document = validated(done.out)
    command = document["schema"].removeprefix("urn:bitnet-crossval:")
    assert command in {f"{'-'.join(words)}-1", f"{'-'.join(words)}-summary-1"}
    assert not schema(command).is_valid(document | {"extra": 1})
    assert not schema(command).is_valid(dict(list(document.items())[1:]))


@pytest.mark.parametrize("words", sorted(CASES), ids=" ".join)
def test_a_failure_is_a_document_too(words, tmp_path):
    done = run(*words, "--format", "json", "--nonsense")
    assert (done.code, done.err) == (2, "")
    assert validated(done.out)["severity"] == "usage"


@pytest.mark.parametrize("name", OURS)
def test_schemas_are_closed_named_and_described(name):
    body = json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(body)
    assert body["$id"] == f"urn:bitnet-crossval:{name}"
    assert body["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for definition in objects(body):
        if "properties" in definition:
            assert definition["additionalProperties"] is False
            assert set(definition["required"]) == set(definition["properties"])
            assert all("description" in p or "$ref" in p for p in definition["properties"].values())


def objects(node):
    """Every schema of an object inside a schema."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)
