"""Weights of a file in the forms that transformers multiplies with: nothing is lost, or changes place unasked."""

import golden_models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.gguf import read
from reference import hf_weights
from reference.contract import hyper_parameters
from reference.decode import Matrix
from reference.oracle import Oracle
from reference.runner import ReferenceUnavailableError
from reference.semantics import CONTRACT

TRITS = np.array([[-1, 0, 1, 1], [0, 0, -1, 1], [1, 1, 1, -1], [-1, -1, 0, 0]], np.int8)


def matrix(values=TRITS, *, scale=0.25, extra=None, block=None, ternary=True):
    return Matrix(
        values=values,
        ternary=ternary,
        scale=np.float32(scale),
        extra_scale=None if extra is None else np.float32(extra),
        block_scale=block,
    )


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packed_trits_come_back(quarter, columns, seed):
    trits = np.random.default_rng(seed).integers(-1, 2, (4 * quarter, columns)).astype(np.int8)
    assert (hf_weights.unpack(hf_weights.pack(trits)) == trits).all()


def test_a_byte_holds_rows_a_quarter_apart():
    trits = np.array([[1], [0], [-1], [0], [1], [1], [0], [-1]], np.int8)
    assert hf_weights.pack(trits).tolist() == [
        [2 + (0 << 2) + (2 << 4) + (1 << 6)],
        [1 + (1 << 2) + (2 << 4) + (0 << 6)],
    ]


def test_one_layer_divides_and_the_other_multiplies():
    packed = hf_weights.projection(matrix(extra=2.0), "bitlinear", "w")
    floats = hf_weights.projection(matrix(extra=2.0), "autobitlinear", "w")
    assert packed.weight_scale.tolist() == [2.0]
    assert floats.weight_scale.tolist() == [0.5]
    assert (hf_weights.unpack(packed.weight) == floats.weight).all()


def test_a_dense_matrix_is_an_ordinary_layer():
    made = hf_weights.projection(
        matrix(TRITS.astype(np.float32), scale=1.0, extra=3.0, ternary=False), "bitlinear", "w"
    )
    assert made.kind == "linear"
    assert made.weight_scale is None
    assert (made.weight == 3.0 * TRITS).all()


def test_what_packed_rows_cannot_hold_is_refused_and_floats_hold_it():
    block = np.array([[1.0, 2.0]] * 4, np.float32)
    with pytest.raises(ReferenceUnavailableError, match="scales of its own in every block"):
        hf_weights.projection(matrix(block=block), "bitlinear", "w")
    with pytest.raises(ReferenceUnavailableError, match="w has 3 rows"):
        hf_weights.projection(matrix(TRITS[:3]), "bitlinear", "w")
    assert (hf_weights.projection(matrix(block=block), "autobitlinear", "w").weight == TRITS * [1, 1, 2, 2]).all()


def test_neighbouring_pairs_become_halves():
    assert hf_weights.pair_order(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_only_q_and_k_of_pairs_change_places():
    for name, changed in (("llama_tied", {"attn_q", "attn_k"}), ("b158_a", set())):
        gguf = read(golden_models.model(name))
        assert set(hf_weights.orders(hyper_parameters(gguf.metadata, gguf.tensors, CONTRACT))) == changed


def test_every_tensor_has_a_name_there():
    assert hf_weights.module_name("blk.3.attn_output.weight") == "model.layers.3.self_attn.o_proj"
    assert hf_weights.module_name("blk.0.ffn_sub_norm.weight") == "model.layers.0.mlp.ffn_sub_norm"
    assert hf_weights.module_name("token_embd.weight") == "model.embed_tokens"
    for name in ("rope_freqs.weight", "blk.0.attn_q.scale", "blk.x.attn_q.weight"):
        with pytest.raises(ReferenceUnavailableError, match="nothing that stands for"):
            hf_weights.module_name(name)


@pytest.mark.parametrize("name", ["b158_hd128", "llama_tied"])
def test_a_whole_file_is_mapped(name):
    path = golden_models.model(name)
    gguf, oracle = read(path), Oracle(str(path))
    hyper = hyper_parameters(gguf.metadata, gguf.tensors, CONTRACT)
    made = dict(hf_weights.projections(gguf, hyper, "bitlinear"))
    rest = dict(hf_weights.others(gguf, hyper))
    assert len(made) == 7 * hyper.n_layer
    assert len(made) + len(rest) == len(gguf.tensors) + ("output.weight" not in gguf.tensors)
    q = made["model.layers.0.self_attn.q_proj"]
    values = hf_weights.unpack(q.weight) * q.scale
    order = hf_weights.orders(hyper).get("attn_q", np.arange(len(values)))
    assert (values == oracle.weights("blk.0.attn_q.weight")[order]).all()
    assert (rest["lm_head.weight"] == rest["model.embed_tokens.weight"]).all()
