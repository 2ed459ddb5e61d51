"""Lanes that are there when asked for, the witness in those of llama.cpp, recordings in place of engines."""

import golden_models
import pytest

from bitnet.errors import UsageError
from crossval.live import Live, replayed, with_live
from crossval.plan import lanes, user_subject
from reference.oracle import Oracle
from reference.recording import Recorder
from reference.runner import Request

FIXTURES = golden_models.FOLDER.parent


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    subject = user_subject(FIXTURES / "models" / "tiny-relu2.i2_s.gguf", FIXTURES)
    return lanes([subject], tmp_path_factory.mktemp("copies"), shipped=False)


def names(lanes_):
    return [lane.name.partition(" · ")[2] for lane in lanes_]


def test_nothing_is_added_unasked(planned):
    assert with_live(planned, Live()) == planned


def test_transformers_in_both_layers_and_as_a_witness(planned):
    found = with_live(planned, Live(hf=True))
    assert {"transformers BitLinear", "transformers AutoBitLinear"} <= set(names(found))
    heard = {lane.name.partition(" · ")[2]: [w.name for w in lane.witnesses] for lane in found if lane.witnesses}
    assert all(name.startswith("llama.cpp") for name in heard)
    assert len({name for of_lane in heard.values() for name in of_lane}) == len(heard) >= 1


def test_a_tree_of_bitnet_cpp(planned, tmp_path):
    found = with_live(planned, Live(bitnet_cpp=tmp_path))
    assert names(found).count("bitnet.cpp") == 1


def test_dense_weights_have_one_layer(tmp_path):
    subject = user_subject(FIXTURES / "models" / "tiny-llama.f32.gguf", FIXTURES)
    found = with_live(lanes([subject], tmp_path, shipped=False), Live(hf=True))
    assert [name for name in names(found) if "transformers" in name] == ["transformers"]


def recording(path, model):
    recorder = Recorder(Oracle(str(model)))
    recorder.run(Request(ids=(1, 2, 3)))
    recorder.save(path)
    return path


def test_a_recording_is_a_lane_on_the_file_it_was_made_from(planned, tmp_path):
    file = recording(tmp_path / "a.recording", FIXTURES / "models" / "tiny-relu2.i2_s.gguf")
    lane = replayed(file, planned)
    assert lane.reference_file == lane.subject.path
    assert "tokens" not in lane.required_rungs
    assert lane.open().info.obtained == "recorded"
    assert with_live(planned, Live(recordings=(file,)))[-1].name == lane.name


def test_a_recording_of_another_model_is_refused(planned, tmp_path):
    file = recording(tmp_path / "a.recording", golden_models.model("b158_a"))
    with pytest.raises(UsageError, match="not among those compared"):
        replayed(file, planned)
