"""The wheel holds every package, every `py.typed` and every schema, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("bitnet", "reference", "crossval", "receipts", "reports")
SHIPPED = (*PACKAGES, "schemas")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this tree with the build backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_exactly_the_shipped_folders(content):
    files = (path for folder in SHIPPED for path in (ROOT / folder).rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert content == expected


def test_every_package_is_there_and_typed(content):
    for package in PACKAGES:
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= content


def test_every_schema_is_there(content):
    schemas = {path.relative_to(ROOT).as_posix() for path in (ROOT / "schemas").rglob("*.json")}
    assert schemas
    assert schemas <= content


@pytest.mark.parametrize("folder", ["tests", "fixtures", ".ci", "ci", "build"])
def test_what_only_the_repository_needs_stays_out(content, folder):
    assert not [name for name in content if name.startswith(f"{folder}/")]


def test_the_licence_is_shipped(unpacked):
    [licence] = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def outside_the_tree(unpacked, *command):
    """Run Python where only the unpacked wheel, and not this tree, holds the packages."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=unpacked.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_packages_import_from_the_wheel(unpacked):
    program = f"import {', '.join(PACKAGES)}\nprint(*[p.__file__ for p in ({', '.join(PACKAGES)})], sep='\\n')"
    for line in outside_the_tree(unpacked, "-c", program).splitlines():
        assert Path(line).is_relative_to(unpacked)


@pytest.mark.parametrize("command", ["bitnet", "crossval", "receipts"])
def test_the_commands_answer_from_the_wheel(unpacked, command):
    assert "usage" in outside_the_tree(unpacked, "-m", command, "--help").lower()


#: What a verifier of receipts has no use for: engines, compilers of kernels, arrays, pictures, the network.
BLOCKED = ("numba", "llvmlite", "llama_cpp", "cupy", "torch", "transformers", "tokenizers", "gguf", "safetensors")
BLOCKED += ("numpy", "pandas", "matplotlib", "huggingface_hub", "httpx", "requests")
REFUSES = f"""
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is not for those who check receipts")

sys.meta_path.insert(0, Refuses())
"""


@pytest.fixture(scope="module")
def checker(unpacked, tmp_path_factory):
    """Runs Python with the wheel, no compiler on the path, and nothing to import that receipts have no use for.

    `nox -s wheel` names an environment in which the wheel alone was installed.
    """
    folder = tmp_path_factory.mktemp("empty")
    (folder / "sitecustomize.py").write_text(REFUSES)
    shutil.copytree(ROOT / "fixtures" / "receipts" / "valid", folder / "valid")
    shutil.copytree(ROOT / "fixtures" / "receipts" / "invalid", folder / "invalid")
    alone = os.environ.get("WHEEL_PYTHON")
    packages = [folder] if alone else [folder, unpacked]
    environment = {"PATH": str(folder / "nothing"), "PYTHONPATH": os.pathsep.join(map(str, packages))}

    def run(*command):
        return subprocess.run(
            [alone or sys.executable, *command],
            cwd=folder,
            env=environment | {"PYTHONSAFEPATH": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert run("-c", "import numba").returncode == 1
    return run


@pytest.mark.parametrize("command", [("receipts",), ("bitnet", "receipt")], ids=" ".join)
def test_the_wheel_alone_verifies_and_gates(checker, command):
    for verb, name, code in (
        ("verify", "valid/full.json", 0),
        ("gate", "valid/full.json", 0),
        ("gate", "valid/gate-failed.json", 1),
        ("verify", "invalid/kernel-mock.json", 5),
        ("explain", "valid/full.json", 0),
    ):
        done = checker("-m", *command, verb, name)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_an_import_of_receipts_waits_for_nothing(checker):
    """Its time is that of what it imports: the standard library, RFC 8785, and itself."""
    program = "import sys; before = set(sys.modules); import receipts; print(*sorted(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in checker("-c", program).stdout.split()}
    assert "receipts" in loaded
    assert loaded - sys.stdlib_module_names <= {"receipts", "rfc8785"}


def test_the_plugin_of_pytest_comes_with_the_wheel(unpacked):
    [points] = unpacked.glob("*.dist-info/entry_points.txt")
    assert "[pytest11]\ncrossval.pytest_plugin = crossval.pytest_plugin" in points.read_text()
