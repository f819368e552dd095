"""The figures of the report: what they draw is what they were given."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import report_pages
from matplotlib.figure import Figure
from report_pages import Page, group

from gpu_align._align._certificate import CostMatrix, GroupReport
from gpu_align._report import _pictures, render_report
from gpu_align._report._figures import convergence, cost_matrices, improvement
from gpu_align._report._format import MISSING, aligned, number, percent
from gpu_align._report._pictures import MOST_BARS
from gpu_align._search import Progress


@pytest.fixture
def result() -> dict[str, Any]:
    return report_pages.result()


# Figures


def test_bars_are_as_long_as_the_distances() -> None:
    groups = [GroupReport(**group(f"g{n}", 10.0 + n, 5.0 + n)) for n in range(3)]
    axes = improvement(groups).axes[0]
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == [10.0, 11.0, 12.0, 5.0, 6.0, 7.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["g0", "g1", "g2"]
    assert axes.yaxis_inverted()


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("count", [1, MOST_BARS, 60])
def test_many_groups_show_those_that_gained_most(
    result: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[GroupReport] = []
    monkeypatch.setattr(_pictures, "improvement", lambda groups: drawn.extend(groups) or Figure())
    result.update(history=[], cost_matrix=None, studies={})
    result["groups"] = [group(f"layer{n}", 20.0, 20.0 - n / 4) for n in range(count)]
    page = Page(render_report(result))
    said = f"the {MOST_BARS} of {count} groups that gained most"
    assert (said in page.text) == (count > MOST_BARS)
    assert len(page.rows("Groups")) == count
    shown = range(max(count - MOST_BARS, 0), count)
    assert [entry.name for entry in drawn] == [f"layer{n}" for n in shown]


def history(*stages: tuple[str, list[float]]) -> Iterator[Progress]:
    step = itertools.count(1)
    for stage, values in stages:
        for value in values:
            yield Progress(stage, next(step), None, value, 0.0, None)


def test_curve_joins_its_stages() -> None:
    entries = list(history(("one", [9.0, 9.0]), ("two", [6.0, 5.0]), ("one", [5.0, 4.0])))
    axes = convergence(entries, 4.0, 10.0, None).axes[0]
    first, second, third, given = axes.get_lines()
    assert list(first.get_xdata()) == [0, 1, 2]
    assert list(first.get_ydata()) == [10.0, 9.0, 9.0]
    assert list(second.get_xdata()) == [2, 3, 4]
    assert list(third.get_ydata()) == [5.0, 5.0, 4.0]
    assert first.get_color() == third.get_color() != second.get_color()
    assert list(given.get_ydata()) == [10.0, 10.0]


def test_small_falls_are_enlarged() -> None:
    entries = list(history(("one", [100.0, 51.0, 50.5, 50.0])))
    whole, enlarged = convergence(entries, 50.0, 100.0, 20.0).axes
    assert whole.get_ylim()[0] < 20
    assert whole.get_ylim()[1] > 100
    low, high = enlarged.get_ylim()
    assert 49 < low < 50
    assert 51 < high < 52


@pytest.mark.usefixtures("no_drawing")
def test_lines_of_one_model_are_not_drawn_over_the_mean_of_several(result: dict[str, Any]) -> None:
    assert "mean over the models" not in Page(render_report(result)).text
    result["distance"] *= 0.9
    assert "mean over the models" in Page(render_report(result)).text


def test_matrices_share_one_scale() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((2, 5, 5)).tolist()
    panels = cost_matrices(CostMatrix("g", 20, *values)).axes[:2]
    before, after = (axes.get_images()[0] for axes in panels)
    np.testing.assert_array_equal(before.get_array(), values[0])
    np.testing.assert_array_equal(after.get_array(), values[1])
    assert before.get_clim() == after.get_clim()
    assert tuple(before.get_extent()) == (-0.5, 19.5, 19.5, -0.5)


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (404.58360631159485, "404.584"),
        (-0.000123456789, "−0.000123457"),
        (0, "0"),
        (1234567.8, "1234568"),
        (12345678.9, "1.23457\u202f×\u202f10⁷"),
        (2.5e-16, "2.50000\u202f×\u202f10⁻¹⁶"),
        (None, MISSING),
        (math.nan, MISSING),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_columns_line_up_unless_they_cannot() -> None:
    assert aligned([229.029018, 7.5, 0.0, None]) == ["229.029", "7.500", "0.000", MISSING]
    assert aligned([229.029018, 0.0125]) == ["229.0290", "0.0125"]
    assert aligned([1.0, 2e-12]) == ["1.00000", "2.00000\u202f×\u202f10⁻¹²"]
    assert percent(0.00001, 2) == "<\u202f0.01\u202f%"
    assert percent(-0.358) == "−35.8\u202f%"
