"""What is run: prompts from a file, ids from a tokenizer or, without one, seeded ones."""

from __future__ import annotations

import json

import pytest

from crossval.case import PROMPTS, Case, Prompt, ends, read_prompts, text_cases
from reference.runner import ReferenceUnavailableError


class Tokenizes:
    def __init__(self, ids):
        self.ids = ids

    def tokenize(self, text):
        if isinstance(self.ids, Exception):
            raise self.ids
        return self.ids[text]


def test_texts_become_ids():
    prompts = (Prompt(name="a", text="x"), Prompt(name="b", text="y"))
    made = text_cases(Tokenizes({"x": (1, 2), "y": (3,)}), prompts, n_vocab=9, n_greedy=4)
    assert made == (Case(name="a", ids=(1, 2), n_greedy=4), Case(name="b", ids=(3,), n_greedy=4))


def test_a_text_without_ids_is_no_case():
    prompts = (Prompt(name="a", text="x"), Prompt(name="b", text="y"))
    assert [c.name for c in text_cases(Tokenizes({"x": (), "y": (3,)}), prompts, n_vocab=9, n_greedy=4)] == ["b"]


def test_without_a_tokenizer_ids_are_seeded_and_in_the_vocabulary():
    absent = Tokenizes(ReferenceUnavailableError("none"))
    made = text_cases(absent, PROMPTS, n_vocab=7, n_greedy=1)
    assert made == text_cases(absent, PROMPTS, n_vocab=7, n_greedy=1)
    assert [len(c.ids) for c in made] == [8, 23, 13, 158]
    assert all(0 <= i < 7 for c in made for i in c.ids)


def test_the_ends_are_the_first_and_the_longest():
    a, b, c = (Case(name=name, ids=(1,) * n, n_greedy=1) for name, n in (("a", 3), ("b", 5), ("c", 4)))
    assert ends((a, b, c)) == (a, b)
    assert ends((b, a, c)) == (b,)
    assert ends((a,)) == (a,)
    assert ends(()) == ()


def test_names_are_unique_and_texts_say_something():
    assert len({p.name for p in PROMPTS}) == len(PROMPTS)
    assert all(p.text.strip() for p in PROMPTS)


def test_the_first_prompt_of_each_kind(tmp_path):
    path = tmp_path / "prompts.json"
    entries = [{"name": "story-1", "text": "a"}, {"name": "story-2", "text": "b"}, {"name": "ids-1", "ids": [1]}]
    path.write_text(json.dumps({"m": [*entries, {"name": "fact-1", "text": "c"}], "empty": []}))
    assert [p.name for p in read_prompts(path, "m")] == ["story-1", "fact-1"]
    assert read_prompts(path, "empty") == read_prompts(path, "other") == PROMPTS
    assert read_prompts(tmp_path / "absent.json", "m") == PROMPTS


def test_a_damaged_file_is_not_taken_for_an_empty_one(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text("{")
    with pytest.raises(json.JSONDecodeError):
        read_prompts(path, "m")
