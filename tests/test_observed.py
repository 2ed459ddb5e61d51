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
        evaluation = seen.evaluation()
        assert (evaluation.ids, evaluation.n_batch) == ((1, 2, 3, 4, 5), 3)
    for path in written(tmp_path, prompt_ids=[1], generated_ids=[4, 5]):
        assert read(path, 6).evaluation() is None
    for path in written(tmp_path, prompt_ids=[1, 2, 3], logits=LOGITS[:2], log_probabilities=True):
        assert read(path, 6).evaluation().ids == (1, 2)
        assert read(path, 6).evaluation().log_probabilities


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
    ],
)
def test_mistakes(tmp_path, fields, message):
    for path in written(tmp_path, **fields):
        with pytest.raises(UsageError, match=message):
            read(path, 6)


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
