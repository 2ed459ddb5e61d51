"""Commands run in this process, as a shell would see them; and what is known about all of them."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import typer
from jsonschema import Draft202012Validator

from bitnet.cli.app import app
from bitnet.cli.main import main

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "fixtures" / "models"
TINY = str(MODELS / "tiny-relu2.i2_s.gguf")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


def run(*arguments, stdin=""):
    """Run a command; `stdin` is what is piped into it, bytes that are no text as lone surrogates."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape")), encoding="utf-8")
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(a) for a in arguments])
    finally:
        sys.stdin = before
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return Done(code, *texts)


def schema(name):
    """The validator of `schemas/<name>.schema.json`."""
    return Draft202012Validator(json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text()))


def validated(text):
    """A document, valid by the schema that it names."""
    document = json.loads(text)
    name = document["schema"].removeprefix("urn:bitnet-crossval:")
    schema(name).validate(document)
    return document


def commands():
    """Every command and group as (words, command)."""

    def walk(words, command):
        yield words, command
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk((*words, name), sub)

    return list(walk((), typer.main.get_command(app)))


def leaves():
    """Every command that does something."""
    return [(words, command) for words, command in commands() if not hasattr(command, "commands")]
