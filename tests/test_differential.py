"""Our reader beside ggml's own parser: what we accept it accepts, and sees the same tensors, or there is a reason."""

from __future__ import annotations

import math
import random
from pathlib import Path

import fuzz_seeds
import pytest
from ggml_verdicts import Verdict, verdicts
from test_refusals import CONTAINER, MODELS, OVER_LIMIT, ROOT

from bitnet.errors import BitNetError
from bitnet.gguf import GGUF, TypedArray, ValueType, read
from bitnet.gguf_types import align_up

pytestmark = pytest.mark.slow

#: Type numbers that bitnet.cpp gave a meaning of its own; ggml retired 36–38, and 39 is its MXFP4.
BITNET_CPP = range(36, 40)
GGML_MAX_NAME = 64  # with the NUL at the end, so ggml takes 63 bytes; the format itself allows 64
#: A file from which ggml takes none of these keys, and why: arrays of arrays are in the format, not in ggml's parser.
REASONS = ("type of bitnet.cpp", "array of arrays", "name of 64 bytes", "gap or order")


def reason(file: GGUF) -> str | None:
    """Why ggml may refuse a file, or see it otherwise, although it is sound."""
    if any(t.type in BITNET_CPP for t in file.tensors.values()):
        return "type of bitnet.cpp"
    if any(isinstance(v, TypedArray) and v.type is ValueType.ARRAY for v in file.metadata.values()):
        return "array of arrays"
    if any(len(name.encode()) >= GGML_MAX_NAME for name in file.tensors):
        return "name of 64 bytes"
    end = None  # ggml wants tensors in the header's order, each where the one before ends
    for t in file.tensors.values():
        if end is not None and t.offset != end:
            return "gap or order"
        end = align_up(t.offset + t.n_bytes - start_of(file), file.alignment) + start_of(file)
    if file.tensors and next(iter(file.tensors.values())).offset != start_of(file):
        return "gap or order"
    return None


def start_of(file: GGUF) -> int:
    """Where the data section begins, found again from the bytes."""
    from bitnet.gguf_header import parse

    return align_up(parse(file.path.read_bytes(), "m").end, file.alignment)


def fault(file: GGUF, verdict: Verdict) -> str | None:
    """What is wrong with a pair of answers, if anything: ours is that the file is sound."""
    why = reason(file)
    if isinstance(verdict, str):
        return None if why else f"we accept what ggml {verdict}"
    ours = {
        t.name: (int(t.type), math.prod(t.shape[:-1]), t.shape[-1], t.offset, t.n_bytes) for t in file.tensors.values()
    }
    return None if ours == verdict or why else f"we see {ours}, ggml sees {verdict}"


def compare(paths: list[Path]) -> dict[str, int]:
    """Counts by outcome; any fault fails the test."""
    accepted: list[tuple[Path, GGUF]] = []
    counts = {"refused by us": 0, "agreed": 0, **dict.fromkeys(REASONS, 0)}
    for path in paths:
        try:
            accepted.append((path, read(path)))
        except BitNetError:
            counts["refused by us"] += 1
    answers = verdicts([path for path, _ in accepted])
    for (path, file), answer in zip(accepted, answers, strict=True):
        found = fault(file, answer)
        assert found is None, f"{path.name}: {found}"
        counts[reason(file) or "agreed"] += 1
    return counts


def test_on_sound_models():
    paths = [*(ROOT / "fixtures" / "models").glob("*.gguf"), *(ROOT / "fixtures" / "goldens").glob("*.gguf")]
    counts = compare(paths)
    assert counts["refused by us"] == 0
    assert counts["agreed"] >= 3
    assert counts["type of bitnet.cpp"] >= 5


def test_on_the_malformed_ones(tmp_path):
    """The containers among them are refused by us; of the models, the container is sound."""
    files = {**CONTAINER, **{name: raw for name, (raw, _) in MODELS.items()}}
    files |= {name: pieces[0] for name, (pieces, _) in OVER_LIMIT.items()}
    paths = []
    for i, raw in enumerate(files.values()):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(raw)
    counts = compare(paths)
    assert counts["refused by us"] >= len(CONTAINER)
    assert counts["agreed"] >= 80


@pytest.mark.parametrize("seed", range(4))
def test_on_damaged_ones(tmp_path, seed):
    rng = random.Random(seed)
    seeds = [raw for raw in fuzz_seeds.seeds().values() if len(raw) < 10_000]
    words = fuzz_seeds.dictionary()
    paths = []
    for i in range(1500):
        raw = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(raw), 1500))
            match rng.randrange(5):
                case 0:
                    raw[at] ^= 1 << rng.randrange(8)
                case 1:
                    raw[at] = rng.randrange(256)
                case 2:
                    word = rng.choice(words)
                    raw[at : at + len(word)] = word
                case 3:
                    raw[at : at + 8] = rng.choice((0, 1, 32, 64, 2**32, 2**63, 2**64 - 1)).to_bytes(8, "little")
                case _:
                    raw += bytes(rng.randrange(64))
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(raw)
    counts = compare(paths)
    assert counts["agreed"] >= 100  # else the damage is so heavy that nothing was compared


def test_a_liar_is_caught():
    path = ROOT / "fixtures" / "models" / "tiny-llama.tq2_0.gguf"
    file = read(path)
    [answer] = verdicts([path])
    assert fault(file, answer) is None
    name = next(iter(answer))
    kind, rows, columns, offset, n_bytes = answer[name]
    for lie in (
        (kind, rows, columns, offset + 32, n_bytes),
        (kind, rows, columns, offset, n_bytes + 1),
        (kind, columns, rows + 1, offset, n_bytes),
        (kind + 1, rows, columns, offset, n_bytes),
    ):
        assert "ggml sees" in fault(file, answer | {name: lie})
    assert fault(file, {k: v for k, v in answer.items() if k != name})
    assert fault(file, "refused") == "we accept what ggml refused"
    assert fault(file, "aborted")
