"""Reading memory: everything is read, and the rate is a rate."""

import numpy as np
import pytest

from bitnet.kernels import bandwidth


@pytest.mark.parametrize("ahead", [0, 4096])
def test_every_word_is_read_once(ahead):
    words = np.arange(64 * 30, dtype=np.float32)
    out = np.empty(1, np.float32)
    bandwidth.read(words, words.view(np.uint8), 64, 64 * 29, ahead, out)
    assert out[0] == words[64 : 64 * 29].sum()


def test_a_rate_that_this_machine_may_have():
    assert 1e8 < bandwidth.measure(2, trials=1, size=1 << 24) < 1e13
