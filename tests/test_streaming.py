import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitnet import gguf, tokenizer
from bitnet.errors import UsageError
from bitnet.streaming import TextStream
from fixtures.texts import battery, probes


@pytest.fixture(scope="session")
def bpe():
    return tokenizer.from_gguf(gguf.read(probes.GOLDEN))


@pytest.fixture(scope="session")
def spm():
    """Bytes, a few pieces that hold one another, and special tokens: ids are 3 + byte for bytes."""
    pieces = ["▁", "▁a", "ab", "abc", "▁▁", "stop", "é", "<|eot_id|>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    return tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": np.arange(len(tokens), dtype=np.float32),
            "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 7 + [3], np.int32),
        }
    )


IDS = st.lists(st.integers(0, 511), max_size=40)
SPM_IDS = st.lists(st.one_of(st.integers(0, 266), st.integers(256, 266)), max_size=40)
STOPS = st.lists(st.text("abcst \ufffd▁é", min_size=1, max_size=4), max_size=3)


def stream(made, ids, stop=(), **options):
    """Everything a stream gives, piece by piece, and the stop string it met."""
    text = TextStream(made, stop, **options)
    pieces = [text.feed(i) for i in ids]
    return [*pieces, text.finish()], text.stopped


def cut(text, stop):
    """`text` up to the stop string that is complete first, found by trying every end."""
    for end in range(len(text) + 1):
        met = [s for s in stop if text[:end].endswith(s)]
        if met:
            return text[: end - max(map(len, met))], max(met, key=len)
    return text, None


@given(ids=IDS, skip=st.booleans())
@example(ids=[161, 98, 121, 220], skip=True)
@settings(max_examples=300, deadline=None)
def test_the_pieces_join_to_the_decoded_text(bpe, ids, skip):
    pieces, stopped = stream(bpe, ids, skip_special=skip)
    assert "".join(pieces) == bpe.decode(ids, skip_special=skip)
    assert stopped is None


@given(ids=SPM_IDS, skip=st.booleans(), continuation=st.booleans())
@example(ids=[1, 259, 260], skip=False, continuation=False)
@settings(max_examples=300, deadline=None)
def test_the_pieces_join_to_the_decoded_text_with_sentence_pieces(spm, ids, skip, continuation):
    options = {"skip_special": skip, "continuation": continuation}
    assert "".join(stream(spm, ids, **options)[0]) == spm.decode(ids, **options)


@given(SPM_IDS, STOPS)
@example([3 + ord(c) for c in "abcab"], ["abcd", "cab"])
@example([3 + ord(c) for c in "aab"], ["ab"])
@example([261, 3 + ord("c")], ["bc", "c"])
@example([3 + 0xC3], ["\ufffd"])
@settings(max_examples=500, deadline=None)
def test_with_stop_strings_the_text_is_cut_at_the_first(spm, ids, stop):
    pieces, stopped = stream(spm, ids, stop)
    assert ("".join(pieces), stopped) == cut(spm.decode(ids, skip_special=True), stop)


@given(st.binary(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_decoded_as_a_whole_would_be(spm, data):
    pieces, _ = stream(spm, [3 + byte for byte in data], continuation=True)
    assert "".join(pieces) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("text", battery.nasty_texts())
def test_the_hand_written_texts_come_through(bpe, text):
    pieces, _ = stream(bpe, bpe.encode(text, add_special=False), skip_special=False)
    assert "".join(pieces) == text


def test_text_comes_as_soon_as_it_is_certain(spm):
    assert stream(spm, [3 + ord("x"), 3 + ord("y")], ["stop"])[0] == ["x", "y", ""]


def test_an_incomplete_character_waits_for_its_bytes(spm):
    pieces, _ = stream(spm, [3 + byte for byte in "🙂".encode()])
    assert pieces == ["", "", "", "🙂", ""]
    pieces, _ = stream(spm, [3 + byte for byte in "🙂".encode()[:3]])
    assert pieces == ["", "", "", "\ufffd"]


def test_the_beginning_of_a_stop_string_waits_and_comes_out_when_it_is_none(spm):
    pieces, stopped = stream(spm, [3 + ord(c) for c in "xstoxst"], ["stop"])
    assert pieces == ["x", "", "", "", "stox", "", "", "st"]
    assert stopped is None


def test_a_stop_string_across_tokens_is_met_and_not_given(spm):
    made = TextStream(spm, ["stop"])
    assert [made.feed(3 + ord(c)) for c in "a st"] == ["a", " ", "", ""]
    assert made.stopped is None
    assert made.feed(3 + ord("o")) == ""
    assert made.feed(3 + ord("p")) == ""
    assert made.stopped == "stop"
    assert made.feed(3 + ord("x")) == ""
    assert made.finish() == ""


def test_a_stop_string_inside_one_token(spm):
    assert stream(spm, [262], ["b"]) == (["a", ""], "b")
    assert stream(spm, [262], ["c", "abc"]) == (["", ""], "abc")


def test_a_leading_space_is_taken_off_unless_text_went_before(spm):
    assert stream(spm, [260])[0] == ["a", ""]
    assert stream(spm, [260], continuation=True)[0] == [" a", ""]
    assert stream(spm, [1, 260, 260])[0] == ["", "a", " a", ""]


@pytest.mark.parametrize("stop", [[""], ["a", ""], "stop"])
def test_stop_strings_without_meaning_are_refused(spm, stop):
    with pytest.raises(UsageError, match="stop"):
        TextStream(spm, stop)


def test_a_finished_stream_takes_no_more(spm):
    made = TextStream(spm)
    made.feed(3)
    made.finish()
    assert made.finish() == ""
    with pytest.raises(UsageError, match="finished"):
        made.feed(3)


def test_an_id_outside_the_vocabulary_is_refused(spm):
    with pytest.raises(UsageError, match="outside the vocabulary"):
        TextStream(spm).feed(10_000)
