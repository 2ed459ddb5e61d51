"""Weights as both sides decode them, whole and a few rows at a time."""

from __future__ import annotations

import liars
import numpy as np
import pytest
from liars import FewerWeights, Liar, NaNWeights

from crossval.decoded import compared, decoded_tensors
from crossval.engine import EngineRunner
from crossval.metrics import ShapeMismatchError, difference, histogram

HEAD = "token_embd.weight"


@pytest.fixture(scope="module")
def engine():
    return EngineRunner(liars.MODEL, n_threads=1)


class ByRows(Liar):
    """Changes one element of the head, wherever it is asked for."""

    def __init__(self, row=None, longer=0):
        super().__init__()
        self.row, self.longer = row, longer

    def weights(self, name, rows=None):
        values = self.shown.weights(name).copy()
        if name == HEAD and self.row is not None:
            values[self.row, 3] += np.float32(0.5)
        if name == HEAD and self.longer:
            values = np.concatenate([values, values[: self.longer]])
        return values if rows is None else values[slice(*rows)]


def head(engine, reference):
    [tensor] = [t for t in decoded_tensors(engine, reference) if t.name == HEAD]
    return tensor


@pytest.mark.parametrize("at_once", [1 << 25, 20_000])
def test_parts_make_the_whole(engine, monkeypatch, at_once):
    whole = [compared(tensor).to_dict() for tensor in decoded_tensors(engine, ByRows(row=70))]
    monkeypatch.setattr("crossval.decoded._AT_ONCE", at_once)
    monkeypatch.setattr("crossval.metrics._AT_ONCE", max(at_once // 3, 1))
    tensor = head(engine, ByRows(row=70))
    assert len(list(tensor.parts())) == (
        1 if at_once > 1 << 20 else -(-tensor.rows // max(at_once // tensor.columns, 1))
    )
    found = compared(tensor).to_dict()
    [expected] = [one for one in whole if one["name"] == HEAD]
    scales = [(found[side].pop("scale"), expected[side].pop("scale")) for side in ("ours", "theirs")]
    assert found == expected
    assert all(ours == pytest.approx(theirs, rel=1e-12) for ours, theirs in scales)  # summed in other groups
    assert (found["n_differ"], found["worst"]) == (1, [70, 3])


@pytest.mark.parametrize("at_once", [1 << 25, 5000])
@pytest.mark.parametrize("liar", [FewerWeights, lambda: ByRows(longer=1), lambda: ByRows(longer=400)])
def test_a_tensor_of_another_length_is_found_to_be_one(engine, monkeypatch, at_once, liar):
    monkeypatch.setattr("crossval.decoded._AT_ONCE", at_once)
    if liar is FewerWeights:
        monkeypatch.setattr(FewerWeights, "weights", lambda self, name, rows=None: self.shown.weights(name, rows)[:-1])
    with pytest.raises(ShapeMismatchError, match=HEAD):
        list(head(engine, liar()).parts())


def test_what_is_not_a_number_equals_nothing(engine):
    [part] = head(engine, NaNWeights()).parts()
    assert part.difference().max_abs_err == np.inf


def test_infinities_on_both_sides_are_no_agreement(engine):
    [part] = head(engine, Liar()).parts()
    part.ours[1, 2] = part.theirs[1, 2] = np.inf
    assert part.difference().max_abs_err == np.inf


@pytest.mark.parametrize("at_once", [1, 40, 1 << 22])
def test_blocks_of_rows_measure_what_all_rows_do(monkeypatch, at_once):
    rng = np.random.default_rng(3)
    ours, theirs = rng.standard_normal((2, 50, 9)).astype(np.float32)
    ours[7, 4] = ours[20, 1] = np.nan
    monkeypatch.setattr("crossval.metrics._AT_ONCE", at_once)
    found = difference(ours, theirs)
    error = np.abs(ours.astype(np.float64) - theirs)
    error[np.isnan(error)] = np.inf
    assert (found.worst_token, found.worst_index) == (7, 4)
    assert np.array_equal(found.by_token, error.max(axis=1))
    assert (found.compared, found.max_abs_ref) == (450, np.abs(theirs).max())
    assert sum(histogram(ours, 1.0)) == 448


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", HEAD, "output_norm.weight"])
def test_some_rows_are_rows_of_the_whole(engine, name):
    for runner in (engine, Liar().oracle):
        whole = runner.weights(name)
        assert np.array_equal(runner.weights(name, (0, 1)), whole[:1])
        assert np.array_equal(runner.weights(name, (len(whole) - 1, len(whole) + 1)), whole[-1:])
