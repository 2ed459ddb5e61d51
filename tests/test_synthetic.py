"""Models with made-up weights: any shape loads, runs, validates, and comes out the same twice."""

import numpy as np
import pytest

import bitnet
from bitnet.errors import UsageError
from bitnet.synthetic import SHAPES, Shape, make
from bitnet.validate import verify

SMALL = {"n_layer": 2, "n_embd": 256, "n_ff": 384, "n_head": 4, "n_head_kv": 2, "n_vocab": 512, "n_ctx": 64}


@pytest.mark.parametrize(
    ("arch", "tied"), [("bitnet-b1.58", True), ("bitnet", True), ("llama", True), ("llama", False)]
)
def test_every_architecture_loads_and_runs(tmp_path, arch, tied):
    path = make(tmp_path / "m.gguf", Shape(**SMALL, arch=arch, tied=tied))
    model = bitnet.load(path)
    assert (model.config.n_layer, model.config.n_ff, model.config.tied_head) == (2, 384, tied)
    assert np.isfinite(model.logits(range(40))).all()
    assert len(model.generate("hello", max_new_tokens=4, ignore_eos=True).ids) == 4
    assert verify(path).ok


def test_the_same_seed_makes_the_same_file(tmp_path):
    one, two, other = (make(tmp_path / f"{i}.gguf", Shape(**SMALL), seed=seed) for i, seed in enumerate((5, 5, 6)))
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


def test_progress_ends_near_the_whole(tmp_path):
    seen = []
    make(tmp_path / "m.gguf", Shape(**SMALL), done=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[0][0] == 0 < seen[-1][0] < seen[-1][1]


@pytest.mark.parametrize(
    "wrong",
    [{"n_embd": 100}, {"n_ff": 100}, {"n_head": 3}, {"n_head_kv": 3}, {"n_vocab": 100}, {"n_layer": 0}, {"n_ctx": 0}],
)
def test_shapes_that_have_no_meaning(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Shape(**SMALL | wrong)


def test_published_shapes_are_sound():
    assert SHAPES["2b-4t"].head_dim == 128
    assert all(shape.n_embd % shape.head_dim == 0 for shape in SHAPES.values())
