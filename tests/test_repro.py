"""The folder of a defect: its script runs alone, and shows that the contract is right and the engine is not."""

from __future__ import annotations

import json
import subprocess
import sys

import golden_models
import numpy as np
import pytest

from crossval.minimise import minimise
from crossval.mutants import Mutant
from crossval.repro import write_repro
from reference.oracle import Oracle
from reference.semantics import Semantics

IDS = (1, 45, 300, 7, 7, 19)
DEFECTS = {
    "embd": {"embedding_scale": 2.0},
    "attn_norm": {"norm": "layernorm"},
    "q": {"activation_rounding": "truncate"},
    "ffn_down": {"weight_scale": "drop"},
    "q_rope": {"rope_direction": -1},
    "kqv_out": {"head_grouping": "stride"},
    "ffn_act": {"activation": "silu"},
    "ffn_inp": {"residual": "none"},
    "result_norm": {"norm_weight": "ignore"},
    "result_output": {"logit_scale": 1.5},
}


def run(script):
    return subprocess.run(
        [sys.executable, "-I", str(script)], cwd="/", capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("tap", "activation"),
    [
        *((tap, "int8_token") for tap in DEFECTS),
        *((tap, kind) for tap in ("q", "ffn_down") for kind in ("int8_token_reciprocal", "int8_token_fused")),
    ],
)
def test_the_script_runs_alone_and_shows_it(tmp_path, tap, activation):
    oracle = Oracle(golden_models.model("b158_a"), numerics={"activation": activation})
    layer = -1 if tap in ("embd", "result_norm", "result_output") else 1
    minimal = minimise(Mutant.of(oracle.under(Semantics(**DEFECTS[tap])), 1), oracle, IDS, (tap, layer))
    script = write_repro(tmp_path, oracle, minimal, title="A defect.", story="It is wrong.")
    ran = run(script)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "the engine is wrong" in ran.stdout
    assert len(script.read_text().splitlines()) <= 40
    case = np.load(tmp_path / "case.npz")
    assert sum(case[name].nbytes for name in case.files) < 200_000
    record = json.loads((tmp_path / "case.json").read_text())
    assert record["ids"] == list(minimal.ids)
    found = dict(case)
    np.savez(tmp_path / "case.npz", **{**found, "found": found["expected"]})
    mended = run(script)
    assert mended.returncode == 0, mended.stdout  # the formula of the script is the contract's
    assert "the engine is right" in mended.stdout
