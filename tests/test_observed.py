"""Files of what was observed: both kinds are read alike, and each mistake is a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bitnet.errors import UsageError
from crossval.observed import read

LOGITS = np.arange(30, dtype=np.float32).reshape(5, 6)


def written(folder, **fields):
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    (folder / "seen.json").write_text(json.dumps(plain))
    np.savez(folder / "seen.npz", **fields)
    return folder / "seen.json", folder / "seen.npz"


def test_both_kinds_of_file_are_read_alike(tmp_path):
    for path in written(tmp_path, prompt_ids=[1, 2, 3], generated_ids=[4, 5], logits=LOGITS):
        seen = read(path, 6)
        assert (seen.prompt_ids, seen.generated_ids) == ((1, 2, 3), (4, 5))
        assert np.array_equal(seen.logits, LOGITS)
        evaluation = seen.evaluation(4, 3)
        assert (seen.ids, evaluation.ids, evaluation.n_batch) == ((1, 2, 3, 4, 5), (1, 2, 3, 4), 3)
        assert np.array_equal(evaluation.logits, LOGITS[:4])
    for path in written(tmp_path, prompt_ids=[1], generated_ids=[4, 5]):
        assert read(path, 6).logits is None
        assert read(path, 6).ids == ()
    for path in written(tmp_path, prompt_ids=[1, 2, 3], logits=LOGITS[:2], log_probabilities=True):
        assert read(path, 6).ids == (1, 2)
        assert read(path, 6).evaluation(2, None).log_probabilities


def test_rows_before_the_first_that_is_not_finite(tmp_path):
    for value, row in ((np.nan, 3), (np.inf, 0), (-np.inf, 4)):
        logits = LOGITS.copy()
        logits[row:, 2] = value
        for path in written(tmp_path, prompt_ids=[1, 2, 3], generated_ids=[4, 5], logits=logits):
            assert read(path, 6).n_finite == row
    for path in written(tmp_path, prompt_ids=[1, 2, 3], generated_ids=[4, 5], logits=LOGITS):
        assert read(path, 6).n_finite == 5
    np.savez(tmp_path / "large.npz", prompt_ids=[1], logits=np.array([[1e300, 0.0]]))
    assert read(tmp_path / "large.npz", 2).n_finite == 0


def test_the_choice_of_its_own_rows(tmp_path):
    logits = np.zeros((4, 6), np.float32)
    logits[1, 5], logits[2, 0] = 1.0, np.nan  # the last row has all alike
    for path in written(tmp_path, prompt_ids=[1, 2], generated_ids=[3, 4, 2, 1], logits=logits):
        assert read(path, 6).own_choices() == (5, 4, 2)
    logits[1] = -3.0
    logits[1, 5] += np.float32(5e-6)  # what a server tells of a log-probability is no more exact
    for told, chosen in ((False, 5), (True, 3)):
        fields = {"prompt_ids": [1, 2], "generated_ids": [3, 4], "logits": logits, "log_probabilities": told}
        for path in written(tmp_path, **fields):
            assert read(path, 6).own_choices() == (chosen, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no prompt_ids"),
        ({"prompt_ids": [1]}, "neither generated_ids nor logits"),
        ({"prompt_ids": [1.5], "generated_ids": [1]}, "prompt_ids is no list of ids"),
        ({"prompt_ids": [1], "generated_ids": [[1]]}, "generated_ids is no list of ids"),
        ({"prompt_ids": [1], "generated_ids": [6]}, "outside the vocabulary of 6"),
        ({"prompt_ids": [-1], "generated_ids": [5]}, "outside the vocabulary of 6"),
        ({"prompt_ids": [1], "logits": LOGITS}, r"shape \[5, 6\], not a row of 6 after each of 1 ids"),
        ({"prompt_ids": [1, 2, 3, 4, 5], "logits": LOGITS[:, :5]}, r"shape \[5, 5\]"),
        ({"prompt_ids": [1] * 5, "logits": LOGITS.astype(str)}, "no table of real numbers, but of str"),
        ({"prompt_ids": [1] * 5, "logits": LOGITS > 3}, "no table of real numbers, but of bool"),
        ({"prompt_ids": [1], "generated_ids": [1], "log_probabilities": "false"}, "neither true nor false"),
        ({"prompt_ids": [1], "generated_ids": [1], "log_probabilities": 1}, "neither true nor false"),
        ({"prompt_ids": [1], "generated_ids": [1], "log_probabilities": [True, False]}, "neither true nor false"),
    ],
)
def test_mistakes(tmp_path, fields, message):
    for path in written(tmp_path, **fields):
        with pytest.raises(UsageError, match=message):
            read(path, 6)


def test_complex_logits_are_refused(tmp_path):
    np.savez(tmp_path / "seen.npz", prompt_ids=[1] * 5, logits=LOGITS.astype(np.complex64))
    with pytest.raises(UsageError, match="no table of real numbers, but of complex64"):
        read(tmp_path / "seen.npz", 6)


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"\xff", b'{"prompt_ids": [[1], 2], "generated_ids": [1]}', b"[" * 10**5]
)
@pytest.mark.parametrize("name", ["seen.json", "seen.npz"])
def test_nonsense(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError):
        read(tmp_path / name, 6)


def test_a_single_array_is_no_archive(tmp_path):
    with (tmp_path / "seen.npz").open("wb") as file:
        np.save(file, LOGITS)
    with pytest.raises(UsageError, match="single array"):
        read(tmp_path / "seen.npz", 6)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "absent.json", 6)
