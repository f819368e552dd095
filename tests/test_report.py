"""The report: what the page says is what the result holds, and it needs nothing but itself."""

import base64
import copy
import itertools
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, ClassVar

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from gpu_align import AlignmentProblem, Budget, InputError, align, chain_spec
from gpu_align._certificate import CostMatrix, GroupReport
from gpu_align._report import (
    _page,
    _pictures,
    _study,
    beam_width_study,
    render_report,
    write_report,
)
from gpu_align._report._figures import convergence, cost_matrices, improvement
from gpu_align._report._format import MISSING, aligned, number, percent
from gpu_align._report._pictures import MOST_BARS
from gpu_align._result import SCHEMA, read_result
from gpu_align._search import Progress

FIGURES = ("Distance by step", "Improvement by group", "Costs in group", "Width of the beam")


class Page(HTMLParser):
    """Reads a page into headings, tables, checks, pictures and plain text."""

    VOID: ClassVar = {"meta", "img", "br", "link", "input"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.headings, self.answers = "", [], []
        self.terms: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.marked: list[int] = []
        self._title, self._term = "", ""
        self.feed(page)
        self.close()
        assert self.open == [], "a tag is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        elif tag == "table":
            self._title = self.headings[-1]
            self.tables[self._title] = []
        elif tag == "tr":
            if dict(attrs).get("class") == "best":
                self.marked.append(len(self.tables[self._title]) - 1)
            self.tables[self._title].append([])
        elif tag in ("th", "td"):
            self.tables[self._title][-1].append("")
        elif tag == "dt":
            self._term = ""
        elif tag == "li":
            self.answers.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        inside = set(self.open)
        if "style" in inside:
            return
        self.text += data
        if inside & {"h1", "h2", "h3"}:
            self.headings[-1] += data
        elif "table" in inside and inside & {"th", "td"}:
            self.tables[self._title][-1][-1] += data
        elif "dt" in inside:
            self._term += data
        elif "dd" in inside:
            self.terms[self._term] = self.terms.get(self._term, "") + data
        elif "li" in inside:
            self.answers[-1] += data

    def rows(self, title: str) -> list[dict[str, str]]:
        head, *rows = self.tables[title]
        return [dict(zip(head, row, strict=True)) for row in rows]

    def figures(self) -> list[str]:
        pictures = sum(tag == "figure" for tag, _ in self.tags)
        found = [h for h in self.headings if h.startswith(FIGURES) and "numbers" not in h]
        assert len(found) == pictures
        return found


def parsed(text: str) -> float:
    """Return the number that a text of the page shows."""
    plain = text.replace("−", "-").replace("\u202f", "").strip()
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    if match := re.fullmatch(r"(-?[\d.]+)×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", plain):
        return float(f"{match[1]}e{match[2].translate(digits)}")
    return float(plain.removesuffix("%"))


def mlp(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def true_result() -> dict[str, Any]:
    networks = [mlp(seed, 6, 12, 9, 4) for seed in (0, 1)]
    result = align(*networks, example_inputs=torch.randn(3, 6), budget=Budget(sweeps=25))
    data = json.loads(json.dumps(result.to_json()))
    problem = AlignmentProblem(*(net.state_dict() for net in networks), result.permutation.spec)
    data["studies"] = {
        "beam_width": beam_width_study(problem, (1, 2, 4)),
        "comparison": [
            {"search": "first", "distance": 12.5, "accuracy_after": 0.8125, "seconds": 0.5},
            {"search": "second", "distance": 12.25, "accuracy_after": 0.95, "seconds": 2.0},
            {"search": "third", "distance": 12.5, "gap_percent": 7.0, "seconds": None},
        ],
    }
    return data


@pytest.fixture(scope="module")
def page(true_result: dict[str, Any]) -> Page:
    return Page(render_report(true_result))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, for they take nearly all of a page's time."""
    monkeypatch.setattr(_page, "pictures", lambda result: [])


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the figures, but do not lay them out and draw them."""
    monkeypatch.setattr(_pictures, "_encoded", lambda *figure: "data:image/png;base64,")


@pytest.fixture
def result(true_result: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(true_result)


def group(name: str, before: float = 10.0, after: float = 5.0, gap: float = 0.0) -> dict[str, Any]:
    return {
        "name": name,
        "units": 8,
        "moved": 7,
        "distance_before": before,
        "distance_after": after,
        "primal": 4.0 - gap,
        "dual": 4.0,
        "gap": gap,
    }


# What the page says


def test_headline_shows_the_numbers_of_the_result(page: Page, true_result: dict[str, Any]) -> None:
    before, after = page.terms["Squared distance"].split("→")
    assert parsed(before) == pytest.approx(true_result["distance_before"], rel=5e-6)
    assert parsed(after) == pytest.approx(true_result["distance"], rel=5e-6)
    assert parsed(page.terms["Lower bound"]) == pytest.approx(true_result["lower_bound"], rel=5e-6)
    reduction = 100 * (1 - true_result["distance"] / true_result["distance_before"])
    assert parsed(page.terms["Reduction"]) == pytest.approx(reduction, abs=0.05)
    exponent = page.terms["Permutations"].removeprefix("10")
    assert float(exponent) == pytest.approx(true_result["log10_symmetries"], abs=0.05)


def test_group_table_shows_every_group_in_order(page: Page, true_result: dict[str, Any]) -> None:
    rows = page.rows("Groups")
    assert [row["group"] for row in rows] == [g["name"] for g in true_result["groups"]]
    for row, entry in zip(rows, true_result["groups"], strict=True):
        assert int(row["units"]) == entry["units"]
        assert int(row["moved"]) == entry["moved"]
        assert parsed(row["before"]) == pytest.approx(entry["distance_before"], rel=5e-6)
        assert parsed(row["after"]) == pytest.approx(entry["distance_after"], rel=5e-6)
        change = 100 * (entry["distance_after"] / entry["distance_before"] - 1)
        assert parsed(row["change"]) == pytest.approx(change, abs=0.051)
        gap = entry["gap"] / abs(entry["dual"])
        assert parsed(row["gap"]) == pytest.approx(gap, rel=0.06)


def test_settings_status_and_versions_are_shown(page: Page, true_result: dict[str, Any]) -> None:
    for term, key in [("seed", "seed"), ("metric", "metric"), ("device", "device")]:
        assert page.terms[term] == str(true_result[key])
    assert page.terms["found by"] == true_result["search"]
    assert page.terms["assignment problems"] == str(true_result["assignments"])
    assert parsed(page.terms["seconds"]) == pytest.approx(true_result["seconds"], rel=5e-3)
    for name, version in true_result["versions"].items():
        assert f"{name} {version}" in page.terms["versions"]
    status = true_result["status"].replace("_", " ")
    assert f"{status}: {true_result['status_note']}" in page.text


def test_studies_are_tabulated_and_the_best_search_is_marked(
    page: Page, true_result: dict[str, Any]
) -> None:
    rows = page.rows("Searches compared")
    assert page.marked == [1]
    assert rows[1]["search"].split() == ["second", "best"]
    assert [parsed(row["distance"]) for row in rows] == [12.5, 12.25, 12.5]
    gaps = [parsed(row["gap to best"]) for row in rows]
    assert gaps == pytest.approx([100 * (12.5 / 12.25 - 1), 0, 7.0], abs=0.005)
    assert [row["midpoint after"] for row in rows] == ["81.25\u202f%", "95.00\u202f%", MISSING]
    assert "midpoint before" not in rows[0]
    assert rows[2]["seconds"] == MISSING
    for row, entry in zip(
        page.rows("Width of the beam in numbers"), true_result["studies"]["beam_width"], strict=True
    ):
        assert int(row["width"]) == entry["width"]
        assert parsed(row["distance"]) == pytest.approx(entry["distance"], rel=5e-6)


def answer(data: dict[str, Any], title: str) -> tuple[str, str]:
    """Return verdict and words of one line of the certificate."""
    page = Page(render_report(data))
    number = next(n for n, text in enumerate(page.answers) if title in text)
    verdicts = [attributes.get("class") for tag, attributes in page.tags if tag == "li"]
    return str(verdicts[number]), page.answers[number]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("difference", "verdict", "words"),
    [
        (2.5e-16, "yes", "2.50 × 10⁻¹⁶"),
        (3.0, "no", "3.00"),
        (math.nan, "no", MISSING),
        (math.inf, "no", MISSING),
        (None, "open", "not checked"),
    ],
)
def test_certificate_of_the_function(
    result: dict[str, Any], difference: float | None, verdict: str, words: str
) -> None:
    result["function_difference"] = difference
    result["function_note"] = "not checked: no model" if difference is None else "on the inputs"
    got, text = answer(result, "Function preserved")
    assert got == verdict
    assert words in text.replace("\u202f", " ")
    assert ("No model." if difference is None else "On the inputs.") in text


@pytest.mark.usefixtures("no_pictures")
def test_certificate_of_the_groups_names_the_loosest(result: dict[str, Any]) -> None:
    result["groups"] = [group("tight", gap=4e-12), group("loose", gap=0.5), group("half", gap=0.1)]
    verdict, text = answer(result, "Optimal group by group")
    assert verdict == "open"
    assert "not shown for 2 of 3 groups; largest gap 0.12 of |dual|, in loose" in text
    result["groups"] = result["groups"][:1]
    verdict, text = answer(result, "Optimal group by group")
    assert verdict == "yes"
    assert "1.0 × 10⁻¹² of |dual|" in text.replace("\u202f", " ")


@pytest.mark.usefixtures("no_pictures")
def test_certificate_says_what_the_bound_leaves_open(result: dict[str, Any]) -> None:
    result["distance"], result["lower_bound"] = 8.0, 6.0
    verdict, text = answer(result, "Lower bound")
    assert verdict == "open"
    assert "at most 25.0\u202f% of" in text
    assert "may be loose" in text
    result["lower_bound"] = 8.0
    verdict, text = answer(result, "Lower bound")
    assert verdict == "yes"
    assert "no permutation whatever is better" in text


@pytest.mark.usefixtures("no_pictures")
def test_several_results_share_a_page_with_links(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    other.update(name="second net", distance=1.5, function_difference=None)
    page = Page(render_report([result, other], "Both"))
    assert page.headings[0] == "Both"
    rows = page.rows("Results")
    assert [row["name"] for row in rows] == ["Result 1", "second net"]
    assert parsed(rows[1]["after"]) == pytest.approx(1.5)
    assert [row["same function"] for row in rows] == ["yes", "not checked"]
    targets = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    anchors = [f"#{attributes['id']}" for tag, attributes in page.tags if tag == "article"]
    assert targets == anchors == ["#result-1", "#result-2"]


# The page itself


def test_page_needs_nothing_from_outside(result: dict[str, Any]) -> None:
    text = render_report([result, {**result, "history": [], "cost_matrix": None}])
    page = Page(text)
    assert len(page.figures()) == 6
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#"))
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"url\(|@import", text)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_pictures_hold_no_outside_reference(page: Page) -> None:
    sources = [str(a["src"]).partition(",") for tag, a in page.tags if tag == "img"]
    vector, pixels = "data:image/svg+xml;base64", "data:image/png;base64"
    assert [source[0] for source in sources] == [vector, vector, pixels, vector]
    for kind, _, text in sources:
        content = base64.b64decode(text)
        if kind == pixels:
            assert content.startswith(b"\x89PNG")
            continue
        links = re.findall(rb'(?:href|src)="([^"]*)"', content)
        assert all(link.startswith(b"#") for link in links)
        assert b"<script" not in content


ODD_NAMES = ("<b>&", "$x^2$ and $", "層.名", "tab\tnew\nline", "x" * 300)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_shown_as_they_are(result: dict[str, Any], name: str) -> None:
    result["name"] = name
    result["search"] = name
    result["groups"][0]["name"] = name
    text = render_report(result, title=name)
    page = Page(text)
    assert page.headings[:2] == [name, name]
    assert page.rows("Groups")[0]["group"] == name
    assert page.terms["found by"] == name
    assert "<b>" not in text


def test_odd_names_can_be_drawn(result: dict[str, Any]) -> None:
    result["groups"] = [group(name) for name in ODD_NAMES]
    result["cost_matrix"]["group"] = ODD_NAMES[0]
    for entry, name in zip(result["history"], itertools.cycle(ODD_NAMES), strict=False):
        entry["stage"] = name
    text = render_report(result)
    assert f"Costs in group {ODD_NAMES[0]}" in Page(text).headings
    assert "<b>" not in text


def test_same_data_same_bytes(result: dict[str, Any]) -> None:
    first = render_report(result)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert render_report(copy.deepcopy(result)) == first
        assert dict(matplotlib.rcParams) == before


# What is missing


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"groups": []}, "Improvement by group"),
        ({"groups": None}, "Improvement by group"),
        ({"groups": [group("a", 0.0, 0.0)]}, "Improvement by group"),
        ({"cost_matrix": None}, "Costs in group"),
        ({"studies": {}}, "Width of the beam"),
        ({"studies": {"beam_width": [], "comparison": []}}, "Width of the beam"),
        ({"history": []}, "Distance by step"),
        ({"distance": 0.0, "distance_before": 0.0, "lower_bound": 0.0}, "Distance by step"),
    ],
)
def test_missing_data_leaves_out_its_figure_only(
    result: dict[str, Any], change: dict[str, Any], gone: str
) -> None:
    result.update(change)
    figures = Page(render_report(result)).figures()
    assert [f for f in FIGURES if not any(title.startswith(f) for title in figures)] == [gone]


@pytest.mark.usefixtures("no_drawing")
def test_a_single_step_is_no_curve(result: dict[str, Any]) -> None:
    result["history"] = result["history"][:1]
    assert "Distance by step" not in Page(render_report(result)).headings


def test_the_least_there_can_be_makes_a_page() -> None:
    page = Page(render_report({"schema": SCHEMA, "distance": 1.0, "distance_before": 2}))
    assert page.figures() == []
    assert page.tables == {}
    assert "Lower bound" not in page.terms
    assert page.terms["Reduction"] == "50.0\u202f%"


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "gpu-align/result/0"},
        {"distance": None},
        {"distance": "much"},
        {"groups": [{"name": "a"}]},
        {"history": [3]},
        {"cost_matrix": {"group": "a", "units": 2, "before": [[1, 2]], "after": [[1, 2]]}},
        {"studies": {"comparison": [{"distance": 1.0}]}},
        {"studies": 5},
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_damaged_results_are_refused(result: dict[str, Any], damage: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"result 2 .*read_result"):
        render_report([copy.deepcopy(result), {**result, **damage}])


@pytest.mark.parametrize("data", [[], "result.json", 5])
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(InputError, match="cannot make a report"):
        render_report(data)


# Files


@pytest.mark.usefixtures("no_drawing")
def test_page_is_written_from_the_file_alone(tmp_path: Any, result: dict[str, Any]) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    path = tmp_path / "report.html"
    write_report(read_result(tmp_path / "result.json"), path, title="From a file")
    assert path.read_text(encoding="utf-8") == render_report(result, "From a file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "result.json"]


def test_writing_where_nothing_can_be_written(tmp_path: Any, result: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"cannot write .*does not exist"):
        write_report(result, tmp_path / "missing" / "report.html")


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
def test_lines_of_one_model_are_not_drawn_over_the_mean_of_several(
    page: Page, result: dict[str, Any]
) -> None:
    assert "mean over the models" not in page.text
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


# The beam-width study


def problem_of(*widths: int, seed: int = 0) -> AlignmentProblem:
    source, target = (mlp(seed + n, *widths).double().state_dict() for n in (0, 1))
    return AlignmentProblem(source, target, chain_spec(target))


def test_study_reaches_the_optimum_once_the_beam_holds_everything() -> None:
    problem = problem_of(4, 3, 3, 2)
    every = list(itertools.permutations(range(3)))
    pairs = list(itertools.product(every, every))
    perms = {
        name: torch.tensor([pair[n] for pair in pairs]) for n, name in enumerate(problem.groups)
    }
    optimum = float(problem.hypotheses(perms).objective.min())
    rows = beam_width_study(problem, (1, 2, 6, 20))
    assert [row["width"] for row in rows] == [1, 2, 6, 20]
    assert all(row["distance"] >= optimum * (1 - 1e-12) for row in rows)
    # Six hypotheses are all orders of the first group, and the second is then solved exactly.
    assert [row["distance"] for row in rows[2:]] == pytest.approx([optimum, optimum], rel=1e-12)
    assert all(row["seconds"] > 0 for row in rows)


def test_study_gives_the_objective_of_real_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(10, 24, 24, 5)
    outcomes = []

    def watched(*arguments: Any, **options: Any) -> Any:
        outcomes.append(run(*arguments, **options))
        return outcomes[-1]

    run = _study.run_search
    monkeypatch.setattr(_study, "run_search", watched)
    rows = beam_width_study(problem, (1, 4, 12), seed=3)
    for row, outcome in zip(rows, outcomes[1:], strict=True):
        exact = problem.distance(problem.permutation(outcome.best))
        assert row["distance"] == pytest.approx(exact, rel=1e-9)
    assert [row["distance"] for row in beam_width_study(problem, (1, 4, 12), seed=3)] == [
        row["distance"] for row in rows
    ]
    assert len({row["distance"] for row in rows}) > 1, "the width does not matter here"


def test_study_skips_what_has_nothing_to_align() -> None:
    assert beam_width_study(problem_of(4, 1, 3)) == []
    with pytest.raises(InputError, match="width"):
        beam_width_study(problem_of(4, 3, 2), (0,))
