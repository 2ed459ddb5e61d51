"""The walk over type hints: every scalar, every refusal, the canonical form and the digests."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.codec import MAX_SAFE, Count, Record, canonical, digest_of, ids_digest, pretty
from receipts.errors import ReceiptError


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf(Record):
    n: Count = 0
    x: float = 0.0
    s: str = ""
    b: bool = False
    word: Literal["yes", "no"] = "no"
    maybe: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Record):
    leaves: tuple[Leaf, ...] = ()
    by_name: Mapping[str, int] = field(default_factory=dict)


def refused(record, data):
    with pytest.raises(ReceiptError) as caught:
        record.from_dict(data)
    return caught.value


def test_round_trip():
    tree = Tree(leaves=(Leaf(n=1, x=0.5, s="é", b=True, word="yes", maybe=-1e-300), Leaf()), by_name={"a": -5})
    assert Tree.from_dict(tree.to_dict()) == tree
    assert Tree.from_dict(json.loads(canonical(tree.to_dict()))) == tree


@given(st.integers(-(2**64) + 1, 2**64 - 1))
def test_any_integer_of_64_bits_survives(n):
    data = Tree(by_name={"n": n}).to_dict()
    assert isinstance(data["by_name"]["n"], int) == (abs(n) <= MAX_SAFE)
    assert Tree.from_dict(json.loads(canonical(data))).by_name == {"n": n}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_number_survives(x):
    assert Leaf.from_dict(json.loads(canonical(Leaf(x=x).to_dict()))).x == x


def test_minus_zero_has_the_form_of_zero():
    assert canonical(Leaf(x=-0.0).to_dict()) == canonical(Leaf(x=0.0).to_dict())


def test_numpy_scalars_are_taken_for_pythons_own():
    leaf = Leaf(n=np.int64(3), x=np.float32(0.5), b=np.bool_(True))  # noqa: FBT003  # a value, not a switch
    assert leaf.to_dict() == Leaf(n=3, x=0.5, b=True).to_dict()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), 10**400])
def test_what_is_not_finite_is_refused_with_its_place(value):
    with pytest.raises(ReceiptError, match=r"not a finite number in 'leaves\[1\].x'"):
        Tree(leaves=(Leaf(), Leaf(x=value))).to_dict()


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ([], ""),
        ({"leaves": {}}, "leaves"),
        ({"leaves": [3]}, "leaves[0]"),
        ({"leaves": [{"n": "three"}]}, "leaves[0].n"),
        ({"leaves": [{"n": 1.5}]}, "leaves[0].n"),
        ({"leaves": [{"n": True}]}, "leaves[0].n"),
        ({"leaves": [{"n": None}]}, "leaves[0].n"),
        ({"leaves": [{"n": 2**64}]}, "leaves[0].n"),
        ({"leaves": [{"n": "12"}]}, "leaves[0].n"),
        ({"leaves": [{"n": "18446744073709551616"}]}, "leaves[0].n"),
        ({"leaves": [{"n": "٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣٣"}]}, "leaves[0].n"),
        ({"leaves": [{"x": "0.5"}]}, "leaves[0].x"),
        ({"leaves": [{"x": False}]}, "leaves[0].x"),
        ({"leaves": [{"x": float("nan")}]}, "leaves[0].x"),
        ({"leaves": [{"maybe": "none"}]}, "leaves[0].maybe"),
        ({"leaves": [{"s": 1}]}, "leaves[0].s"),
        ({"leaves": [{"s": "\ud800"}]}, "leaves[0].s"),
        ({"leaves": [{"b": 1}]}, "leaves[0].b"),
        ({"leaves": [{"word": "perhaps"}]}, "leaves[0].word"),
        ({"leaves": [{"word": ["yes"]}]}, "leaves[0].word"),
        ({"by_name": {"a": "b"}}, "by_name.a"),
        ({"by_name": []}, "by_name"),
        ({"by_name": {"\ud800": 1}}, "by_name"),
        ({"unknown": 1}, ""),
    ],
)
def test_each_misfit_is_refused_with_its_place(data, path):
    assert refused(Tree, data).path == path


def test_long_values_are_cut_in_messages():
    assert len(str(refused(Leaf, {"word": "x" * 10_000}))) < 200


@pytest.mark.parametrize("tree", [Tree(leaves={}), Tree(leaves=(3,)), Tree(by_name=[]), Tree(by_name={1: 1})])
def test_misfits_are_refused_on_the_way_out_too(tree):
    with pytest.raises(ReceiptError):
        tree.to_dict()


def test_canonical_form_is_rfc_8785():
    data = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "literals": [None, True, False], "é": "\n"}
    assert canonical(data).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"é":"\\n"}'
    )


@pytest.mark.parametrize("value", [float("nan"), 2**53, "\ud800", object()])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(ReceiptError, match="no canonical form"):
        canonical([value])


def test_digest_leaves_itself_out():
    data = {"a": 1, "b": [2.0]}
    expected = hashlib.sha256(b'{"a":1,"b":[2]}').hexdigest()
    assert digest_of(data) == digest_of(data | {"digest": "anything"}) == expected
    assert digest_of(data | {"a": 2}) != expected


def test_ids_digest_is_of_little_endian_int32():
    assert ids_digest((1, 2, 70000)) == hashlib.sha256(struct.pack("<3i", 1, 2, 70000)).hexdigest()
    assert ids_digest(np.array([1, 2, 70000])) == ids_digest([1, 2, 70000])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 1) | st.text("aé\n", max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    )
)
def test_pretty_text_is_the_same_json(data):
    assert json.loads(pretty(data)) == data


def test_pretty_text_keeps_numbers_on_one_line():
    assert pretty({"ids": [1, 2], "rows": [{"a": 1e-7}]}) == (
        '{\n  "ids": [1, 2],\n  "rows": [\n    {\n      "a": 1e-7\n    }\n  ]\n}'
    )
