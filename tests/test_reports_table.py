"""The table on the console."""

from __future__ import annotations

import io

import reports_sample as sample

from receipts.lanes import OUTCOMES
from reports import table
from reports.sentences import ASCII_SYMBOLS, SYMBOLS


def printed(receipt, *, width=None, encoding="utf-8", monkeypatch=None):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    table.show(receipt, table.console(file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def test_a_pipe_gets_80_columns_without_colour(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = printed(sample.receipt())
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_lane_and_every_symbol_in_words():
    text = "\n".join(table.lines(sample.receipt(), width=160))
    for lane in sample.lanes():
        assert lane.name[:38] in text
    for outcome in OUTCOMES:
        assert f"{SYMBOLS[outcome]} {outcome}" in text


def test_each_lane_that_did_not_simply_pass_has_a_sentence():
    text = " ".join(" ".join(table.lines(sample.receipt())).split())
    assert "computes SiLU where the file declares relu²; first wrong operation ffn_act of layer 0" in text
    assert "transformers is not installed: pip install '.[hf]'" in text  # brackets are no markup
    assert "killed by signal 6" in text
    assert "2 near-ties: other tokens that noise explains" in text
    assert "tiny-llama · oracle:" not in text


def test_the_end_says_whether_it_passed_and_what_the_gate_refuses():
    lines = table.conclusion(sample.receipt())
    assert lines[0].startswith("Not passed: 9 of 12 required lanes passed, 1 deviates as declared")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "bitnet_silu · bitnet.cpp (recorded)",
        "llama_tied · bitnet.cpp (recorded)",
    ]
    good = sample.receipt(lanes=[lane for lane in sample.lanes() if lane.name.endswith(("oracle", "(as bitnet)"))])
    assert table.conclusion(good) == ["Passed: 3 of 4 required lanes passed, 1 deviates as declared."]


def test_letters_that_the_encoding_lacks_have_stand_ins():
    text = printed(sample.receipt(), encoding="ascii")
    assert f"{ASCII_SYMBOLS['pass']} pass" in text
    assert "relu^2" in text
    assert "tiny-relu2 - oracle" in text
    half = printed(sample.receipt(), encoding="latin-1")
    assert "relu²" in half
    assert f"{ASCII_SYMBOLS['fail']} fail" in half


def test_a_terminal_is_not_sent_control_characters():
    evil = sample.lane("evil\x1b[31m lane", "tiny-silu", "oracle", sample.ladder(tokens=("fail", "a\x07b", 1.0)))
    text = printed(sample.receipt(lanes=(evil,)))
    assert "\x1b" not in text
    assert "\x07" not in text


def test_wide_shows_the_names_of_the_rungs():
    assert "operations" in table.lines(sample.receipt(), width=140)[0]
    assert "ops" in table.lines(sample.receipt(), width=80)[0]


def test_no_lane_is_said_and_not_passed_over():
    assert table.lines(sample.empty()) == ["No lane was run, so nothing is shown."]
