"""Replay: what is chosen nobody can foresee, what differs is refused, what is missing is inconclusive."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from receipt_liars import NOW

import receipts.replay as module
from fixtures.receipts import sample
from fixtures.receipts.build import HERE
from receipts.errors import ReceiptError, UnavailableError
from receipts.replay import chosen, differences, draw_nonce, open_runner, replay
from receipts.verify import ReplayRequest, verify

FULL = sample.full()


class Honest:
    """Computes what the receipt says."""

    name = "honest"

    def model(self, record):
        return record

    def tokenizer(self, record):
        return next((t for t in FULL.tokenizers if t.model == record.name), None)

    def case(self, model, case):
        return case


class Liar(Honest):
    def case(self, model, case):
        return replace(case, generated_ids=(*case.generated_ids[:-1], 9))


class OtherModel(Honest):
    def model(self, record):
        raise ReceiptError("has another sha256")


class Absent(Honest):
    def model(self, record):
        raise UnavailableError("is not here")


def outcomes(runner, k=None):
    return {(row.name, row.outcome) for row in replay(FULL, runner, "nonce", k=k)}


def test_an_honest_receipt_replays():
    assert {outcome for _, outcome in outcomes(Honest())} == {"pass"}


def test_another_result_is_refused_at_its_place():
    rows = [row for row in replay(FULL, Liar(), "nonce", k=None) if row.outcome == "fail"]
    assert [row.path for row in rows] == ["cases[0].generated_ids[2]", "cases[1].generated_ids[11]"]


def test_another_model_is_refused_and_a_missing_one_is_inconclusive():
    assert outcomes(OtherModel()) == {("replay.model", "fail"), ("replay.case", "inconclusive")}
    assert outcomes(Absent()) == {("replay.model", "inconclusive"), ("replay.case", "inconclusive")}


def test_a_template_is_part_of_the_tokenizer():
    class Other(Honest):
        def tokenizer(self, record):
            return replace(super().tokenizer(record), template_sha256=sample.sha("another"))

    assert ("replay.tokenizer", "fail") in outcomes(Other())


def test_the_choice_depends_on_nonce_and_digest():
    cases = tuple(replace(FULL.cases[0], name=str(i)) for i in range(64))
    many = replace(FULL, cases=cases, digest=sample.sha("one"))
    assert chosen(many, "a", 8) == chosen(many, "a", 8)
    assert len(set(chosen(many, "a", 8))) == 8
    assert chosen(many, "a", 8) != chosen(many, "b", 8)
    assert chosen(many, "a", 8) != chosen(replace(many, digest=sample.sha("two")), "a", 8)
    picked = {i for n in range(100) for i in chosen(many, str(n), 8)}
    assert picked == set(range(64))
    assert draw_nonce() != draw_nonce()


def test_no_cases_show_nothing():
    assert [row.outcome for row in replay(replace(FULL, cases=()), Honest(), "n", k=3)] == ["inconclusive"]


@pytest.mark.parametrize(("runner", "code"), [(Honest(), 0), (Liar(), 5), (OtherModel(), 5), (Absent(), 4)])
def test_the_verifier_says_it_with_its_code(runner, code):
    request = ReplayRequest(runner=runner, nonce="n", k=None)
    report = verify(HERE / "valid" / "full.json", gate=False, replay=request, now=NOW)
    assert report.exit_code == code
    assert report.nonce == "n"


def test_nothing_is_computed_for_what_is_false_already():
    class Never(Honest):
        def model(self, record):
            raise AssertionError

    request = ReplayRequest(runner=Never(), k=None)
    report = verify(HERE / "invalid" / "ledger-call-missing.json", gate=False, replay=request, now=NOW)
    assert report.exit_code == 5
    assert [c.outcome for c in report.checks if c.level == "replay"] == ["inconclusive"]


def test_an_engine_is_found_by_its_entry_point(monkeypatch):
    entry = SimpleNamespace(name="x", load=lambda: lambda files: files)
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == "receipts.replay" else [])
    assert open_runner([HERE]) == [HERE]


def test_without_an_engine_there_is_a_remedy(monkeypatch):
    monkeypatch.setattr(module, "entry_points", lambda group: [])
    with pytest.raises(UnavailableError, match="pip install") as caught:
        open_runner([])
    assert caught.value.exit_code == 4

    def load():
        raise ImportError("numba")

    monkeypatch.setattr(module, "entry_points", lambda group: [SimpleNamespace(name="x", load=load)])
    with pytest.raises(UnavailableError, match="numba"):
        open_runner([])


def test_differences_name_their_place():
    other = replace(FULL.cases[0], prompt_ids=(1, 2))
    assert list(differences(FULL.cases[0], other)) == [(".prompt_ids", FULL.cases[0].prompt_ids, (1, 2))]
