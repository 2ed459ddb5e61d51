"""The plugin: an honest reference passes, a liar fails in a sentence, and a plain run pays nothing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import liars
import pytest
from liars import Liar

from crossval.plan import ORACLE_RUNGS
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError
from reference.semantics import Semantics

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]
MODEL = str(liars.MODEL)


@pytest.fixture
def call(pytester, monkeypatch):
    """Runs pytest on the lanes of a test; returns its result."""
    monkeypatch.setattr("crossval.run.N_GREEDY", 4)
    pytester.makepyfile("def test_of_the_project(): raise AssertionError('collected')")

    def run(*lanes, options=()):
        monkeypatch.setattr("crossval.run.lanes", lambda *_, **__: list(lanes))
        return pytester.runpytest_inprocess(
            "-p", "crossval.pytest_plugin", "-p", "no:randomly", "-rsxfE", "--bitnet-crossval", MODEL, *options
        )

    return run


def honest(**changes):
    return liars.plan(lambda: Oracle(MODEL), **({"name": "honest", "required_rungs": ORACLE_RUNGS} | changes))


def absent():
    raise ReferenceUnavailableError("it is not installed here")


def test_an_honest_reference_passes(call, pytester):
    result = call(honest(as_default=True), options=("--bitnet-crossval-receipt", "out/r.json", "-v"))
    result.assert_outcomes(passed=9, skipped=1)  # the oracle has no tokenizer, and it is not required
    result.stdout.fnmatch_lines(["*honest::operations PASSED*", "*SKIPPED*unsupported: the oracle has no tokenizer*"])
    assert (pytester.path / "out" / "r.json").exists()


def test_a_liar_fails_in_a_sentence(call):
    result = call(liars.plan(lambda: Liar(semantics=Semantics(activation="silu")), name="liar"))
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 6  # operations, the four above it, and the gate
    told = result.stdout.str()
    assert "liar: operations ended as fail" in told
    assert "first wrong operation: ffn_act of layer 0" in told
    assert "cause: activation=silu explains 100.0%" in told
    assert "liar: greedy ended as inconclusive, and it is required" in told
    assert "the policy strict is not met" in told
    assert "Traceback" not in told
    assert "pytest_plugin.py" not in told


def test_what_is_required_and_missing_fails(call):
    result = call(liars.plan(absent, name="missing"), honest())
    assert result.parseoutcomes() == {"failed": 9, "passed": 8, "skipped": 1}
    result.stdout.fnmatch_lines(["*missing: weights ended as unsupported, and it is required*", "*not installed here*"])


def test_a_lane_that_is_not_required_fails_nothing(call):
    from dataclasses import replace

    missing = replace(liars.plan(absent, name="missing"), required=False)
    result = call(missing, honest(as_default=True))
    assert result.parseoutcomes() == {"xfailed": 8, "passed": 9, "skipped": 1}


def test_tests_are_chosen_by_name_and_reference(call):
    lanes = (honest(), liars.plan(lambda: Liar(), name="other"))
    result = call(*lanes, options=("--bitnet-crossval-reference", "honest", "-k", "weights"))
    result.assert_outcomes(passed=1, deselected=9)
    wrong = call(*lanes, options=("--bitnet-crossval-reference", "nobody"))
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["*no reference is called 'nobody'*", "*there are honest, other*"])


def test_files_that_are_named_are_collected_too(call, pytester):
    [file] = pytester.path.glob("test_*.py")
    result = call(honest(), options=("-k", "of_the_project or identity", file.name))
    result.assert_outcomes(passed=1, failed=1, deselected=9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bitnet-crossval", "none.gguf"), "none.gguf"),
        (("--bitnet-crossval", MODEL, "--bitnet-crossval-policy", "lax"), "lax"),
    ],
)
def test_a_mistake_is_a_usage_error(pytester, options, said):
    result = pytester.runpytest_inprocess("-p", "crossval.pytest_plugin", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()
    assert "Traceback" not in result.stderr.str()


def test_a_plain_run_pays_nothing(pytester):
    """The module is an entry point, so every run of pytest imports it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert declared == {"crossval.pytest_plugin": "crossval.pytest_plugin"}
    pytester.makepyfile(
        """
        import sys

        def test_nothing_was_imported():
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert not loaded & {"bitnet", "reference", "receipts", "numpy", "numba"}
            ours = [name for name in sys.modules if name.startswith("crossval")]
            assert ours == ["crossval", "crossval.pytest_plugin"]
        """
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "crossval.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-p", "no:hypothesispytest"],
        cwd=pytester.path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "2")], ids=["alone", "with xdist"])
def test_a_shipped_model_passes(pytester, workers):
    command = [sys.executable, "-m", "pytest", "-p", "crossval.pytest_plugin", "-p", "no:cacheprovider", *workers]
    command += ["--bitnet-crossval", str(ROOT / "fixtures" / "models" / "tiny-silu.i2_s.gguf")]
    command += ["--bitnet-crossval-reference", "oracle", "--bitnet-crossval-receipt", "r.json"]
    done = subprocess.run(
        command, cwd=pytester.path, capture_output=True, text=True, timeout=600, env=environment(ROOT)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 passed, 1 skipped" in done.stdout


def environment(root):
    import os

    return os.environ | {"PYTHONPATH": str(root)}
