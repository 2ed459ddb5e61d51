"""The report as people and programs see it."""

from __future__ import annotations

from bitnet.weight_report import SEVERITIES, Finding, WeightReport, role_of
from bitnet.weight_statistics import MatrixStatistics, NormStatistics


def matrix(name: str, **changes) -> MatrixStatistics:
    values = {
        "type": "I2_S",
        "shape": (2, 50),
        "negative": 30,
        "zero": 40,
        "positive": 30,
        "scale": 0.5,
        "mean_abs": 0.3,
        "max_abs": 0.5,
        "finite": True,
    }
    return MatrixStatistics(name=name, **values | changes)


def norm(name: str, rms: float) -> NormStatistics:
    return NormStatistics(name=name, n=8, min=0.5 * rms, max=2 * rms, mean=rms, rms=rms)


FLOATS = {"type": "F16", "negative": None, "zero": None, "positive": None, "scale": None, "mean_abs": 0.25}
REPORT = WeightReport(
    file="m.gguf",
    findings=(
        Finding(severity="warning", subject="blk.1.attn_q.weight", what="is <odd> & rare", remedy="look at it"),
        Finding(severity="note", subject="m.gguf", what="explains"),
    ),
    matrices=(
        matrix("token_embd.weight", **FLOATS),
        matrix("blk.0.attn_q.weight"),
        matrix("blk.1.attn_q.weight", negative=10, zero=80, positive=10, scale=0.25, mean_abs=0.05),
    ),
    norms=(norm("blk.0.attn_norm.weight", 1.0), norm("blk.1.attn_norm.weight", 1.5), norm("output_norm.weight", 2.0)),
)


def test_as_text():
    assert str(REPORT).splitlines() == [
        "warning  blk.1.attn_q.weight: is <odd> & rare",
        "         hint: look at it",
        "note     m.gguf: explains",
        "matrix      count  type  −1     0      +1     scale        mean|w|",
        "token_embd  1      F16                                     0.25",
        "attn_q      2      I2_S  20.0%  60.0%  20.0%  0.25 to 0.5  0.05 to 0.3",
        "norm         count  least  greatest  rms",
        "attn_norm    2      0.5    3         1 to 1.5",
        "output_norm  1      1      4         2",
        "2 ternary matrices, 200 weights: 20.0% −1, 60.0% 0, 20.0% +1",
        "m.gguf: sound (0 error(s), 1 warning(s), 1 note(s))",
    ]


def test_in_a_notebook_everything_is_there_and_escaped():
    shown = REPORT._repr_html_()
    assert "is &lt;odd&gt; &amp; rare" in shown
    assert "<odd>" not in shown
    for word in ("sound (0 error(s), 1 warning(s)", "look at it", "attn_q", "60.0%", "0.05 to 0.3", "1 to 1.5", "+1"):
        assert word in shown
    assert shown.count("<table>") == shown.count("</table>") == 3


def test_a_file_that_cannot_be_read_has_findings_alone():
    error = Finding(severity="error", subject="m.gguf", what="is empty", remedy="download it again")
    report = WeightReport(file="m.gguf", findings=(error,))
    assert not report.ok
    assert str(report) == f"{error}\nm.gguf: not usable (1 error(s), 0 warning(s), 0 note(s))"
    assert report._repr_html_().count("<table>") == 1
    assert report.trits == {"negative": 0, "zero": 0, "positive": 0}


def test_many_findings_are_shortened_everywhere():
    findings = tuple(Finding(severity="error", subject=f"t{i}", what="is missing", remedy="x") for i in range(50))
    report = WeightReport(file="m.gguf", findings=findings)
    for shown in (str(report), report._repr_html_()):
        assert "t19" in shown
        assert "t20" not in shown
        assert "… and 30 more of the same severities" in shown
    assert len(report.to_dict()["findings"]) == 50


def test_findings_by_severity():
    assert [len(REPORT.of(s)) for s in SEVERITIES] == [0, 1, 1]
    assert REPORT.ok


def test_the_role_of_a_tensor():
    assert role_of("blk.7.ffn_up.weight") == "ffn_up"
    assert role_of("output_norm.weight") == "output_norm"
    assert role_of("blk.") == ""
    assert role_of("blk.0.weight") == "weight"
