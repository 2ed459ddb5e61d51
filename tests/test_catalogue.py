"""The catalogue: enough entries, each one changed field, each with words, and each touching only what it says."""

from __future__ import annotations

from dataclasses import fields

import golden_models
import numpy as np
import pytest

from crossval.catalogue import BY_NAME, CATALOGUE, hypothesis, written
from crossval.fits import variant_of
from reference.oracle import Oracle
from reference.rounding import NUMERICS
from reference.runner import LAST_TAPS, LAYER_TAPS, ReferenceUnavailableError, Request
from reference.semantics import Semantics

IDS = (508, 17, 301, 44, 44, 255)
TAPS = {"embd", *LAYER_TAPS, *LAST_TAPS}


def test_there_are_forty_and_more_each_named_once():
    assert len(CATALOGUE) >= 40
    assert len(BY_NAME) == len(CATALOGUE)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda e: e.name)
def test_an_entry_is_one_field_with_words(entry):
    known = {f.name for f in fields(Semantics)} if entry.part != "numerics" else set(NUMERICS)
    assert entry.field in known
    assert entry.taps
    assert entry.taps <= TAPS
    assert entry.explanation.split()[0].endswith(("s", "es"))  # "it computes …"
    assert entry.remedy
    assert not entry.link or entry.link.startswith("https://")
    if entry.part == "semantics" and not entry.measured:
        assert Semantics(**{entry.field: entry.value}).changes() == {entry.field: entry.value}


def test_every_field_of_semantics_is_an_entry():
    covered = {entry.field for entry in CATALOGUE if entry.part != "numerics"}
    assert covered == {f.name for f in fields(Semantics)}


@pytest.fixture(scope="module")
def captured():
    oracle = Oracle(golden_models.model("b158_a"))
    return oracle, oracle.run(Request(ids=IDS, taps=True)).taps


@pytest.mark.parametrize("name", [h.name for h in written()])
def test_an_entry_moves_only_the_operations_that_it_names(captured, name):
    """On locked inputs: attribution looks nowhere else."""
    oracle, taps = captured
    try:
        variant = variant_of(oracle, hypothesis(BY_NAME[name]))
        seen = variant.run(Request(ids=IDS, taps=True, lock=taps)).taps
    except ReferenceUnavailableError:
        pytest.skip("it has no meaning for this model")
    moved = {tap for tap, layer in seen if not np.array_equal(seen[tap, layer], taps[tap, layer], equal_nan=True)}
    assert moved <= BY_NAME[name].taps
