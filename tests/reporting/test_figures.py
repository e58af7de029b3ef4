"""What is drawn is what was measured: intervals as bars, unranked points hollow and off the front, curves thinned by means."""

import plotly.graph_objects as go
import pytest

from quantkit.reporting import captions
from quantkit.reporting.curves import MOST_POINTS, curves, thinned
from quantkit.reporting.figures import AXES, loss_figure, quality_figure
from quantkit.reporting.report import Report
from tests.reporting.conftest import perplexity_result, subject, task_result

MEMORY, SPEED, SIZE = AXES
METHODS = ["GPTQ", "NoQuant", "QLORA", "RTN"]


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.key)
def test_plotly_accepts_every_figure_whole(report: Report, axis) -> None:
    figure = quality_figure(report.boards[0], axis, METHODS)
    assert figure is not None
    go.Figure(figure)


def test_points_carry_their_interval_and_what_has_no_place_is_hollow(report: Report) -> None:
    figure = quality_figure(report.boards[0], MEMORY, METHODS)
    assert figure is not None
    front, *methods = figure["data"]
    assert front["name"] == "Pareto front"
    assert front["x"] == [700, 800, 900]
    by_name = {trace["name"]: trace for trace in methods}
    assert by_name["RTN"]["marker"]["symbol"] == ["triangle-up-open", "triangle-up-open"]
    assert by_name["NoQuant"]["marker"]["symbol"] == ["square"]
    row = report.boards[0].rows[0]
    assert by_name["NoQuant"]["error_y"]["array"] == [row.high - row.value]
    assert by_name["NoQuant"]["error_y"]["arrayminus"] == [row.value - row.low]
    assert len({trace["marker"]["color"] for trace in methods}) == len(methods)
    assert figure["layout"]["shapes"][0]["y0"] == 0.1


def test_methods_differ_in_shape_or_colour_and_crowded_plots_number_the_front_only() -> None:
    methods = [f"M{place:02}" for place in range(40)]
    made = [subject(n, f"a{n}", task_result(10 + n), method=methods[n - 1], size_bytes=n << 20) for n in range(1, 41)]
    figure = quality_figure(Report.of(made, title="t").boards[0], SIZE, methods)
    assert figure is not None
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"][0].removesuffix("-open")) for trace in figure["data"][1:]}
    assert len(looks) == 40
    few = quality_figure(Report.of(made[:25], title="t").boards[0], MEMORY, methods)
    many = quality_figure(Report.of(made, title="t").boards[0], MEMORY, methods)
    assert few is not None
    assert many is not None
    assert all(label for trace in few["data"] for label in trace["text"])
    assert [label for trace in many["data"] for label in trace["text"] if label] == ["40"]


def test_text_in_a_figure_is_no_markup() -> None:
    made = Report.of([subject(1, '<a href="x">n</a>', task_result(50), method="<b>M</b>")], title="t")
    figure = quality_figure(made.boards[0], MEMORY, ["<b>M</b>"])
    assert figure is not None
    trace = figure["data"][0]
    assert trace["name"] == "&lt;b&gt;M&lt;/b&gt;"
    assert "&lt;a href" in trace["hovertext"][0]


def test_without_a_cost_there_is_no_figure_but_a_sentence() -> None:
    made = Report.of([subject(1, "a", perplexity_result(3.0))], title="t")
    assert quality_figure(made.boards[0], SPEED, METHODS) is None
    assert captions.not_drawn(SPEED) == "No plot against generated tokens per second: nothing was generated."
    assert captions.not_drawn(SIZE) == "No plot against size on disk: it was not measured."


def test_captions_say_how_to_read_and_what_not_to_conclude(report: Report) -> None:
    read = captions.how_to_read(report.boards[0])
    for said in (
        "95 % intervals (wilson)",
        "60 rows, on cpu, computing in float32",
        "16 prompts at a time",
        "best floor (majority)",
    ):
        assert said in read
    memory = captions.quality(report.boards[0], MEMORY)
    assert memory.startswith("Better is up and left.")
    assert "resident memory of the process" in memory
    assert "adapter" in captions.quality(report.boards[0], SIZE)
    floor = Report.of([subject(1, "a", task_result(3))], title="t").boards[0]
    assert "there is no front: none of these is shown to be any good" in captions.quality(floor, MEMORY)
    assert captions.quality(report.boards[1], MEMORY).startswith("Better is down and left.")


def test_one_run_is_one_curve_however_many_artifacts_carry_it(report: Report) -> None:
    child = subject(9, "child", record=report.subjects[0].record)
    found = curves([*report.subjects, child])
    assert [curve.subject.number for curve in found] == [1, 2, 3, 4, 5, 6]
    assert (found[1].x, found[1].y, found[1].after) == ((1.0, 2.0, 3.0), (3.0, 2.0, 0.5), 0.9)
    figure = loss_figure(found)
    assert figure is not None
    go.Figure(figure)
    assert len({trace["line"]["dash"] for trace in figure["data"] if trace["mode"] == "lines"}) == 5


def test_long_runs_are_thinned_by_means() -> None:
    x, y, width = thinned([float(step) for step in range(1, 1001)])
    assert width == 3
    assert len(x) <= MOST_POINTS
    assert (x[0], y[0], x[-1], y[-1]) == (2.0, 2.0, 1000.0, 1000.0)


def test_losses_that_are_none_make_no_curve() -> None:
    assert curves([subject(1, "a", record={"training": {"losses": "many"}}), subject(2, "b", record={})]) == []
    assert loss_figure([]) is None
