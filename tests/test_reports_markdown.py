"""The page."""

from __future__ import annotations

import reports_sample as sample
from hypothesis import given
from hypothesis import strategies as st

from receipts.lanes import RUNGS
from reports.markdown import code, escape, page, summary


def test_the_page_has_every_part():
    text = page(sample.receipt(), {"ladder": "ladder.png", "throughput": "throughput.png"})
    for heading in (
        "# Cross-validation",
        "## Lanes",
        "## References",
        "## Models",
        "## Kernels",
        "## Speed",
        "## Claims",
    ):
        assert heading in text
    for lane in sample.lanes():
        assert f"### {lane.name}" in text
    assert "](ladder.png)" in text
    assert "drift.png" not in text  # only pictures that were drawn
    assert f"| {sample.sha('libllama')[:16]}" in text.replace("`", "")
    assert "| `llama.cpp` | activation | relu2 | silu | ✗ fail |" in text
    assert "Not supported:\n\n- Speed on another machine." in text


def test_every_table_is_well_formed():
    for block in page(sample.receipt()).split("\n\n"):
        rows = block.splitlines()
        if rows[0].startswith("|"):
            assert len({row.replace("\\|", "").count("|") for row in rows}) == 1, rows[0]


def test_speed_is_compared_with_each_peer_of_the_same_model_and_threads():
    rows = (sample.timing("tiny-silu", "decode", "bitnet", 64, (0.1, 0.1, 0.1)),)
    rows += (sample.timing("tiny-silu", "decode", "llama.cpp", 64, (0.25, 0.25, 0.25)),)
    text = page(sample.receipt(performance=rows))
    assert "| `tiny-silu` | decode | llama.cpp | 2 | 256.0 | 256.0 to 256.0 | 250.00 | 3 | 2.5× |" in text


def test_the_summary_is_short_and_has_what_a_reviewer_asks():
    text = summary(sample.receipt())
    assert text.startswith("## Cross-validation\n\n**Not passed.** 9 of 12 required lanes passed")
    assert "the reference is wrong: computes SiLU" in text
    assert " | ".join(RUNGS) in text
    assert len(text) < 8000
    assert "ladder.png" not in text


def test_the_status_follows_the_gate():
    good = sample.receipt(lanes=sample.lanes()[:3])
    assert "**Passed.** 3 of 3 required lanes passed" in summary(good)
    assert "Every lane passed." in summary(good)


def test_an_empty_receipt_says_so():
    text = page(sample.empty())
    assert "No lane was run" in text
    assert "Nothing was timed." in text
    assert "**Not passed.**" in text


def test_a_name_is_never_markup():
    lane = sample.lane("<img src=x> | [a](b) `c` *d* $e$\n# f", "tiny-silu", "oracle", sample.ladder())
    text = page(sample.receipt(lanes=(lane,)))
    assert "<img" not in text
    assert "\n# f" not in text
    assert "[a](b)" not in text


@given(st.text())
def test_escaped_text_is_one_line_without_raw_markup(text):
    safe = escape(text)
    assert "\n" not in safe
    assert "<" not in safe
    assert safe.replace("\\|", "").count("|") == 0 or "\\\\" in safe


def test_code_is_code_or_escaped():
    assert code("a_b") == "`a_b`"
    assert code("") == "–"
    assert code("a`b") == "a\\`b"
    assert code("a|b") == "`a\\|b`"
