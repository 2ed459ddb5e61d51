"""What is wrong with one operation: where, in which rows and heads, and what the error looks like."""

from __future__ import annotations

import golden_models
import numpy as np
import pytest

from crossval.finding import walk
from crossval.replay import Replay
from reference.oracle import Oracle
from reference.runner import Request

IDS = (1, 45, 300, 7, 7, 19)


@pytest.fixture(scope="module")
def captured():
    oracle = Oracle(golden_models.model("b158_a"))
    return oracle, oracle.run(Request(ids=IDS, taps=True)).taps


def found(captured, key, change):
    oracle, taps = captured
    odd = {k: v.copy() for k, v in taps.items()}
    odd[key] = change(odd[key])
    return list(walk(Replay(oracle, IDS, taps, odd)))


def test_nothing_is_wrong_with_the_contract(captured):
    assert found(captured, ("q", 0), lambda v: v) == []


def test_rows_heads_positions_and_the_worst_element(captured):
    oracle, taps = captured

    def change(v):
        v[2, 70] += 3.0
        v[4, 3] += 1.0
        return v

    [one] = found(captured, ("q", 1), change)
    assert (one.key, one.positions, one.rows) == (("q", 1), (2, 4), (3, 70))
    assert one.heads == tuple(sorted({3 // oracle.hyper.head_dim, 70 // oracle.hyper.head_dim}))
    assert one.worst == (2, 70)
    assert one.found - one.expected == pytest.approx(3.0, rel=1e-5)
    assert one.expected == taps["q", 1][2, 70]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v * np.float32(2), "it is 2 times what it should be, everywhere"),
        (lambda v: v * np.float32(1.00004), "it is 1 + 4e-05 times what it should be, everywhere"),
        (lambda v: v * np.float32(0.99996), "it is 1 − 4e-05 times what it should be, everywhere"),
        (lambda v: v * np.float32(-1), "it is -1 times what it should be, everywhere"),
        (
            lambda v: v * np.linspace(0.99996, 1.00004, len(v), dtype=np.float32)[:, None],
            "of the values are wrong, by 2.8e-05 of their size",
        ),
        (np.zeros_like, "every value is zero"),
        (np.ones_like, "every value is the same"),
        (lambda v: np.full_like(v, np.nan), "are not finite"),
        (lambda v: v[:, ::-1].copy(), "of the values are wrong; cosine"),
    ],
)
def test_the_error_in_words(captured, change, words):
    [one] = found(captured, ("ffn_up", 2), change)
    assert words in one.words


def test_weights_of_one_layer_are_held_at_a_time(captured):
    _, taps = captured
    thin = Oracle(golden_models.model("b158_a"), n_layer_kept=1)
    wrong = {k: v * np.float32(1.5) for k, v in taps.items()}
    held = [
        {key[0].split(".")[1] for key in thin._weights._cache if key[0].startswith("blk.")}
        for _ in walk(Replay(thin, IDS, taps, wrong))
    ]
    assert len(held) > 40
    assert all(len(layers) <= 1 for layers in held)
