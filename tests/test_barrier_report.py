"""The page of a barrier: what it says is what was measured, and it needs nothing but itself."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import Page, parsed

import gpu_align
from gpu_align import BarrierResult, LossCurve, LossPlane
from gpu_align._network import Score
from gpu_align._report import _barrier_page, render_report
from gpu_align._report._barrier_figures import plane, segment

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def curve(losses: tuple[float, ...], *, aligned: bool, reestimated: bool = False) -> LossCurve:
    scores = [
        Score(loss, 1 - loss / 10, loss / 50, 200, (loss - 0.1, loss + 0.1), (100, 100))
        for loss in losses
    ]
    return LossCurve.of(POINTS, scores, aligned=aligned, reestimated=reestimated)


FOUND = BarrierResult(
    curves=(
        curve((0.1, 1.5, 2.25, 1.6, 0.2), aligned=False),
        curve((0.1, 0.5, 0.75, 0.6, 0.2), aligned=True),
        curve((0.1, 1.0, 1.25, 1.1, 0.2), aligned=False, reestimated=True),
        curve((0.1, 0.2, 0.25, 0.2, 0.2), aligned=True, reestimated=True),
    ),
    loss="cross_entropy",
    part="test",
    examples=200,
    statistics_examples=1000,
    findings=("Narrow: group P_0 <of three> has 3 units.",),
    plane=LossPlane(
        x=(-1.0, 0.0, 1.0),
        y=(-1.0, 0.0, 1.0),
        losses=((2.0, 1.0, math.inf), (0.5, 0.1, 0.3), (1.0, 0.2, 0.4)),
        accuracies=(),
        places={"A": (0.0, 0.0), "B aligned": (0.5, 0.0), "B": (0.2, 0.5)},
        reestimated=True,
    ),
    metric="l2",
    distance_before=400.0,
    distance=200.0,
    search="Annealing",
)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(FOUND, "Barrier of <a> and <b>"))


def test_headline_is_the_barrier_with_statistics_reestimated(page: Page) -> None:
    before, after = page.terms["Loss barrier"].split("→")
    assert parsed(before) == pytest.approx(FOUND.barrier_before, rel=1e-3) == 1.1
    assert parsed(after) == pytest.approx(FOUND.barrier, rel=1e-3) == pytest.approx(0.1)
    assert parsed(page.terms["Loss of the aligned midpoint"]) == 0.25
    assert parsed(page.terms["Its accuracy"]) == 97.5
    assert page.headings[0] == "Barrier of <a> and <b>"


def test_table_has_every_curve_and_marks_the_lowest_barrier(page: Page) -> None:
    rows = page.rows("Barrier and midpoint")
    assert len(rows) == 4
    for row, true in zip(rows, FOUND.rows(), strict=True):
        assert row["network"].startswith(true["network"])
        assert parsed(row["barrier"]) == pytest.approx(true["barrier"], abs=1e-5)
        assert parsed(row["midpoint loss"]) == pytest.approx(true["loss"], rel=1e-3)
        assert parsed(row["accuracy"]) == pytest.approx(100 * true["accuracy"], abs=0.005)
        assert parsed(row["ECE"]) == pytest.approx(true["ece"], rel=1e-2)
    assert page.marked == [3]


def test_findings_stand_on_the_page(page: Page) -> None:
    assert FOUND.findings[0] in page.text
    assert "200 test examples" in page.text
    assert "1000 training examples" in page.text


def test_page_needs_nothing_but_itself(page: Page) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    assert all(str(picture["src"]).startswith("data:image/") for picture in pictures)
    assert all(picture["alt"] for picture in pictures)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_equal_results_give_equal_pages(page: Page, tmp_path: Path) -> None:
    FOUND.write_report(tmp_path / "one.html", title="x")
    gpu_align.write_report(FOUND, tmp_path / "two.html", title="x")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_curves_are_drawn_as_measured() -> None:
    figure = segment(FOUND.curves)
    losses, accuracies = figure.axes
    drawn = {str(line.get_label()): line for line in losses.lines}
    assert list(drawn) == [curve.name for curve in FOUND.curves]
    for entry in FOUND.curves:
        line = drawn[entry.name]
        np.testing.assert_allclose(line.get_xdata(), entry.points)
        np.testing.assert_allclose(line.get_ydata(), entry.losses)
        assert (line.get_linestyle() == "--") == (not entry.reestimated)
    assert len(losses.collections) == len(FOUND.curves)  # a band each
    assert len(accuracies.lines) == len(FOUND.curves)


def test_without_batch_norms_no_line_is_dashed() -> None:
    figure = segment(FOUND.curves[:2])
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-"}


def test_plane_marks_the_three_networks() -> None:
    assert FOUND.plane is not None
    axes = plane(FOUND.plane).axes[0]
    marks = {text.get_text(): text.xy for text in axes.texts if hasattr(text, "xy")}
    assert marks == dict(FOUND.plane.places)


def test_losses_without_classes_make_a_page() -> None:
    scores = [Score(loss, None, None, 9, (loss,), (9,)) for loss in (1.0, math.inf, 1.0)]
    curves = tuple(
        LossCurve.of([0, 0.5, 1], scores, aligned=is_aligned, reestimated=False)
        for is_aligned in (False, True)
    )
    text = render_report(replace(FOUND, curves=curves, plane=None, distance=None), "x")
    found = Page(text)
    assert "accuracy" not in found.tables["Barrier and midpoint"][0]
    assert found.terms["Loss barrier"].count(_barrier_page.number(None)) == 2
