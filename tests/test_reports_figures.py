"""The pictures: they draw whatever a receipt may hold, keep texts apart, and change nothing around them."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import reports_sample as sample
from matplotlib.colors import to_rgba

from reports import figures
from reports.figures import canvas
from reports.figures.operations import _Scale
from reports.frames import frames

LONG = "a very long lane name that nobody would type but somebody's file is called · llama.cpp TQ2_0 (as bitnet)"


@pytest.fixture(scope="module")
def tables():
    """Some of the lanes: one that passed, with near-ties, wrong, dead, absent."""
    return of([sample.lanes()[i] for i in (0, 4, 7, 11, 12)])


def of(lanes):
    names = {lane.name for lane in lanes}
    operations, positions = (
        [row for row in rows if row["lane"] in names] for rows in (sample.operation_rows(2), sample.position_rows())
    )
    return frames(sample.receipt(lanes=lanes), operations=operations, positions=positions)


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def boxes(figure):
    """(text, box in pixels) of every text of the picture that is not empty."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = [text for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            found += [axis.label, *(label for at, label in ticks if low <= at <= high)]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found if text.get_text().strip()]


def inside(figure):
    """Texts that leave the picture."""
    width, height = figure.canvas.get_width_height()
    return [t for t, box in boxes(figure) if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


def draw(name, tables):
    return {
        "ladder": lambda: figures.ladder(tables.lanes, tables.rungs),
        "operations": lambda: figures.operations(tables.operations),
        "drift": lambda: figures.drift(tables.positions, tables.lanes),
        "throughput": lambda: figures.throughput(tables.performance),
    }[name]()


@pytest.mark.parametrize("name", ["ladder", "operations", "drift", "throughput"])
class TestAllPictures:
    def test_both_files_are_written_and_nothing_leaves_the_sheet(self, name, tables, tmp_path):
        figure = draw(name, tables)
        png, svg = canvas.save(figure, tmp_path / name)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in svg.read_bytes()
        assert inside(figure) == []

    def test_nothing_compared_is_said(self, name, tmp_path):
        figure = draw(name, frames(sample.empty()))
        assert "nothing compared" in texts(figure)
        canvas.save(figure, tmp_path / name)

    def test_the_user_s_settings_neither_matter_nor_change(self, name):
        before = dict(mpl.rcParams)
        with mpl.rc_context({"font.size": 40, "text.usetex": True}):
            figure = draw(name, frames(sample.receipt(lanes=sample.lanes()[:1])))
            assert mpl.rcParams["font.size"] == 40
        assert dict(mpl.rcParams) == before
        assert max(text.get_fontsize() for axes in figure.axes for text in axes.texts) <= canvas.TITLE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ladder", "operations", "drift", "throughput"])
def test_a_whole_receipt_fits(name, tmp_path):
    figure = draw(name, of(sample.lanes()))
    canvas.save(figure, tmp_path / name)
    assert inside(figure) == []


@pytest.mark.parametrize("name", ["ladder", "drift"])
def test_equal_data_gives_equal_bytes(name, tmp_path):
    tables = of(sample.lanes()[4:5])
    files = [canvas.save(draw(name, tables), tmp_path / folder) for folder in ("a", "b")]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    assert files[0][1].read_bytes() == files[1][1].read_bytes()


def test_lanes_and_texts_of_the_ladder_stay_apart():
    lanes = (*sample.lanes()[6:8], sample.lane(LONG, "tiny-silu", "llama.cpp", sample.ladder()))
    tables = frames(sample.receipt(lanes=lanes))
    figure = figures.ladder(tables.lanes, tables.rungs, dict.fromkeys([LONG], "reference is wrong: " * 9))
    found = [(text, box) for text, box in boxes(figure) if not text[0].isdigit() or len(text) < 9]
    crossing = [(a, b) for i, (a, one) in enumerate(found) for b, two in found[i + 1 :] if overlap(one, two)]
    assert crossing == []


def overlap(one, two):
    slack = 2  # pixels of 1800: boxes are those of whole letters, with room for accents
    return min(one.x1, two.x1) - max(one.x0, two.x0) > slack and min(one.y1, two.y1) - max(one.y0, two.y0) > slack


def test_panel_titles_stay_apart_with_long_names():
    rows = [{**row, "lane": LONG + str(i)} for i in range(3) for row in sample.operation_rows(2)[:37]]
    figure = figures.operations(frames(sample.empty(), operations=rows).operations)
    found = boxes(figure)
    crossing = [(a, b) for i, (a, one) in enumerate(found) for b, two in found[i + 1 :] if overlap(one, two)]
    assert crossing == []
    assert inside(figure) == []


def test_a_letter_that_the_font_lacks_is_no_warning(tmp_path):
    lane = sample.lane("模型 $x^$ \x1b", "tiny-silu", "oracle", sample.ladder())
    tables = frames(sample.receipt(lanes=(lane,)))
    figure = figures.ladder(tables.lanes, tables.rungs)
    canvas.save(figure, tmp_path / "ladder")
    assert "\ufffd\ufffd $x^$ \ufffd" in texts(figure)


def test_every_step_has_its_symbol_and_its_colour(tables):
    figure = figures.ladder(tables.lanes, tables.rungs)
    shown = texts(figure)
    assert shown.count("✗") == 1 + 1  # and once in the legend
    assert shown.count("!") == 1 + 1
    colours = {patch.get_facecolor() for patch in figure.axes[0].patches}
    assert colours == {to_rgba(colour) for colour in canvas.OUTCOME_COLOUR.values()}


def test_thirty_layers_fit(tmp_path):
    rows = [row for row in sample.operation_rows(30) if row["lane"] == "tiny-silu · llama.cpp F32"]
    figure = figures.operations(frames(sample.empty(), operations=rows).operations)
    canvas.save(figure, tmp_path / "operations")
    assert inside(figure) == []
    assert figure.get_figheight() < 7  # inches


def test_one_lane_can_be_chosen(tables):
    figure = figures.operations(tables.operations, ["tiny-silu · llama.cpp TQ2_0"])
    assert sum("inside, " in text or " beyond the limit" in text for text in texts(figure)) == 1
    assert "nothing compared" in texts(figures.operations(tables.operations, ["no such lane"]))


def one_operation(**changes):
    row = {**sample.operation_rows(1)[5], "ratio": 1e-7, "limit": 1e-6, "outcome": "pass", **changes}
    return frames(sample.empty(), operations=[row]).operations


def test_beyond_the_limit_looks_different_from_just_inside():
    scale = _Scale(one_operation())
    inside, beyond = scale.colour(0.99e-6, "pass"), scale.colour(1.01e-6, "fail")
    assert inside[2] > inside[0]  # blue
    assert beyond[0] > beyond[2]  # orange
    assert scale.colour(1e-7, "fail")[0] > scale.colour(1e-7, "fail")[2]  # an outcome outranks a number


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ratio": 0.0}, "1 inside, 1 exact"),
        ({"ratio": None, "outcome": "fail"}, "worst not a number at"),
        ({"ratio": 0.2, "limit": 0.0, "outcome": "fail"}, "1 of 1 beyond the limit"),
        ({"outcome": "unsupported", "ratio": None}, "nothing compared"),
    ],
)
def test_odd_cells_are_drawn_and_named(row, said, tmp_path):
    figure = figures.operations(one_operation(**row))
    canvas.save(figure, tmp_path / "operations")
    assert any(said in text for text in texts(figure))


def test_limits_that_differ_are_drawn_as_error_over_limit():
    rows = frames(sample.empty(), operations=[*sample.operation_rows(1)[:3]]).operations
    rows["limit"], rows["ratio"] = [1e-6, 1e-3, 0.0], [5e-7, 2e-3, 0.0]
    assert _Scale(rows).values(rows).tolist() == [0.5, 2.0, 0.0]


def positions(**changes):
    row = {**sample.position_rows()[5], "lane": "tiny-relu2 · oracle", **changes}
    return frames(sample.receipt(lanes=sample.lanes()[:1]), positions=[row])


@pytest.mark.parametrize("value", [0.0, None, 1e-12, 3.0])
def test_any_single_position_can_be_drawn(value, tmp_path):
    tables = positions(rel_l2=value)
    figure = figures.drift(tables.positions, tables.lanes)
    canvas.save(figure, tmp_path / "drift")
    assert inside(figure) == []


def test_another_top_token_is_counted_unless_it_is_a_near_tie():
    tables = positions(top1_equal=False)
    assert any("1 other top token" in text for text in texts(figures.drift(tables.positions, tables.lanes)))
    tables.positions["near_tie"] = True
    assert any("1 near-tie" in text for text in texts(figures.drift(tables.positions, tables.lanes)))


def test_a_case_decoded_twice_is_two_lines_and_counts_once():
    first, second = positions().positions, positions(position=4).positions
    tables = positions()
    rows = pd.concat([first, second], ignore_index=True).assign(phase="decode", near_tie=True, position=5)
    figure = figures.drift(rows, tables.lanes)
    assert any("1 near-tie" in text for text in texts(figure))
    lines = [line for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 3]
    assert any(np.isnan(line.get_xdata()[1]) for line in lines)


def test_a_noise_floor_in_another_metric_is_not_drawn_as_a_band():
    tables = positions()
    assert any("floor 3e-7" in text for text in texts(figures.drift(tables.positions, tables.lanes)))
    tables.lanes["floor_metric"] = "median relative L2 of logits"
    assert any("floor 3e-7" in text for text in texts(figures.drift(tables.positions, tables.lanes)))
    tables.lanes["floor_metric"] = "max_abs"
    assert any("no noise floor" in text for text in texts(figures.drift(tables.positions, tables.lanes)))


def test_throughput_names_what_was_not_measured_and_the_factor(tables):
    shown = texts(figures.throughput(tables.performance))
    assert shown.count("not measured") == len(sample.MODELS)
    assert any(text.endswith("×)") for text in shown)
    slow = frames(sample.receipt(performance=(sample.timing("m", "decode", "llama.cpp", 1, (4.0,)),))).performance
    assert "0.25" in texts(figures.throughput(slow))


def test_text_is_measured_before_it_is_placed():
    for middle in (False, True):
        short = canvas.shorten(LONG, 2.0, middle=middle)
        assert canvas.width_of(short) <= 2.0
        assert "…" in short
    assert canvas.shorten(LONG, 3.0, middle=True).endswith("(as bitnet)")
    assert canvas.shorten("", 1.0) == ""
    assert canvas.shorten("x" * 100_000, 1.0).endswith("…")
    assert all(canvas.width_of(line) <= 2.0 for line in canvas.wrap(LONG, 2.0, lines=3))
    assert canvas.wrap("", 1.0) == [""]


def test_measured_widths_are_those_that_are_drawn():
    figure, page = canvas.sheet(2.0, "title", "subtitle")
    for weight in ("normal", "bold"):
        canvas.write(page, 0.0, 1.0, LONG[:70], weight=weight)
        drawn = page.texts[-1].get_window_extent(figure.canvas.get_renderer()).width / canvas.DPI
        assert canvas.width_of(LONG[:70], weight=weight) == pytest.approx(drawn, rel=0.02)  # kerning and hinting
