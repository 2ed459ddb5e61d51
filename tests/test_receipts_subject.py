"""Who ran, where and on what: the counts that other rules stand on."""

from __future__ import annotations

from dataclasses import replace

from fixtures.receipts.sample import SHAPE, minimal
from receipts.subject import Environment, HyperParameters, Identity, Model, TokenizerRecord

# BitNet-b1.58-2B-4T, whose ternary weights are counted in the facts: 2.08e9.
LARGE = replace(SHAPE, n_layer=30, n_embd=2560, n_ff=6912, n_head=20, n_head_kv=5, head_dim=128, n_vocab=128256)


def test_round_trip():
    receipt = minimal()
    for record in (receipt.identity, receipt.environment, *receipt.models, *receipt.tokenizers, SHAPE):
        assert type(record).from_dict(record.to_dict()) == record
        record.validate()
    assert {Identity, Environment, Model, TokenizerRecord, HyperParameters} >= {type(receipt.identity), type(SHAPE)}


def test_weights_of_a_known_model_are_counted():
    assert LARGE.projection_weights == 2_084_044_800


def test_rows_are_those_of_seven_projections():
    assert LARGE.projection_rows == 30 * (2560 + 640 + 640 + 2560 + 6912 + 6912 + 2560)
