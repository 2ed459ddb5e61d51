"""Which lanes there are for which models, and why others cannot run."""

from __future__ import annotations

import shutil
from pathlib import Path

import golden_models
import pytest

from bitnet.gguf import TensorData, read, write
from crossval import plan as planning
from crossval.plan import ALL_RUNGS, LLAMA_CPP_SILU, ORACLE_RUNGS, RECORDED_RUNGS, Subject, lanes, shipped_subjects
from receipts.record import RUNGS
from reference.recorded import Recorded

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return {p.name: p for p in lanes(shipped_subjects(FIXTURES), tmp_path_factory.mktemp("copies"), shipped=True)}


def test_every_rung_is_asked_for():
    assert ALL_RUNGS == RUNGS
    assert set(RUNGS) - set(ORACLE_RUNGS) == {"tokens"}
    assert set(RUNGS) - set(RECORDED_RUNGS) == {"tokens", "weights"}


def test_the_shipped_lanes(shipped):
    assert sorted(shipped) == [
        "b158_a · bitnet.cpp (recorded)",
        "b158_hd128 · bitnet.cpp (recorded)",
        "bitnet_silu · bitnet.cpp (recorded)",
        "llama_tied · bitnet.cpp (recorded)",
        "tiny-llama · llama.cpp F32",
        "tiny-llama · llama.cpp TQ2_0",
        "tiny-llama · oracle",
        "tiny-relu2 · llama.cpp TQ2_0 (as bitnet)",
        "tiny-relu2 · oracle",
        "tiny-silu · llama.cpp F32",
        "tiny-silu · llama.cpp TQ2_0",
        "tiny-silu · oracle",
    ]
    assert all(p.required and not p.impossible for p in shipped.values())
    assert len({p.reference for p in shipped.values()}) == len(shipped)


def test_the_only_declared_deviation(shipped):
    declared = {name: p.deviation for name, p in shipped.items() if p.deviation}
    assert declared == {"tiny-relu2 · llama.cpp TQ2_0 (as bitnet)": LLAMA_CPP_SILU}
    assert (LLAMA_CPP_SILU.tap, LLAMA_CPP_SILU.layer, LLAMA_CPP_SILU.cause) == ("ffn_act", 0, "activation=silu")


def test_who_reads_which_file(shipped):
    same = shipped["tiny-silu · llama.cpp TQ2_0"]
    assert same.engine_file == same.reference_file == FIXTURES / "models" / "tiny-silu.tq2_0.gguf"
    renamed = shipped["tiny-relu2 · llama.cpp TQ2_0 (as bitnet)"]
    assert renamed.engine_file == renamed.subject.path != renamed.reference_file
    oracle = shipped["tiny-relu2 · oracle"]
    assert oracle.as_default
    assert oracle.engine_file == oracle.reference_file == oracle.subject.path


def test_what_lies_beside_a_users_model_is_no_copy_of_it(tmp_path):
    """Whatever it is called; the shipped copies are taken, also where their model is named."""
    mine, beside = tmp_path / "mine.gguf", tmp_path / "mine.tq2_0.gguf"
    shutil.copy(FIXTURES / "models" / "tiny-silu.i2_s.gguf", mine)
    shutil.copy(FIXTURES / "models" / "tiny-llama.tq2_0.gguf", beside)
    read_by = {}
    for path in (mine, FIXTURES / "models" / "tiny-silu.i2_s.gguf"):
        planned = lanes([planning.user_subject(path, FIXTURES)], tmp_path / "copies", shipped=False)
        read_by[path.name] = next(p.reference_file for p in planned if p.name.endswith("TQ2_0"))
    assert read_by["mine.gguf"].parent == tmp_path / "copies"
    assert read_by["tiny-silu.i2_s.gguf"] == FIXTURES / "models" / "tiny-silu.tq2_0.gguf"


def test_a_users_model_that_was_recorded(tmp_path):
    copy = tmp_path / "mine.gguf"
    shutil.copy(golden_models.model("llama_tied"), copy)
    planned = lanes([planning.user_subject(copy, FIXTURES)], tmp_path / "copies", shipped=False)
    names = [p.name for p in planned]
    assert names == [
        "mine · oracle",
        "mine · llama.cpp F32",
        "mine · llama.cpp TQ2_0",
        "mine · bitnet.cpp (recorded)",
    ]
    assert all(p.required for p in planned)
    assert isinstance(planned[3].open(), Recorded)
    assert all((tmp_path / "copies").iterdir())


def test_a_users_model_that_was_not_recorded_and_cannot_be_copied(tmp_path):
    """bitnet_silu has rows of 640, which no TQ2_0 block divides."""
    copy = tmp_path / "mine.gguf"
    golden_models.retyped("bitnet_silu", copy, "F32")
    source = read(golden_models.model("bitnet_silu"))
    tensors = [TensorData(name=n, shape=t.shape, type=t.type, data=source.raw(n)) for n, t in source.tensors.items()]
    metadata = {k: (source.types[k], v) for k, v in source.metadata.items()} | {"general.url": "another file"}
    write(tmp_path / "i2_s.gguf", metadata, tensors)
    planned = {
        p.name: p
        for p in lanes([planning.user_subject(tmp_path / "i2_s.gguf", FIXTURES)], tmp_path / "copies", shipped=False)
    }
    refused = planned["i2_s · llama.cpp TQ2_0"]
    assert not refused.required
    assert "cannot be TQ2_0: its rows of 640 are not a multiple of 256" in refused.impossible
    recorded = planned["i2_s · bitnet.cpp (recorded)"]
    assert not recorded.required
    assert "nothing was recorded" in recorded.impossible
    floats = lanes([planning.user_subject(copy, FIXTURES)], tmp_path / "copies", shipped=False)
    assert "mine · llama.cpp" in [p.name for p in floats]


def test_a_large_model_is_not_widened(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "LARGE_MODEL", 1000)
    subject = Subject(name="big", path=Path(golden_models.model("llama_tied")))
    assert subject.large
    [wide] = [p for p in lanes([subject], tmp_path, shipped=False) if "F32" in p.name]
    assert not wide.required
    assert "a float32 copy of this model would take 0.0 GB" in wide.impossible
    assert not [path for path in tmp_path.iterdir() if "f32" in path.name]


def test_a_folder_without_models_has_no_subjects(tmp_path):
    assert shipped_subjects(tmp_path) == []
