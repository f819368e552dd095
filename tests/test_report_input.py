"""The report from results with parts missing or damaged, and from and to files."""

import copy
import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import report_pages
from report_pages import FIGURES, Page, group

from gpu_align import InputError
from gpu_align._align._result import SCHEMA, ResultRecord, read_result
from gpu_align._report import render_report, write_report
from gpu_align._report._format import MISSING


@pytest.fixture
def result() -> dict[str, Any]:
    return report_pages.result()


def outlined(name: str, **more: Any) -> dict[str, Any]:
    """Return the JSON form of a group in an outline."""
    plain = {"size": 8, "parent": None, "signed": False, "scaled": False, "modules": []}
    return {"name": name, **plain, **more}


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
        ({"outline": None}, "Groups over the network"),
        ({"outline": {"modules": [], "groups": []}}, "Groups over the network"),
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
        {"groups": [{**group("a"), "inside": [{"name": "b"}]}]},
        {"outline": {"modules": []}},
        {"outline": {"modules": [], "groups": [outlined("a", modules=[0])]}},
        {"outline": {"modules": [], "groups": [outlined("a", parent="b")]}},
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


@pytest.mark.usefixtures("no_drawing")
def test_a_result_makes_the_page_of_its_json_form() -> None:
    found = report_pages.found()
    data = json.loads(json.dumps(found.to_json()))
    again = ResultRecord.from_json(data)
    for entry in fields(ResultRecord):
        assert getattr(again, entry.name) == getattr(found, entry.name)
    assert render_report(found) == render_report(again) == render_report(data)
    named = render_report([found, found], names=["one", "two"])
    assert named == render_report([{"name": n, **found.to_json()} for n in ("one", "two")])


@pytest.mark.usefixtures("no_pictures")
def test_outputs_that_became_infinite_are_not_unchecked() -> None:
    found = replace(report_pages.found(), function_difference=math.inf)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (data["function_difference"], data["function_preserved"]) == (None, False)
    for page in (render_report(found), render_report(data)):
        assert any(f"no, largest relative difference {MISSING}" in a for a in Page(page).answers)


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
