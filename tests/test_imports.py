"""Imports go one way: every arrow between the packages is in the table below, wherever in a file it is written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Folder → what it may import of the others. A folder always may import itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    "bitnet": (),
    "reference": ("bitnet.gguf",),  # the container reader: bytes and names, no arithmetic
    "crossval": ("bitnet", "reference", "receipts"),
    "receipts": (),
    "reports": ("receipts",),
    "schemas": (),
    "fixtures": ("bitnet", "receipts"),  # only what builds the data; the data itself is no code
    "tests": ("bitnet", "reference", "crossval", "receipts", "reports", "schemas", "fixtures"),
}

#: The engine owes nothing to those it is compared with; `receipts` and `reports` work where no engine is installed.
FOREIGN = ("llama_cpp", "sentencepiece", "torch", "transformers")
WITHOUT_FOREIGN = ("bitnet", "receipts", "reports")

LOADERS = ("import_module", "__import__", "find_spec", "importorskip")


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module of `package` imports, at any depth of the code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}".lstrip(".")) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(name := node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in LOADERS and isinstance(name.value, str):
                yield node.lineno, name.value


def forbidden(folder: str, dotted: str) -> bool:
    """Whether a module in `folder` must not import `dotted`."""
    root = dotted.split(".")[0]
    if root in FOREIGN:
        return folder in WITHOUT_FOREIGN
    if root == folder or root not in ALLOWED:
        return False
    return not any(dotted == allowed or dotted.startswith(f"{allowed}.") for allowed in ALLOWED[folder])


def wrong_arrows(root: Path) -> list[str]:
    """Every import against the table, as `file:line imports name`."""
    found = []
    for folder in ALLOWED:
        for path in sorted((root / folder).rglob("*.py")):
            package = ".".join(path.parent.relative_to(root).parts)
            for line, dotted in imports(path.read_text(encoding="utf-8"), package):
                if forbidden(folder, dotted):
                    found.append(f"{path.relative_to(root).as_posix()}:{line} imports {dotted}")
    return found


def test_every_import_follows_the_design():
    assert wrong_arrows(ROOT) == []


def test_every_folder_with_code_is_in_the_table():
    hidden = {path.name for path in ROOT.iterdir() if path.name.startswith(".")}
    with_code = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")} - hidden - {"build", "dist"}
    assert with_code <= set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "source", "name"),
    [
        ("bitnet/model.py", "import reference.oracle", "reference.oracle"),
        ("bitnet/model.py", "def f():\n    from crossval import run", "crossval.run"),
        ("bitnet/model.py", "if TYPE_CHECKING:\n    import receipts", "receipts"),
        ("bitnet/model.py", "import numpy, llama_cpp", "llama_cpp"),
        ("bitnet/kernels/cpu.py", "from ... import reference", "reference"),
        ("bitnet/kernels/cpu.py", "from ...reference import oracle", "reference.oracle"),
        ("reference/oracle.py", "from bitnet import model", "bitnet.model"),
        ("reference/oracle.py", "from bitnet.gguf_tools import x", "bitnet.gguf_tools.x"),
        ("reference/oracle.py", "from bitnet import *", "bitnet.*"),
        ("reference/oracle.py", "import bitnet", "bitnet"),
        ("receipts/verify.py", "import importlib\nimportlib.import_module('bitnet.config')", "bitnet.config"),
        ("receipts/verify.py", "from importlib import import_module as _\n__import__('crossval')", "crossval"),
        ("reports/table.py", "from crossval.lane import Lane", "crossval.lane.Lane"),
        ("reports/table.py", "import torch", "torch"),
        ("crossval/run.py", "from fixtures.grammar import sentences", "fixtures.grammar.sentences"),
        ("fixtures/build.py", "import crossval", "crossval"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, module, source, name):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(source)
    [found] = wrong_arrows(tmp_path)
    assert found.startswith(f"{module}:")
    assert found.endswith(f"imports {name}")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bitnet/model.py", "import numpy\nfrom bitnet.config import ModelConfig\nfrom . import cache"),
        ("bitnet/kernels/cpu.py", "from .. import weights\nfrom ..config import Numerics"),
        ("reference/oracle.py", "from bitnet.gguf import read\nfrom bitnet import gguf\nimport gguf as quants"),
        ("crossval/run.py", "import bitnet\nfrom reference import oracle\nfrom receipts.record import Receipt"),
        ("reports/table.py", "def f():\n    from receipts import record"),
    ],
)
def test_a_right_arrow_is_not_reported(tmp_path, module, source):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert wrong_arrows(tmp_path) == []
