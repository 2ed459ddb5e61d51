"""A recording answers what was asked to the bit, refuses the rest, and no changed byte gets through."""

import json
import zipfile

import golden_models
import numpy as np
import pytest

from reference.oracle import Oracle
from reference.recording import Recorder, Recording, _digest
from reference.runner import Observation, ReferenceUnavailableError, Request, Runner, RunnerInfo

IDS = (1, 2, 3, 4)
TEXT = "caf\udce9"  # a byte that is no UTF-8


class WithTexts(Oracle):
    def tokenize(self, text, *, add_special=True, parse_special=True):
        return (7, len(text)) if add_special else (len(text),)


@pytest.fixture(scope="module")
def live():
    return WithTexts(str(golden_models.model("b158_a")))


@pytest.fixture
def path(live, tmp_path):
    recorder = Recorder(live)
    recorder.run(Request(ids=IDS, n_greedy=3))
    recorder.run(Request(ids=IDS, taps=True))
    recorder.run(Request(ids=IDS, n_batch=1, taps=True))
    recorder.tokenize(TEXT)
    recorder.tokenize(TEXT, add_special=False)
    recorder.weights("blk.0.attn_q.weight")
    target = tmp_path / "a.recording"
    assert recorder.save(target) == 3
    return target


def test_it_says_who_answered_and_that_it_is_recorded(path, live):
    with Recording(path) as replay:
        assert isinstance(replay, Runner)
        assert replay.info.obtained == "recorded"
        assert replay.info.library_sha256 == live.info.library_sha256
        assert replay.info.model_sha256 == live.info.model_sha256
        assert replay.info.numerics == live.info.numerics
        assert {"tokens", "weights", "operations"} <= replay.rungs()


@pytest.mark.parametrize(
    "request_",
    [
        Request(ids=IDS),
        Request(ids=IDS, n_greedy=3),
        Request(ids=IDS, n_greedy=1),
        Request(ids=IDS, n_batch=4),
        Request(ids=IDS, n_greedy=2, last_only=True),
        Request(ids=IDS, taps=True),
        Request(ids=IDS, n_batch=1),
        Request(ids=IDS, n_batch=1, taps=True),
    ],
)
def test_what_was_asked_is_answered_to_the_bit(path, live, request_):
    with Recording(path) as replay:
        ours, theirs = replay.run(request_), live.run(request_)
    assert (ours.ids, ours.generated) == (theirs.ids, theirs.generated)
    first = len(IDS) - 1 if request_.last_only else 0
    assert (ours.logits == theirs.logits[-len(ours.logits) :]).all()
    assert len(ours.logits) == len(IDS) + max(request_.n_greedy - 1, 0) - first
    assert ours.taps.keys() == theirs.taps.keys()
    assert all((ours.taps[key] == theirs.taps[key]).all() for key in theirs.taps)


def test_texts_and_weights(path, live):
    with Recording(path) as replay:
        assert replay.tokenize(TEXT) == (7, 4)
        assert replay.tokenize(TEXT, add_special=False) == (4,)
        assert (replay.weights("blk.0.attn_q.weight") == live.weights("blk.0.attn_q.weight")).all()
        assert (replay.weights("blk.0.attn_q.weight", (3, 9)) == live.weights("blk.0.attn_q.weight", (3, 9))).all()


def test_everything_else_is_refused(path):
    lock = {("embd", -1): np.zeros((4, 256), np.float32)}
    with Recording(path) as replay:
        for request in (
            Request(ids=(1, 2, 3)),
            Request(ids=IDS, n_batch=2),
            Request(ids=IDS, n_greedy=4),
            Request(ids=IDS, lock=lock),
        ):
            with pytest.raises(ReferenceUnavailableError, match="does not hold"):
                replay.run(request)
        with pytest.raises(ReferenceUnavailableError, match="does not hold"):
            replay.tokenize("other")
        with pytest.raises(ReferenceUnavailableError, match="does not hold"):
            replay.weights("blk.1.attn_q.weight")


def test_the_same_answers_make_the_same_file(live, tmp_path):
    made = []
    for name in "ab":
        recorder = Recorder(live)
        recorder.run(Request(ids=IDS))
        recorder.save(tmp_path / name)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_locked_inputs_and_refused_answers_are_not_kept(live, tmp_path):
    recorder = Recorder(live, weights=False)
    taps = live.run(Request(ids=IDS, taps=True)).taps
    recorder.run(Request(ids=IDS, lock={("embd", -1): taps["embd", -1]}))
    recorder.run(Request(ids=IDS, last_only=True))
    recorder.weights("blk.0.attn_q.weight")
    with pytest.raises(ReferenceUnavailableError, match="nothing was computed"):
        recorder.save(tmp_path / "a")
    recorder.run(Request(ids=IDS))
    recorder.save(tmp_path / "a")
    with Recording(tmp_path / "a") as replay:
        assert replay.rungs() == {"identity", "logits", "decode", "greedy", "quality"}


def rewritten(path, change):
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)


def edit(key, value):
    def change(parts):
        manifest = json.loads(parts["manifest.json"])
        manifest[key] = value
        parts["manifest.json"] = json.dumps(manifest).encode()

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (edit("schema", "other/1"), "its schema is 'other/1'"),
        (edit("weights", {}), "changed after it was written"),
        (lambda parts: parts.pop("manifest.json"), "no item named"),
        (lambda parts: parts.update({"manifest.json": b"[]"}), "cannot be replayed"),
        (lambda parts: parts.update({"manifest.json": b"{"}), "cannot be replayed"),
    ],
)
def test_a_changed_manifest_is_refused(path, change, why):
    rewritten(path, change)
    with pytest.raises(ReferenceUnavailableError, match=why):
        Recording(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m["runner"].update(name=5), "runner.name is no text"),
        (lambda m: [run.update(generated=None) for run in m["runs"]], r"runs\[0\].generated is no list"),
        (lambda m: [run.pop("logits") for run in m["runs"]], r"runs\[0\].logits is missing"),
        (lambda m: m.update(runs=None), "runs is no list"),
    ],
)
def test_odd_content_is_refused_though_its_digest_is_right(path, change, why):
    def sealed(parts):
        manifest = json.loads(parts["manifest.json"])
        change(manifest)
        parts["manifest.json"] = json.dumps(manifest | {"digest": _digest(manifest)}).encode()

    rewritten(path, sealed)
    with pytest.raises(ReferenceUnavailableError, match=f"a.recording cannot be replayed: {why}"):
        Recording(path)


def test_an_archive_that_is_damaged_inside_is_refused(path):
    data = bytearray(path.read_bytes())
    for name, refused in ((b"manifest.json", 0), (b"arrays/", 0)):
        for kind in (0x01, 0x40):  # encrypted; compressed in an unknown way is in the next field
            broken = bytearray(data)
            at = broken.find(b"PK\x01\x02")
            while at >= 0:
                if broken[at + 46 :].startswith(name):
                    broken[at + (8 if kind == 1 else 10)] |= kind
                at = broken.find(b"PK\x01\x02", at + 4)
            path.write_bytes(broken)
            with pytest.raises(ReferenceUnavailableError, match="cannot be replayed"), Recording(path) as replay:
                replay.run(Request(ids=IDS))
            refused += 1
        assert refused == 2


def swap(parts):
    arrays = [name for name in parts if name.startswith("arrays/")]
    parts.update(dict.fromkeys(arrays, parts[arrays[0]]))


def flip(parts):
    for name in parts:
        if name.startswith("arrays/"):
            parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1])


@pytest.mark.parametrize("change", [swap, flip, lambda p: [p.pop(n) for n in list(p) if n.startswith("arrays/")]])
def test_a_changed_exchanged_or_missing_array_is_refused(path, change):
    rewritten(path, change)
    refused = []
    with Recording(path) as replay:
        for n_batch in (None, 1):
            with pytest.raises(ReferenceUnavailableError, match="cannot be replayed") as caught:
                replay.run(Request(ids=IDS, n_batch=n_batch, taps=True))
            refused.append(caught.value)
    assert len(refused) == 2


def test_no_file_no_archive_and_no_folder(tmp_path):
    with pytest.raises(ReferenceUnavailableError, match="cannot be replayed"):
        Recording(tmp_path / "none")
    (tmp_path / "a").write_bytes(b"text")
    with pytest.raises(ReferenceUnavailableError, match="cannot be replayed"):
        Recording(tmp_path / "a")
    info = RunnerInfo(
        name="x", family="x", version="", library_sha256="", obtained="live", numerics={}, model_sha256=""
    )

    class One:
        def __init__(self):
            self.info = info

        def run(self, request):
            return Observation(ids=request.ids, logits=np.zeros((1, 2), np.float32))

    recorder = Recorder(One())
    recorder.run(Request(ids=(1,)))
    with pytest.raises(ReferenceUnavailableError, match="cannot be written"):
        recorder.save(tmp_path / "nowhere" / "a")
