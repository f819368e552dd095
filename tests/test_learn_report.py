"""The page of the tasks of learning: its numbers, and figures that fit a telephone."""

import base64
import io
import re
from typing import Any

import pytest
from matplotlib.image import imread

from gpu_align._report import render_learning
from gpu_align._report._learning_figures import bars, scatter
from gpu_align.learn import Panel, Plot, Row, Run, Study

MOST = 390 * 1.45  # CSS pixels: so wide a figure is shown at two thirds of its size at least


def row(name: str, *values: float, apart: bool = False) -> Row:
    runs = tuple(Run(seed, {"accuracy": x, "error": x / 1e4}) for seed, x in enumerate(values))
    return Row(name, "raw weights", runs, 1234, listed_apart=apart)


def panel(title: str, *, diagonal: bool = False) -> Panel:
    color = None if diagonal else (0.0, 1.0, 2.0)
    labels = ("right", "said") if diagonal else ("", "")
    return Panel(title, (0, 1.0, 2.0), (0, 2.0, 8.0), labels, color, "frequency b", diagonal)


def document(*panels: Panel) -> dict[str, Any]:
    rows = (row("MLP", 0.5, 0.7), row("MessagePassing", 0.8, 0.9), row("probes", 1.0, apart=True))
    plots = (Plot("Points", "Good is a line.", panels),) if panels else ()
    measures = {"accuracy": "%", "error": ""}
    return Study(
        "classify", measures, rows, {"a check": 2.0}, {"seed": 0}, ("A note.",), plots
    ).to_json()


def test_the_page_says_what_is_best_among_those_that_read_weights() -> None:
    page = render_learning(document(), "Title")
    assert "<dd>85.0" in page
    assert re.search(r'class="best">\s*<th scope="row">MessagePassing', page)
    assert re.search(r"60\.0\W% ± 14\.1", page)  # mean and spread of .5 and .7
    assert "over 2 seeds" in page
    assert "Pale: may do more" in page
    for text in ("A note.", "a check", "1,234"):
        assert text in page


def test_small_numbers_are_written_out() -> None:
    page = render_learning(document(), "Title")
    assert re.search(r"6\.0\W×\W10⁻⁵ ± 1\.4", page)
    assert "0.000 ±" not in page


def test_every_panel_is_a_picture_of_its_own_with_words_for_it() -> None:
    page = render_learning(document(panel("MLP", diagonal=True), panel("Graph")), "Title")
    found = re.findall(r'<img src="data:image/(\S+);base64,(\S+)" alt="([^"]+)">', page)
    assert [kind for kind, _, _ in found] == ["svg+xml", "png", "png"]
    assert found[1][2] == "MLP, 3 networks: said over right"
    assert found[2][2] == "Graph, 3 networks, coloured by frequency b"
    for _, data, _ in found[1:]:
        assert imread(io.BytesIO(base64.b64decode(data))).shape[1] * 96 / 170 <= MOST


def test_names_do_not_lie_on_bars_or_numbers() -> None:
    rows = document()["rows"]
    figure = bars(rows, "accuracy", "%")
    assert figure.get_figwidth() * 96 <= MOST
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [text.get_window_extent() for text in axes.texts]
    drawn = [patch.get_window_extent() for patch in axes.patches]
    boxes = [*names, *drawn]
    assert len(boxes) == 3 * len(rows)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize("values", [(-0.5, 0.2), (-0.5, -0.1), (0.0, 0.0)])
def test_bars_below_0_are_within_the_figure(values: tuple[float, float]) -> None:
    found = [row(str(x), x) for x in values]
    shown = Study("regress", {"accuracy": ""}, tuple(found)).to_json()["rows"]
    low, high = bars(shown, "accuracy", "").axes[0].get_xlim()
    assert low <= min(0, *values) <= max(0, *values) < high


def test_a_diagonal_lies_at_45_degrees() -> None:
    figure = scatter(document(panel("MLP", diagonal=True))["plots"][0]["panels"][0])
    (axes,) = figure.axes
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_aspect() == 1
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("right", "said")
