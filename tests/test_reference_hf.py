"""transformers as a reference: operations on their own and on locked inputs, both layers; and what is without torch."""

import golden_models
import numpy as np
import pytest

from crossval.metrics import difference
from reference import hf
from reference.oracle import Oracle
from reference.process import ProcessRunner
from reference.runner import ReferenceUnavailableError, Request, tap_order

IDS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)
RELU2 = golden_models.FOLDER.parent / "models" / "tiny-relu2.i2_s.gguf"
#: As `crossval.envelope.LOCKED_OPERATION`: the order of float32 sums, 1e-7 to 5e-7 measured here.
LOCKED = 1e-6


def test_without_torch_it_is_unavailable_and_says_how_to_get_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(hf.importlib, "import_module", missing)
    with pytest.raises(ReferenceUnavailableError, match="torch, which is not installed") as caught:
        hf.Transformers(RELU2)
    assert "bitnet-crossval[hf]" in str(caught.value)


def test_whether_it_is_installed_is_found_out_without_importing_it(monkeypatch):
    monkeypatch.setattr(hf.importlib.util, "find_spec", lambda name: None if name == "transformers" else object())
    assert not hf.installed()
    monkeypatch.setattr(hf.importlib.util, "find_spec", lambda name: object())
    assert hf.installed()


@pytest.fixture(scope="module", params=["bitlinear", "autobitlinear"])
def relu2(request):
    pytest.importorskip("torch")
    kwargs = {"model": str(RELU2), "linear_class": request.param}
    with ProcessRunner("reference.hf:Transformers", kwargs, timeout=300) as runner:
        yield runner


def largest(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(difference(ours[key], theirs[key]).ratio for key in theirs)


@pytest.mark.hf
@pytest.mark.parametrize("n_batch", [None, 1, 4])
def test_every_operation_on_its_own_inputs(relu2, n_batch):
    seen = relu2.run(Request(ids=IDS, n_batch=n_batch, taps=True))
    oracle = Oracle(str(RELU2), numerics=relu2.info.numerics)
    assert list(seen.taps) == [key for key in tap_order(oracle.n_layer) if key in seen.taps] or seen.taps
    assert set(seen.taps) == set(tap_order(oracle.n_layer))
    locked = oracle.run(Request(ids=IDS, n_batch=n_batch, taps=True, lock=seen.taps))
    assert largest(locked.taps, seen.taps) <= LOCKED
    assert (seen.taps["result_output", -1] == seen.logits).all()


@pytest.mark.hf
def test_it_computes_on_locked_inputs_and_the_residual_stream_follows(relu2):
    oracle = Oracle(str(RELU2), numerics=relu2.info.numerics)
    free = oracle.run(Request(ids=IDS, taps=True)).taps
    moved = dict(free) | {("ffn_inp", 1): free["ffn_inp", 1] + np.float32(1), ("q_rope", 0): -free["q_rope", 0]}
    theirs = relu2.run(Request(ids=IDS, taps=True, lock=moved)).taps
    ours = oracle.run(Request(ids=IDS, taps=True, lock=moved)).taps
    assert largest(ours, theirs) <= LOCKED
    assert difference(theirs["l_out", 1], free["l_out", 1]).max_abs_err > 0.9
    assert relu2.run(Request(ids=IDS)).logits.shape == (len(IDS), theirs["result_output", -1].shape[1])


@pytest.mark.hf
def test_it_continues_greedily_and_says_who_it_is(relu2):
    seen = relu2.run(Request(ids=IDS, n_greedy=5))
    forced = relu2.run(Request(ids=(*IDS, *seen.generated[:-1]), n_batch=len(IDS)))
    assert (forced.logits == seen.logits).all()
    last = relu2.run(Request(ids=IDS, n_greedy=5, last_only=True))
    assert (last.logits == seen.logits[len(IDS) - 1 :]).all()
    assert seen.generated == tuple(int(i) for i in forced.logits[len(IDS) - 1 :].argmax(axis=1))
    info = relu2.info
    assert (info.name, info.family, info.obtained) == ("transformers", "transformers", "live")
    assert len(info.library_sha256) == 64
    assert info.numerics["activation"] == "int8_token_reciprocal"
    assert info.detail["class"] == "BitNetForCausalLM"


@pytest.mark.hf
def test_weights_come_back_from_the_model_in_memory(relu2):
    oracle = Oracle(str(RELU2))
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "token_embd.weight", "blk.0.ffn_sub_norm.weight"):
        assert (relu2.weights(name).reshape(-1) == oracle.weights(name).reshape(-1)).all()
    with pytest.raises(ReferenceUnavailableError, match="no tensor"):
        relu2.weights("blk.0.attn_q.scale")


@pytest.mark.hf
def test_what_it_is_not_asked_for(relu2):
    with pytest.raises(ReferenceUnavailableError, match="not a tokenizer"):
        relu2.tokenize("text")
    for ids in ((), (10**6,)):
        with pytest.raises(ReferenceUnavailableError, match="asked to evaluate"):
            relu2.run(Request(ids=ids))


@pytest.mark.hf
@pytest.mark.parametrize("file", ["goldens/llama_tied.gguf", "goldens/b158_hd128.gguf", "models/tiny-llama.f32.gguf"])
def test_other_graphs_heads_and_dense_weights(file):
    pytest.importorskip("torch")
    path = golden_models.FOLDER.parent / file
    with ProcessRunner("reference.hf:Transformers", {"model": str(path)}, timeout=300) as runner:
        seen = runner.run(Request(ids=IDS, taps=True))
        oracle = Oracle(str(path), numerics=runner.info.numerics)
        locked = oracle.run(Request(ids=IDS, taps=True, lock=seen.taps))
        assert largest({key: locked.taps[key] for key in seen.taps}, seen.taps) <= LOCKED
        assert (runner.weights("blk.0.attn_k.weight") == oracle.weights("blk.0.attn_k.weight")).all()
