"""The wheel holds every package, every `py.typed` and every schema, and nothing else."""

from __future__ import annotations

import os
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
