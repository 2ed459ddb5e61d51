"""Each liar about what `receipts.check_tables` asks is refused by the rule that should."""

from __future__ import annotations

import json
from dataclasses import replace

import liars as references
import numpy as np
import pytest
from liars import Liar
from receipt_liars import NOW, check_liar, liars

from crossval.environment import now
from crossval.run import Run
from receipts import digest_of
from receipts.rule import RULES, View
from receipts.tables import rows_of
from receipts.verify import verify


@pytest.mark.parametrize("hole", liars("check_tables"), ids=lambda hole: hole.name)
def test_each_liar_is_refused_by_the_rule_that_should(hole):
    check_liar(hole)


# ---- what a reference shows is its own affair ----------------------------------------------------------------------


def shown(keep):
    def change(request, seen):
        return replace(seen, taps={key: value for key, value in seen.taps.items() if keep(key[0], request)})

    return change


def not_a_number(_, seen):
    nan = {key: value * np.nan for key, value in seen.taps.items() if key == ("l_out", 1)}
    return replace(seen, taps={**seen.taps, **nan})


SHOWS = {
    "all": shown(lambda *_: True),
    "no attn_out": shown(lambda tap, _: tap != "attn_out"),
    "l_out alone": shown(lambda tap, _: tap in ("l_out", "result_output")),
    "no single tokens": shown(lambda _, request: request.n_batch != 1),
    "nan in a middle layer": not_a_number,
}


@pytest.fixture(scope="module", params=SHOWS)
def written(request, tmp_path_factory):
    """A receipt of a run whose reference shows so much, and its path."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossval.run.N_GREEDY", 4)
        patch.setattr("crossval.run.cause_of", lambda *_, **__: None)
        run = Run(references.options(folder), references.quiet)
        lane = run.climb(references.plan(lambda: Liar(change=SHOWS[request.param])))
        assert lane.outcome == ("fail" if "nan" in request.param else "pass"), lane
        receipt = run.receipt(now(), 5.0)
    return receipt, run.options.receipt


def test_a_run_writes_a_receipt_that_holds_whatever_the_reference_shows(written):
    assert verify(written[1], gate=False).failures == ()


@pytest.mark.parametrize("by", [-1, 1, 7])
def test_a_count_of_operations_that_its_rows_deny_is_refused(written, by):
    receipt, path = written
    [lane] = receipt.lanes
    rungs = tuple(replace(r, compared=r.compared + by) if r.name == "operations" else r for r in lane.rungs)
    data = replace(receipt, lanes=(replace(lane, rungs=rungs),)).to_dict()
    forged = path.with_name(f"forged{by}.json")
    forged.write_text(json.dumps(data | {"digest": digest_of(data)}), "utf-8")
    assert "tables.operations" in {check.name for check in verify(forged, gate=False).failures}


def test_sums_are_those_of_whole_requests(written):
    """Though the sentence was made to fit."""
    receipt, path = written
    [lane] = receipt.lanes
    rung = lane.rung("operations")
    tables = tuple(rows_of(s.table, json.loads((path.parent / s.file).read_bytes())) for s in receipt.side_files)
    for compared in (rung.compared + 1000, rung.compared + 1) if rung.outcome == "pass" else (rung.compared + 1000,):
        changed = replace(rung, compared=compared, why="no sentence")
        rungs = tuple(changed if r.name == "operations" else r for r in lane.rungs)
        view = View(replace(receipt, lanes=(replace(lane, rungs=rungs),)), tables, NOW)
        assert list(RULES["tables.operations"].check(view))
