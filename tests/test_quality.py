"""Perplexity, divergence and their errors: against plain formulas, and against texts whose answer is known."""

import math

import numpy as np
import pytest

from crossval import quality
from crossval.metrics import ShapeMismatchError, kl_divergence, log_softmax

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(400, 30)).astype(np.float32)
OTHER = (LOGITS + RNG.normal(size=LOGITS.shape) / 10).astype(np.float32)
CAME = tuple(int(i) for i in RNG.integers(0, 30, 400))


@pytest.fixture(scope="module")
def report():
    return quality.summarise(quality.score(LOGITS, CAME, log_softmax(OTHER)))


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    scores = quality.score(np.zeros((50, 7), np.float32), [3] * 50)
    assert quality.summarise(scores).perplexity.value == pytest.approx(7, rel=1e-12)  # float64


def test_every_measure_is_its_formula(report):
    p, q = np.exp(log_softmax(OTHER)), np.exp(log_softmax(LOGITS))
    rows = np.arange(400)
    delta = q[rows, CAME] - p[rows, CAME]
    nll, base = -np.log(q[rows, CAME]), -np.log(p[rows, CAME])
    exact = {"rel": 1e-12}  # float64 in another order
    assert report.n == 400
    assert report.perplexity.value == pytest.approx(math.exp(nll.mean()), **exact)
    assert report.base_perplexity.value == pytest.approx(math.exp(base.mean()), **exact)
    assert report.log_ratio.value == pytest.approx(nll.mean() - base.mean(), rel=1e-9)  # a difference of two means
    assert report.kld.value == pytest.approx(kl_divergence(LOGITS, OTHER).mean(), rel=1e-9)  # likewise
    assert report.delta_p.value == pytest.approx(delta.mean(), rel=1e-9)
    assert report.rms_delta_p.value == pytest.approx(math.sqrt((delta**2).mean()), **exact)
    assert report.same_top.value == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert report.correlation == pytest.approx(np.corrcoef(nll, base)[0, 1], rel=1e-9)


def test_errors_are_the_tools(report):
    nll = quality.score(LOGITS, CAME).nll
    error = math.sqrt(((nll**2).mean() - nll.mean() ** 2) / (len(nll) - 1))
    assert report.perplexity.error == pytest.approx(error * report.perplexity.value, rel=1e-9)  # float64 cancellation
    share = report.same_top.value
    assert report.same_top.error == pytest.approx(math.sqrt(share * (1 - share) / 399), rel=1e-9)


def test_percentiles_lie_between_sorted_values():
    values = np.arange(1000, dtype=np.float64)
    found = quality.percentiles(RNG.permutation(values), (100.0, 99.9, 50.0, 0.0))
    assert found == {100.0: 999.0, 99.9: pytest.approx(998.001), 50.0: 499.5, 0.0: 0.0}


def test_blocks_see_that_neighbours_are_alike():
    independent = quality.Scores(nll=RNG.normal(size=4096))
    alike = quality.Scores(nll=np.repeat(RNG.normal(size=256), 16))
    one, two = (quality.summarise(scores).perplexity for scores in (independent, alike))
    assert 0.85 < one.block_error / one.error < 1.15  # 1000 resamples of 128 blocks know the error to a few percent
    assert two.block_error > 3 * two.error  # sixteen equal neighbours: the true factor is 4


def test_a_model_against_itself_is_no_distance():
    same = quality.summarise(quality.score(LOGITS, CAME, log_softmax(LOGITS)))
    assert abs(same.kld.value) < 1e-12  # float64
    assert same.delta_p.value == 0
    assert same.rms_delta_p.value == 0
    assert same.same_top.value == 1


def test_a_liar_is_far(report):
    shifted = quality.summarise(quality.score(np.roll(LOGITS, 1, axis=1), CAME, log_softmax(OTHER)))
    assert shifted.kld.value > 10 * report.kld.value
    assert shifted.same_top.value < 0.2


def test_what_the_base_cannot_hold_is_left_out():
    base = np.array([[-0.1, -3.0, -20.0]])
    found = quality.score(np.array([[0.0, 0.0, 0.0]], np.float32), [0], base)
    expected = sum(math.exp(b) * (b + math.log(3)) for b in (-0.1, -3.0))
    assert found.kld[0] == pytest.approx(expected, rel=1e-12)  # float64


def test_chunks_are_one_text():
    parts = quality.joined(quality.score(LOGITS[i : i + 100], CAME[i : i + 100]) for i in range(0, 400, 100))
    assert (parts.nll == quality.score(LOGITS, CAME).nll).all()


def test_nothing_scored_and_few_scored():
    with pytest.raises(ValueError, match="no token"):
        quality.summarise(quality.joined([]))
    few = quality.summarise(quality.score(LOGITS[:5], CAME[:5]))
    assert math.isnan(few.perplexity.error)
    assert math.isnan(few.perplexity.block_error)


def test_other_shapes_are_refused():
    with pytest.raises(ShapeMismatchError):
        quality.score(LOGITS, CAME[:-1])
    with pytest.raises(ShapeMismatchError):
        quality.score(LOGITS, CAME, log_softmax(OTHER)[:, :-1])


def test_rows_are_named_as_the_tool_names_them(report):
    names = [name for name, _ in report.rows()]
    assert names[:5] == [
        "Mean PPL(Q)",
        "Mean PPL(base)",
        "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "Mean ln(PPL(Q)/PPL(base))",
        "Mean KLD",
    ]
    assert {"99.9 % KLD", "Median KLD", "RMS Δp", "Same top p"} <= set(names)
    assert [name for name, _ in quality.summarise(quality.score(LOGITS, CAME)).rows()] == ["Mean PPL(Q)"]
