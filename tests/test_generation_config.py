"""Generation settings are checked where they are made, and go through plain values and files unharmed."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import UsageError
from bitnet.generation_config import _RULES, GenerationConfig, configured

CONFIGS = st.builds(
    GenerationConfig,
    max_new_tokens=st.integers(0, 10**6),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 10**5),
    top_p=st.floats(0, 1, exclude_min=True),
    repetition_penalty=st.floats(0, 10, exclude_min=True),
    seed=st.integers(0, 2**63),
    stop=st.lists(st.text(min_size=1)).map(tuple),
    stop_ids=st.lists(st.integers(0, 10**6)).map(tuple),
    ignore_eos=st.booleans(),
    context=st.sampled_from(["stop", "slide"]),
)


def test_it_is_frozen_and_every_field_has_a_rule():
    config = GenerationConfig()
    with pytest.raises(FrozenInstanceError):
        config.seed = 1
    assert not hasattr(config, "__dict__")
    assert [f.name for f in fields(GenerationConfig)] == list(_RULES)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", float("nan")),
        ("temperature", 10**400),  # no float holds it
        ("top_p", -(10**400)),
        ("repetition_penalty", 10**400),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("seed", -1),
        ("stop", ("end", "")),
        ("stop", "end"),
        ("stop", (3,)),
        ("stop_ids", (-1,)),
        ("stop_ids", ("3",)),
        ("stop_ids", 3),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", "hot"),
        ("top_k", None),
        ("ignore_eos", 1),
        ("context", "grow"),
    ],
)
def test_a_meaningless_generation_setting_is_refused(field, value):
    with pytest.raises(UsageError, match=f"^GenerationConfig: {field} is ") as caught:
        GenerationConfig(**{field: value})
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", 0), ("temperature", 0.0), ("top_k", 0), ("top_p", 1.0), ("repetition_penalty", 0.5)],
)
def test_the_edge_of_a_generation_setting_is_accepted(field, value):
    assert getattr(GenerationConfig(**{field: value}), field) == value


def test_with_changes_checks_again_and_leaves_the_original():
    config = GenerationConfig(seed=3)
    assert config.with_changes(top_k=5) == GenerationConfig(seed=3, top_k=5)
    assert config.top_k == 0
    with pytest.raises(UsageError):
        config.with_changes(top_p=2.0)
    with pytest.raises(UsageError, match=r"unknown field 'top_q'\n.*top_p"):
        config.with_changes(top_q=2)


@given(CONFIGS)
def test_plain_values_and_back(config):
    config.validate()
    plain = json.loads(json.dumps(config.to_dict()))
    assert GenerationConfig.from_dict(plain) == config
    assert GenerationConfig.from_dict({}) == GenerationConfig()


def test_an_unknown_field_is_refused():
    with pytest.raises(UsageError, match="unknown field 'beams'"):
        GenerationConfig.from_dict({"beams": 3})


def test_lists_and_the_numbers_of_numpy_are_taken():
    config = GenerationConfig(stop=["a"], stop_ids=[3], seed=np.int64(4), top_p=np.float32(0.5))
    assert config == GenerationConfig(stop=("a",), stop_ids=(3,), seed=4, top_p=0.5)
    assert (type(config.seed), type(config.top_p)) == (int, float)


@pytest.mark.parametrize(
    "ids", [[1, 2], np.array([1, 2]), [np.int64(1), np.uint8(2)], (1, np.int32(2)), range(1, 3), iter([1, 2])]
)
def test_stop_ids_in_every_form(ids):
    config = GenerationConfig(stop_ids=ids)
    assert config.stop_ids == (1, 2)
    assert {type(i) for i in config.stop_ids} == {int}


@pytest.mark.parametrize("ids", [5, "12", b"12", {1: 2}, np.array(3), [1.0], [np.float32(1)], [True], [-1], [None]])
def test_what_is_no_list_of_stop_ids(ids):
    with pytest.raises(UsageError, match=r"stop_ids is .*\n  hint: a list of token ids"):
        GenerationConfig(stop_ids=ids)


def test_a_config_with_fields_beside_it():
    assert configured(None, {}) == GenerationConfig()
    assert configured(GenerationConfig(seed=3), {"top_k": 2}) == GenerationConfig(seed=3, top_k=2)
    with pytest.raises(UsageError, match=r"config is \{'top_k': 2\}\n.*fields by name"):
        configured({"top_k": 2}, {})


def test_presets():
    greedy, balanced, creative = GenerationConfig.greedy(), GenerationConfig.balanced(), GenerationConfig.creative()
    assert greedy == GenerationConfig()
    assert greedy.temperature == 0 < balanced.temperature < creative.temperature
    assert GenerationConfig.creative(seed=4, top_p=0.5) == creative.with_changes(seed=4, top_p=0.5)
    with pytest.raises(UsageError, match="top_p"):
        GenerationConfig.balanced(top_p=3)


# --- generation_config.json ------------------------------------------------------------------------------------------


def read(tmp_path, values, **changes):
    path = tmp_path / "generation_config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return GenerationConfig.from_json(path, **changes)


def test_the_published_file(tmp_path):
    published = {"bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128009], "max_length": 4096}
    published |= {"temperature": 0.6, "top_p": 0.9, "transformers_version": "4.52.0", "top_k": None}
    config = read(tmp_path, published, seed=7)
    assert config == GenerationConfig(temperature=0.6, top_p=0.9, stop_ids=(128001, 128009), seed=7)


def test_sampling_has_to_be_asked_for(tmp_path):
    assert read(tmp_path, {"temperature": 0.6, "eos_token_id": 2}) == GenerationConfig(stop_ids=(2,))
    assert read(tmp_path, {"do_sample": True}).temperature == 1.0
    assert read(tmp_path, {"temperature": 0.6}, temperature=0.2).temperature == 0.2


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ("{", "cannot be read"),
        ("[1]", "not a JSON object"),
        ({"do_sample": True, "top_p": 7}, "top_p is 7"),
        ({"eos_token_id": "end"}, "stop_ids is"),
        (" " * (1 << 21), "too large"),
    ],
)
def test_files_that_are_wrong(tmp_path, values, what):
    with pytest.raises(UsageError, match=what) as caught:
        read(tmp_path, values)
    assert str(tmp_path) in caught.value.where


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        GenerationConfig.from_json(tmp_path / "nothing.json")
