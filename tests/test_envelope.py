"""Every limit: what it lets pass, what it stops, and that noise cannot stretch it for ever."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from crossval import envelope
from crossval.envelope import Envelope

MODULES = sorted((Path(envelope.__file__).parent).glob("*.py"))


def test_a_limit_holds_up_to_itself_and_never_for_nan():
    limit = Envelope(metric="m", limit=1.0, reason="r")
    assert limit.holds(1.0)
    assert not limit.holds(1.0000001)
    assert not limit.holds(float("nan"))
    assert not limit.holds(float("inf"))


def test_what_is_exact_allows_nothing():
    for exact in (envelope.INTEGER_SUMS, envelope.WEIGHTS, envelope.SAME_TOKENS, envelope.SAME_CHOICE):
        assert exact.holds(0.0)
        assert not exact.holds(5e-324)


def test_locked_operations():
    assert envelope.LOCKED_OPERATION.limit == 1e-6


@pytest.mark.parametrize(
    ("activation", "head", "median", "largest"),
    [
        ("none", "f32", 5e-6, 5e-6),
        ("none", "f16", 5e-6, 1e-4),
        ("f16", "f32", 2e-3, 2e-3),
        ("bf16", "f32", 2e-2, 2e-2),
        ("int8_token", "f32", 1e-6, 5e-2),
        ("q8_k", "f16", 1e-6, 5e-2),
        ("q8_0", "f32", 1e-6, 5e-2),
    ],
)
def test_logits_without_noise(activation, head, median, largest):
    assert envelope.logits_median(activation, 0.0).limit == median
    assert envelope.logits_max(activation, head, 0.0).limit == largest
    assert median <= envelope.logits_running(activation, 0.0).limit <= largest


def test_noise_below_the_base_changes_nothing():
    quiet, still = envelope.logits_median("none", 1e-6), envelope.logits_median("none", 0.0)
    assert quiet == still
    assert "noise" not in quiet.reason


def test_noise_above_the_base_sets_the_limit_and_says_so():
    noisy = envelope.logits_median("int8_token", 1e-3)
    assert noisy.limit == envelope.NOISE_ALLOWANCE * 1e-3
    assert "4 × the noise of 1.0e-03" in noisy.reason
    assert envelope.quality(1e-3).limit == envelope.NOISE_ALLOWANCE * 1e-3
    assert envelope.quality(0.0).limit == 1e-5


@pytest.mark.parametrize("noise", [0.2, 1.4, 1e9, float("inf"), float("nan")])
def test_no_noise_excuses_unrelated_logits(noise):
    """Rows of two unrelated models are 1.0 apart and more."""
    for limit in (
        envelope.logits_median("int8_token", noise),
        envelope.logits_running("int8_token", noise),
        envelope.logits_running("f16", noise),
        envelope.logits_max("int8_token", "f32", noise),
        envelope.logits_max("none", "f32", noise),
    ):
        assert limit.limit <= envelope.LARGEST_LIMIT < 1.0
        assert not limit.holds(1.0)


KINDS = ("none", "f16", "bf16", "int8_token")


def test_every_limit_gives_its_reason():
    made = [f(a, 0.0) for f in (envelope.logits_median, envelope.logits_running) for a in KINDS]
    named = [value for value in vars(envelope).values() if isinstance(value, Envelope)]
    assert len(named) == 9
    of_types = list(envelope.QUANTISED_PRODUCT.values())
    assert all(len(limit.reason.split()) >= 5 and limit.metric for limit in made + named + of_types)


def test_no_other_module_compares_with_a_small_number_of_its_own():
    """A limit in code that is not an `Envelope` is a limit that the receipt does not show."""
    bare = {
        (path.name, node.lineno)
        for path in MODULES
        if path.name not in ("envelope.py", "__main__.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Compare)
        for part in node.comparators
        if isinstance(part, ast.Constant) and isinstance(part.value, float) and part.value not in (0.0, 1.0)
    }
    # Which of several candidates a value is, and which measured numbers are worth a hypothesis: not whether one passes.
    allowed = {"self_check.py", "fits.py", "infer.py"}
    assert {name for name, _ in bare} <= allowed


def test_log_probabilities_are_given_what_they_lose_in_telling():
    exact, told = envelope.logits_median("int8_token", 0.0), envelope.logits_median("int8_token", 0.0, 2e-6)
    assert told.limit == pytest.approx(exact.limit + 2e-6)
    assert "log-probabilities" in told.reason
    assert envelope.logits_max("none", "f32", 0.0, 2e-6).limit == pytest.approx(7e-6)
    assert envelope.logits_max("int8_token", "f32", 0.1, 2e-6) == envelope.logits_max("int8_token", "f32", 0.1)
