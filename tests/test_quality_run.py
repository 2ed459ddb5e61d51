"""A text in chunks through a runner, kept as a base and scored against it."""

import golden_models
import numpy as np
import pytest

from bitnet.errors import UsageError
from crossval import kld_file
from crossval.metrics import negative_log_likelihood
from crossval.quality_run import evaluate, text_chunks
from reference.oracle import Oracle
from reference.runner import Request


@pytest.fixture(scope="module")
def oracle():
    return Oracle(str(golden_models.model("b158_a")))


TOKENS = text_chunks([int(i) for i in np.random.default_rng(1).integers(0, 512, 70)], 16)


def test_a_text_is_cut_and_its_rest_left(oracle):
    assert TOKENS.shape == (4, 16)
    assert text_chunks(range(70), 16, 2).tolist() == [list(range(16)), list(range(16, 32))]
    for n_ctx in (0, 3, 71):
        with pytest.raises(UsageError, match="make no chunk"):
            text_chunks(range(70), n_ctx)


def test_the_second_half_of_each_chunk_is_scored(oracle):
    found = evaluate(oracle, TOKENS, bos=7)
    nll = []
    for chunk in TOKENS:
        ids = (7, *(int(i) for i in chunk[1:]))
        nll.append(negative_log_likelihood(oracle.run(Request(ids=ids)).logits, ids)[8:])
    assert found.n == 4 * 7
    assert found.perplexity.value == pytest.approx(np.exp(np.concatenate(nll).mean()), rel=1e-12)  # float64


def test_a_base_is_kept_and_found_again(oracle, tmp_path):
    base, seen = tmp_path / "base.kld", []
    first = evaluate(oracle, TOKENS, bos=None, save=base, progress=lambda *at: seen.append(at))
    again = evaluate(oracle, TOKENS, bos=None, base=base)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert again.perplexity == first.perplexity
    assert again.base_perplexity.value == pytest.approx(first.perplexity.value, rel=2e-4)  # a step of the file, 2.4e-4
    assert abs(again.kld.value) < 6e-5  # what the file clips: 512 tokens of at most e^−16 each
    assert again.same_top.value == 1.0


def test_another_text_or_vocabulary_is_no_base(oracle, tmp_path):
    base = tmp_path / "base.kld"
    evaluate(oracle, TOKENS, bos=None, save=base)
    with pytest.raises(UsageError, match="another text"):
        evaluate(oracle, TOKENS[:2], bos=None, base=base)
    small = TOKENS % 100
    with kld_file.Writer(base, small, 100) as writer:
        for _ in small:
            writer.add(np.zeros((7, 100), np.float32))
    with pytest.raises(UsageError, match="has 100 tokens in its vocabulary, not 512"):
        evaluate(oracle, small, bos=None, base=base)
