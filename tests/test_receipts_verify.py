"""The verifier as a whole: true receipts hold, every lie is refused, and nothing brings it down."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receipt_liars import NOW, check_liar
from receipt_records import records

from fixtures.receipts import sample
from fixtures.receipts.build import HERE, TEXTS, build
from fixtures.receipts.changes import ROWS
from fixtures.receipts.holes import HOLES
from receipts import MissingReceiptError, Receipt, digest_of, write
from receipts.gate import gate
from receipts.rule import RULES, View
from receipts.verify import MAX_FINDINGS, verify


@pytest.mark.parametrize(("name", "code"), [("minimal", 0), ("full", 0), ("gate-failed", 1)])
def test_receipts_that_hold(name, code):
    report = verify(HERE / "valid" / f"{name}.json", now=NOW)
    assert report.valid
    assert report.exit_code == code
    assert report.gate_passed is (code == 0)
    assert {check.name for check in report.checks} >= set(RULES)


def test_the_gate_is_asked_only_if_wanted():
    report = verify(HERE / "valid" / "gate-failed.json", gate=False, now=NOW)
    assert report.gate_passed is None
    assert report.exit_code == 0


@pytest.mark.parametrize("hole", [h for h in HOLES if h.rules.startswith("form.")], ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_its_form(hole):
    check_liar(hole)


@pytest.mark.parametrize("name", [*TEXTS, "not-a-number"])
def test_each_broken_text_is_refused(name):
    report = verify(HERE / "invalid" / f"{name}.json", now=NOW)
    assert report.exit_code == 5
    assert not report.valid
    assert report.gate_passed is None
    assert report.receipt is None


def test_not_a_number_is_refused_where_it_stands():
    [finding] = verify(HERE / "invalid" / "not-a-number.json", now=NOW).failures
    assert finding.path == "lanes[0].rungs[3].measured"


def test_the_files_are_what_the_builder_makes(tmp_path):
    build(tmp_path)
    for folder in ("valid", "invalid"):
        made = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / folder).rglob("*.json")}
        kept = {p.relative_to(HERE): p.read_bytes() for p in (HERE / folder).rglob("*.json")}
        assert made == kept, "build them again: python -m fixtures.receipts.build"


def test_a_missing_file_is_no_verdict():
    with pytest.raises(MissingReceiptError):
        verify(HERE / "none.json")


def test_all_findings_are_reported(tmp_path):
    data = sample.minimal().to_dict()
    data["cases"][0]["ids_sha256"] = sample.sha("other")
    data["performance"][0]["tokens_per_second"] = 1e6
    data["lanes"][0]["climbed"] = "quality"
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    report = verify(path, now=NOW)
    assert {check.name for check in report.failures} == {
        "form.digest",
        "cases.ids",
        "performance.rate",
        "lanes.outcome",
        "determinism.cases",
    }


def test_a_rule_broken_everywhere_is_cut_short(tmp_path):
    data = sample.minimal().to_dict()
    data["accuracy"] = [data["accuracy"][0] | {"passed": False}] * 100
    data["digest"] = digest_of(data)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    findings = [check for check in verify(path, now=NOW).failures if check.name == "accuracy.passed"]
    assert len(findings) == MAX_FINDINGS


def test_whitespace_and_order_change_nothing(tmp_path):
    data = sample.minimal().to_dict()
    data["digest"] = digest_of(data)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(dict(reversed(data.items())), indent=7))
    assert verify(path, now=NOW).exit_code == 0


def test_tables_are_verified_with_their_receipt(tmp_path):
    path = tmp_path / "r.json"
    receipt = write(sample.minimal(), path, ROWS)
    assert verify(path, now=NOW).exit_code == 0
    file = tmp_path / receipt.side_files[1].file
    file.write_bytes(file.read_bytes().replace(b"1.25", b"1.35"))
    assert [check.name for check in verify(path, now=NOW).failures] == ["side_files.content"]


def test_the_report_is_json():
    report = verify(HERE / "valid" / "full.json", now=NOW)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["exit_code"] == 0
    assert data["digest"] == report.receipt.digest
    assert len(data["checks"]) == len(report.checks)


def places(data, way=()):
    """Every place in JSON types."""
    yield way
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for name, item in items:
        yield from places(item, (*way, name))


FULL = sample.full().to_dict()
PLACES = [way for way in places(FULL) if way]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2),
    st.integers(0, 2**64),
    st.floats(),
    st.sampled_from(["", "pass", "0" * 64, "rows/../x", "9999-12-31T23:59:59Z", "18446744073709551615", "\u2028"]),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
)
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=4)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=CHANGES)
def test_no_change_brings_the_verifier_down(tmp_path, changes):
    check_change(tmp_path / "r.json", changes)


def test_a_number_beyond_what_json_readers_hold_has_no_digest(tmp_path):
    check_change(tmp_path / "r.json", [(("ledger", 0, "tokens"), 2**53)])


def reach(data, way):
    for step in way:
        data = data[step]
    return data


def extremes(kind, *values):
    ways = [way for way in PLACES if type(reach(FULL, way)) is kind]
    return st.dictionaries(st.sampled_from(ways), st.sampled_from(values), max_size=20)


@settings(max_examples=200, deadline=None)
@given(extremes(int, 0, 1, 2**31 - 1, 2**53 - 1, str(2**64 - 1)), extremes(float, 0.0, 1.0, 5e-324, 1e308, -1e308))
def test_no_extreme_number_brings_a_rule_down(integers, numbers):
    data = deepcopy(FULL)
    for way, value in (integers | numbers).items():
        reach(data, way[:-1])[way[-1]] = value
    run_rules(Receipt.from_dict(data))


def run_rules(receipt):
    for rule in RULES.values():
        for path, message in rule.check(View(receipt, tuple([] for _ in receipt.side_files), NOW)):
            assert path
            assert message
    gate(receipt)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(receipt=records(Receipt))
def test_no_values_that_types_allow_bring_a_rule_down(receipt):
    run_rules(receipt)


@pytest.mark.slow
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=CHANGES)
def test_many_changes_do_not_either(tmp_path, changes):
    check_change(tmp_path / "r.json", changes)


def check_change(path, changes):
    data = deepcopy(FULL)
    for way, value in changes:
        inner = data
        for step in way[:-1]:
            try:
                inner = inner[step]
            except (KeyError, IndexError, TypeError):
                break
        else:
            if isinstance(inner, dict) or (isinstance(inner, list) and way[-1] in range(len(inner))):
                inner[way[-1]] = value
    path.write_text(json.dumps(data))
    assert verify(path, now=NOW).exit_code == 5  # the digest is empty, at the least


#: What predecessors let pass, and the receipts that tell the same lie here.
PREDECESSORS = {
    "`compute_path: real` was a literal": ("compute-path-literal",),
    "kernel lists were literals, written even when the run failed": ("kernels-literal", "kernels-of-a-failed-run"),
    "a mock kernel passed": ("kernel-mock",),
    "an unknown backend passed": ("backend-unknown",),
    "GPU kernels passed under cpu": ("kernel-gpu-under-cpu",),
    "one token at 0.0 tokens/s passed": ("one-token-at-zero-rate",),
    "`deterministic` meant that a variable existed": ("deterministic-without-runs",),
    "no hash was checked": ("hash-missing", "hash-of-nothing"),
    "no timestamp was checked": ("timestamp-missing", "timestamp-in-future", "timestamp-before-start"),
    "no rate was checked": ("rate-invented",),
    "no parity was checked": ("parity-invented",),
    "NaN passed": ("not-a-number",),
    "empty passed": ("empty", "empty-object"),
    "baselines were invented": ("baseline-invented",),
}


@pytest.mark.parametrize("hole", PREDECESSORS)
def test_what_predecessors_let_pass_is_refused_with_its_code_and_place(hole):
    for name in PREDECESSORS[hole]:
        report = verify(HERE / "invalid" / f"{name}.json", now=NOW)
        assert report.exit_code == 5
        assert not report.valid
        known = next((h for h in HOLES if h.name == name), None)
        assert known is None or known.path in {check.path for check in report.failures}
