"""A lane climbed on a live reference, and climbed again on what was recorded of it: the same findings."""

import golden_models
import pytest

from bitnet.errors import UsageError
from crossval.live import Live
from crossval.record import record
from crossval.run import Options, run
from reference.runner import ReferenceUnavailableError

FIXTURES = golden_models.FOLDER.parent


def options(tmp_path, **changes):
    model = FIXTURES / "goldens" / "b158_a.gguf"
    given = {"fixtures": FIXTURES, "models": (model,), "work": tmp_path / "work", "measure": False}
    return Options(**given | {"receipt": tmp_path / "r.json"} | changes)


def test_a_recording_climbs_as_high_as_what_it_was_made_from(tmp_path):
    out = tmp_path / "a.recording"
    made = record(options(tmp_path, only="oracle"), out, lambda _: None)
    assert made.lane.outcome == "pass"
    assert (made.n_requests, made.n_bytes) >= (5, 1000)
    chosen = options(tmp_path, only="recording", live=Live(recordings=(out,)))
    lane = run(chosen, lambda _: None, lambda *_: None).lanes[0]
    compared = {rung.name: (rung.outcome, rung.measured, rung.compared) for rung in made.lane.rungs}
    again = {rung.name: (rung.outcome, rung.measured, rung.compared) for rung in lane.rungs}
    del compared["identity"], again["identity"]
    # the oracle beside an oracle is no witness; of a recording it is one, and a vote is taken
    assert {n: c for n, c in again.items() if n != "tokens"} == {n: c for n, c in compared.items() if n != "tokens"}


def test_one_lane_goes_into_one_file(tmp_path):
    with pytest.raises(UsageError, match="lanes are meant"):
        record(options(tmp_path), tmp_path / "a", lambda _: None)


def test_a_reference_that_is_not_here_leaves_no_file(tmp_path):
    chosen = options(tmp_path, only="b158_a · bitnet.cpp", live=Live(bitnet_cpp=tmp_path / "none"))
    with pytest.raises(ReferenceUnavailableError, match="there is no folder"):
        record(chosen, tmp_path / "a", lambda _: None)
    assert not (tmp_path / "a").exists()
