"""Manifests of recordings: what a recorder writes is read back, anything else is refused by the name of its field."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.manifest import ManifestError, parse
from reference.runner import RunnerInfo, describe

A, B, C = "a" * 64, "b" * 64, "c" * 64
INFO = RunnerInfo(
    name="other",
    family="others",
    version="",
    library_sha256="",
    obtained="live",
    numerics={"activation": "q8_k"},
    model_sha256=A,
    detail={"threads": "2"},
)
RUN = {"ids": [1, 2], "n_batch": 2, "taps_asked": True, "generated": [3], "logits": B, "taps": []}
MANIFEST = {
    "schema": "checked elsewhere",
    "runner": describe(INFO),
    "runs": [RUN | {"taps": [["embd", -1, C], ["q", 3, A]]}, RUN | {"n_batch": 1}],
    "texts": [["caf\udce9", True, False, [7, 4]]],
    "weights": {"blk.0.attn_q.weight": C},
}


def test_what_a_recorder_writes_is_read_back():
    held = parse(MANIFEST)
    assert held.info == INFO
    first, second = held.runs
    assert asdict(first) == {
        "ids": (1, 2),
        "n_batch": 2,
        "taps_asked": True,
        "generated": (3,),
        "logits": B,
        "taps": {("embd", -1): C, ("q", 3): A},
    }
    assert (second.n_batch, second.taps) == (1, {})
    assert held.texts == {("caf\udce9", True, False): (7, 4)}
    assert held.weights == MANIFEST["weights"]


def changed(place, value):
    """The manifest with another value in a place; none there for `...`."""
    manifest = deepcopy(MANIFEST)
    *way, last = place
    at = manifest
    for step in way:
        at = at[step]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return manifest


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("runs",), [], "runs is empty"),
        (("runs",), {}, "runs is no list"),
        (("runs", 0), 1, r"runs\[0\] is no object"),
        (("runs", 1, "ids"), [], r"runs\[1\].n_batch is no number of its 0 ids"),
        (("runs", 1, "ids"), ["a"], r"runs\[1\].ids is no list of ids"),
        (("runs", 1, "ids"), [-1], r"runs\[1\].ids is no list of ids"),
        (("runs", 1, "ids"), [True, 2], r"runs\[1\].ids is no list of ids"),
        (("runs", 0, "n_batch"), 3, r"runs\[0\].n_batch"),
        (("runs", 0, "n_batch"), "2", r"runs\[0\].n_batch"),
        (("runs", 0, "taps_asked"), 1, r"runs\[0\].taps_asked is neither true nor false"),
        (("runs", 0, "generated"), None, r"runs\[0\].generated is no list"),
        (("runs", 0, "generated"), [3.0], r"runs\[0\].generated is no list of ids"),
        (("runs", 0, "logits"), ..., r"runs\[0\].logits is missing"),
        (("runs", 0, "logits"), "../x", r"runs\[0\].logits is no sha256"),
        (("runs", 0, "taps", 1), ["q", 1], r"runs\[0\].taps\[1\] is no tap, layer and hash"),
        (("runs", 0, "taps", 1), ["q", -1, A], r"runs\[0\].taps\[1\] is no tap of a layer"),
        (("runs", 0, "taps", 1), ["embd", 0, A], r"runs\[0\].taps\[1\] is no tap of a layer"),
        (("runs", 0, "taps", 1), [["q"], 0, A], r"runs\[0\].taps\[1\] is no tap of a layer"),
        (("runs", 0, "taps", 1), ["q", "0", A], r"runs\[0\].taps\[1\] is no tap of a layer"),
        (("runs", 0, "taps", 1), ["embd", -1, A], r"runs\[0\].taps\[1\] is there twice"),
        (("runner", "name"), 5, "runner.name is no text"),
        (("runner", "name"), "", "runner.name is empty"),
        (("runner", "family"), None, "runner.family is no text"),
        (("runner", "library_sha256"), "zz", "runner.library_sha256 is no sha256"),
        (("runner", "model_sha256"), "", "runner.model_sha256 is no sha256"),
        (("runner", "obtained"), "unavailable", "runner.obtained is none of live, server, recorded"),
        (("runner", "numerics"), [1], "runner.numerics is no object"),
        (("runner", "numerics"), {"kv": 16}, "runner.numerics.kv is no text"),
        (("runner", "detail"), [1], "runner.detail is no object"),
        (("runner", "log_probabilities"), "false", "runner.log_probabilities is neither true nor false"),
        (("runner", "mood"), "good", "runner.mood is no field"),
        (("runner", "version"), ..., "runner.version is missing"),
        (("texts", 0), ["a", True], r"texts\[0\] is no text, two flags and ids"),
        (("texts", 0, 3), None, r"texts\[0\] is no list"),
        (("texts", 0, 1), 1, r"texts\[0\] is neither true nor false"),
        (("weights",), [], "weights is no object"),
        (("weights", "output.weight"), "../x", "weights.output.weight is no sha256"),
    ],
)
def test_a_field_that_is_something_else_is_named(place, value, named):
    with pytest.raises(ManifestError, match=named):
        parse(changed(place, value))


def places(value, way=()):
    yield way
    if isinstance(value, dict | list):
        for step, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(below, (*way, step))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "q", A]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=2),
    max_leaves=5,
)


@given(st.sampled_from([way for way in places(MANIFEST) if way]), st.just(...) | ODD)
def test_whatever_stands_in_a_place_is_read_or_refused(place, value):
    try:
        held = parse(changed(place, value))
    except ManifestError:
        return
    assert all(isinstance(i, int) for run in held.runs for i in (*run.ids, *run.generated))
