"""The report: what the page says is what the result holds, and it needs nothing but itself."""

import base64
import copy
import itertools
import math
import re
from typing import Any

import matplotlib
import pytest
import report_pages
from report_pages import Page, group, parsed

from gpu_align._report import render_report
from gpu_align._report._format import MISSING


@pytest.fixture(scope="module")
def true_result() -> dict[str, Any]:
    return report_pages.result()


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(report_pages.result()))


@pytest.fixture
def result() -> dict[str, Any]:
    return report_pages.result()


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


@pytest.mark.usefixtures("no_drawing")
def test_page_needs_nothing_from_outside(result: dict[str, Any]) -> None:
    text = render_report([result, {**result, "history": [], "cost_matrix": None}])
    page = Page(text)
    assert len(page.figures()) == 8
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
    assert [source[0] for source in sources] == [vector, vector, pixels, vector, vector]
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
