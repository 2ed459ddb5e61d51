"""llama.cpp's files of log-probabilities: its own arithmetic one value at a time, and every damaged file."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import UsageError
from crossval import kld_file
from crossval.metrics import log_softmax

F = np.float32


def one_value_at_a_time(row):
    """What the tool stores for one row, by plain loops over float32."""
    largest = max(row)
    smallest = max(min(row), F(largest - F(16)))
    log_sum = F(math.log(sum(float(np.exp(F(x - largest))) for x in row)))
    scale = F(F(largest - smallest) / F(65535))
    codes = [int(np.rint(F(F(F(1) / scale) * F(x - smallest)))) if scale > 0 and x > smallest else 0 for x in row]
    padding = [0] * (len(row) % 2)
    return struct.pack("<ff", scale, F(F(smallest - largest) - log_sum)) + struct.pack(
        f"<{len(codes) + len(padding)}H", *codes, *padding
    )


rows = st.integers(2, 40).flatmap(
    lambda n: st.lists(st.floats(-40, 40, width=32), min_size=n, max_size=n).map(lambda v: np.array(v, F))
)


@given(rows)
def test_rows_are_stored_as_the_tool_stores_them(row):
    stored = np.frombuffer(kld_file.encode(row[None])[0].tobytes(), "<u2")
    expected = np.frombuffer(one_value_at_a_time(row), "<u2")
    assert stored.shape == expected.shape
    assert np.abs(stored[4:].astype(int) - expected[4:]).max() <= 1  # a tie of the float32 product
    # numpy's vectorised exponential may differ from the scalar one in the last bit of a float32
    assert np.allclose(stored[:4].view("<f4"), expected[:4].view("<f4"), rtol=3e-7, atol=0)


@given(rows)
def test_what_is_read_back_is_near(row):
    back = kld_file.decode(kld_file.encode(row[None]), len(row))[0]
    true = log_softmax(row[None])[0]
    kept = row >= row.max() - F(16)
    # half a step of 16 / 65535, and float32 around values of up to 20
    assert np.abs(back - true)[kept].max() <= 16 / 65535 / 2 + 8e-6
    assert (back[~kept] <= true.max() - 16 + 1e-5).all()


def test_equal_logits_have_no_scale():
    stored = kld_file.encode(np.zeros((1, 3), F))
    assert (stored[0, 4:] == 0).all()
    assert np.allclose(kld_file.decode(stored, 3), -math.log(3), atol=1e-6)  # float32


def write(path, n_ctx=8, n_vocab=5, n_chunk=2, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, n_vocab, (n_chunk, n_ctx)).astype(np.int32)
    logits = rng.normal(size=(n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)).astype(F)
    with kld_file.Writer(path, tokens, n_vocab) as writer:
        for chunk in logits:
            writer.add(chunk)
    return tokens, logits


@pytest.mark.parametrize(("n_ctx", "n_vocab"), [(8, 5), (9, 6), (4, 2)])
def test_a_file_is_read_as_it_was_written(tmp_path, n_ctx, n_vocab):
    path = tmp_path / "a.kld"
    tokens, logits = write(path, n_ctx, n_vocab)
    header = kld_file.read_header(path)
    assert (header.tokens == tokens).all()
    assert path.read_bytes()[:20] == b"_logits_" + struct.pack("<iii", n_ctx, n_vocab, 2)
    for found, given_ in zip(kld_file.chunks(path, header), logits, strict=True):
        assert np.abs(found - log_softmax(given_)).max() <= 16 / 65535  # one step of the file's resolution
    assert kld_file.scored(header, 1) == tuple(tokens[1, n_ctx // 2 + 1 :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"_logit__" + raw[8:],
        lambda raw: raw[:10],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:8] + struct.pack("<i", -1) + raw[12:],
        lambda raw: raw[:12] + struct.pack("<i", 1 << 30) + raw[16:],
        lambda raw: raw[:20] + struct.pack("<i", 5) + raw[24:],
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path, damage):
    path = tmp_path / "a.kld"
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="is no file of log-probabilities"):
        kld_file.read_header(path)


def test_a_missing_file_and_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        kld_file.read_header(tmp_path / "none")
    with (
        pytest.raises(UsageError, match="cannot be written"),
        kld_file.Writer(tmp_path / "none" / "a", np.zeros((1, 4), np.int32), 3),
    ):
        pass


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    path = tmp_path / "a.kld"
    tokens = np.zeros((2, 8), np.int32)
    with (
        pytest.raises(ValueError, match="1 chunks were added, 2 announced"),
        kld_file.Writer(path, tokens, 5) as writer,
    ):
        writer.add(np.zeros((3, 5), F))
    with pytest.raises(ValueError, match="rows of shape"), kld_file.Writer(path, tokens, 5) as writer:
        writer.add(np.zeros((4, 5), F))
    assert list(tmp_path.iterdir()) == []
