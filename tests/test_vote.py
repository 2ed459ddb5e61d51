"""Votes: independent witnesses, one voice a family, and nobody blamed without a majority."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossval.vote import Witness, independent, spoken, vote


def near(a: float, b: float) -> bool:
    return abs(a - b) <= 1.0


def of(**said):
    return {name: Witness(family=name, said=value) for name, value in said.items()}


@pytest.mark.parametrize(
    ("said", "odd", "words"),
    [
        ({"a": 0.0, "b": 0.0, "c": 0.0}, None, "agrees agrees agrees"),
        ({"a": 0.0, "b": 0.0, "c": 9.0}, "c", "agrees agrees differs"),
        ({"a": 0.0, "b": 9.0, "c": 0.0, "d": 0.5}, "b", "agrees differs agrees agrees"),
        ({"a": 0.0, "b": 9.0}, None, "differs differs"),
        ({"a": 0.0, "b": 0.0, "c": 9.0, "d": 9.0}, None, "differs differs differs differs"),
        ({"a": 0.0, "b": 0.0, "c": 5.0, "d": 9.0}, None, "agrees agrees differs differs"),
        ({"a": 0.0, "b": 0.8, "c": 1.6}, None, "differs agrees differs"),
        ({"a": 0.0, "b": None, "c": 0.0}, None, "agrees absent agrees"),
        ({"a": 0.0}, None, "differs"),
    ],
)
def test_constellations(said, odd, words):
    found = vote("operations", of(**said), near)
    assert found.odd == odd
    assert " ".join(found.witnesses.values()) == words


def test_a_family_has_one_voice_and_a_library_too():
    witnesses = {
        "bitnet": Witness(family="bitnet", said=0.0),
        "llama.cpp": Witness(family="ggml", library_sha256="x", said=9.0),
        "bitnet.cpp": Witness(family="ggml", library_sha256="y", said=9.0),
        "wrapper": Witness(family="other", library_sha256="x", said=9.0),
        "oracle": Witness(family="oracle", said=0.0),
    }
    assert independent(witnesses) == ["bitnet", "llama.cpp", "oracle"]
    found = vote("operations", witnesses, near)
    assert found.odd == "llama.cpp"
    assert found.witnesses["bitnet.cpp"] == found.witnesses["wrapper"] == "absent"


def test_one_that_died_leaves_its_voice_to_the_next_of_its_family():
    witnesses = {"a": Witness(family="f"), "b": Witness(family="f", said=1.0)}
    assert independent(witnesses) == ["b"]


def test_a_vote_in_words():
    assert spoken(vote("logits", of(bitnet=9.0, a=0.0, b=0.0), near)).startswith("the engine under test is the odd one")
    assert spoken(vote("logits", of(bitnet=0.0, a=9.0, b=0.0), near)) == "2 of 3 agree; a is the odd one"
    assert spoken(vote("logits", of(a=0.0, b=0.0), near)) == "all 2 agree"
    assert spoken(vote("logits", of(a=0.0, b=9.0), near)) == "no majority among 2"


@given(st.lists(st.sampled_from([0.0, 5.0, 10.0, None]), min_size=1, max_size=5))
def test_the_odd_one_is_the_only_one_that_differs_and_two_agree(values):
    found = vote("tokens", of(**{f"w{i}": v for i, v in enumerate(values)}), near)
    words = list(found.witnesses.values())
    assert words.count("absent") == values.count(None)
    if found.odd is not None:
        assert words.count("differs") == 1
        assert words.count("agrees") >= 2
        assert found.witnesses[found.odd] == "differs"
