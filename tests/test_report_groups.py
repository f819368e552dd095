"""How the groups of a spec are shown: outline, picture, table and the page of `inspect`."""

import itertools
import json
from dataclasses import asdict
from typing import Any

import pytest
import report_pages
from marks import slow
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from report_pages import Page, group

from gpu_align import InputError, PermutationSpec, chain_spec
from gpu_align._report import render_report, render_symmetries, write_symmetries
from gpu_align._report._lane_chart import ROW, lane_chart
from gpu_align._report._lanes import MOST_ROWS, MOST_TRACKS, layout
from gpu_align._report._pictures import pictures_of_groups
from gpu_align._symmetry._axis import Axis
from gpu_align._symmetry._outline import Outline, outline
from gpu_align._symmetry._parts import Group
from gpu_align._symmetry._tensor_spec import TensorSpec


def spec_of(groups: dict[str, Any], tensors: dict[str, Any], **more: Any) -> PermutationSpec:
    document = {"format": "gpu-align/spec", "version": 2, "groups": groups, "tensors": tensors}
    return PermutationSpec.from_json(json.dumps({**document, **more}))


def transformer(layers: int) -> PermutationSpec:
    """Attention with three heads of four dimensions, which have signs, and an MLP."""
    groups: dict[str, Any] = {"embed": 12}
    tensors: dict[str, Any] = {"embed.weight": [7, "embed"]}
    for layer in (f"layers.{n}" for n in range(layers)):
        heads, dims, inner = f"{layer}.v", f"{layer}.v[1]", f"{layer}.up"
        groups[inner] = 20
        groups[dims] = {"size": 4, "parent": heads, "signed": True}
        groups[heads] = 3
        tensors[f"{layer}.norm.weight"] = ["embed"]
        tensors[f"{layer}.v.weight"] = [{"product": [heads, f"{dims}^1"]}, "embed"]
        tensors[f"{layer}.o.weight"] = ["embed", {"product": [heads, f"{dims}^-1"]}]
        tensors[f"{layer}.up.weight"] = [inner, "embed"]
        tensors[f"{layer}.down.weight"] = ["embed", inner]
    tensors["head.weight"] = [5, "embed"]
    pins = [["embed.weight", 0, "op embedding"], ["head.weight", 0, "graph output"]]
    return spec_of(groups, tensors, pins=pins, origin="by hand")


def dense(layers: int) -> PermutationSpec:
    """Every layer reads what all before it have made, joined."""
    names = [f"layer{n}" for n in range(layers)]
    tensors = {
        f"{name}.weight": [name, {"concat": [2, *names[:n]]}] for n, name in enumerate(names)
    }
    return spec_of(dict.fromkeys(names, 3), tensors)


def chain(layers: int) -> PermutationSpec:
    """One group between each two layers."""
    names = [f"l{n}" for n in range(layers)]
    axes = [2, *names[:-1], 2]
    tensors = {
        f"{n}.weight": [after, a]
        for n, (a, after) in zip(names, itertools.pairwise(axes), strict=True)
    }
    return spec_of(dict.fromkeys(names[:-1], 4), tensors)


def crowded(groups: int) -> PermutationSpec:
    """All groups on one tensor."""
    names = [f"g{n}" for n in range(groups)]
    return spec_of(dict.fromkeys(names, 2), {"weight": [{"concat": names}, 3]})


def odd_names() -> PermutationSpec:
    names = [
        "x" * 100,
        ".".join("abcdefghij" * 10),
        "層.名",
        "$x_2$.$",
        "tab\tnew\nline",
        "",
        "<b>&.é",
    ]
    groups = {name or "empty": 3 for name in names}
    tensors = {f"{name}.weight": [name or "empty", 2] for name in names}
    pins = [[f"{name}.weight", 1, "reason " * 30] for name in names]
    return spec_of(groups, tensors, pins=pins)


SPECS = {
    "transformer": transformer(3),
    "deep transformer": transformer(60),
    "dense": dense(12),
    "deep dense": dense(120),
    "mlp": chain_spec(report_pages.mlp(0, 6, 12, 9, 4).state_dict()),
    "one group": chain(2),
    "deep": chain(300),
    "crowded": crowded(500),
    "odd names": odd_names(),
}


# What a spec says


def test_outline_of_a_transformer() -> None:
    spec = transformer(2)
    found = outline(spec)
    names = [module.name for module in found.modules]
    assert names[:5] == ["embed", "layers.0.norm", "layers.0.v", "layers.0.o", "layers.0.up"]
    assert [module.is_vector for module in found.modules[:3]] == [False, True, False]
    assert [module.fixed for module in found.modules[:2]] == [("op embedding",), ()]
    # The spec names children and MLP first; here a child is behind its parent.
    order = ["embed", "layers.0.up", "layers.0.v", "layers.0.v[1]", "layers.1.up"]
    assert [span.name for span in found.groups][:5] == order
    child = found.groups[3]
    assert [names[module] for module in child.modules] == ["layers.0.v", "layers.0.o"]
    assert (found.units(child), found.units_in_words(child)) == (12, "4 in each of 3")
    assert (child.gauge, found.groups[2].gauge) == ("sign", "")
    assert (found.signed_units, found.scaled_units) == (24, 0)


@pytest.mark.parametrize("name", SPECS)
def test_outline_says_what_the_spec_says(name: str) -> None:
    spec, found = SPECS[name], outline(SPECS[name])
    assert {span.name for span in found.groups} == set(spec.groups)
    for span in found.groups:
        tensors = {tensor for tensor, _ in spec.perm_to_axes(span.name)}
        assert {found.modules[m].name for m in span.modules} == {
            tensor.rpartition(".")[0] or tensor for tensor in tensors
        }
        assert found.units(span) == spec.units(span.name)
    assert Outline.from_json(json.loads(json.dumps(asdict(found)))) == found


# Where the picture puts it


@pytest.mark.parametrize("name", SPECS)
def test_lanes_keep_apart_and_have_their_dots_in_the_right_rows(name: str) -> None:
    found = outline(SPECS[name])
    placed = layout(found)
    assert len(placed.rows) <= MOST_ROWS
    assert 0 < placed.tracks <= MOST_TRACKS
    rows = [module and module.name for module in placed.rows]
    assert rows.count(None) == (placed.hidden > 0)
    for lane in placed.lanes:
        modules = [found.modules[module].name for module in lane.span.modules]
        assert [rows[row] for row in lane.dots] == [name for name in modules if name in rows]
        assert lane.first <= lane.dots[0] <= lane.dots[-1] <= lane.last
    for a, b in itertools.combinations(placed.lanes, 2):
        assert a.track != b.track or a.last < b.first or b.last < a.first
    for lane in placed.lanes:
        if lane.span.parent is not None:
            parent = next(p for p in placed.lanes if p.span.name == lane.span.parent)
            assert (lane.family, lane.track) == (parent.family, parent.track + 1)


def test_tracks_are_used_again() -> None:
    assert [lane.track for lane in layout(outline(chain(9))).lanes] == [0, 1] * 4
    assert layout(outline(transformer(9))).tracks == 3
    assert layout(outline(dense(9))).tracks == 9


@pytest.mark.usefixtures("no_drawing")
def test_what_is_left_out_is_counted() -> None:
    placed = layout(outline(transformer(60)))
    assert placed.vectors == 60
    assert placed.hidden == 2 + 4 * 60 - (MOST_ROWS - 1)
    assert placed.gap == placed.rows.index(None)
    residual = placed.lanes[0]
    assert len(residual.dots) == MOST_ROWS - 1
    [picture] = pictures_of_groups(outline(transformer(60)))
    shown = len(placed.lanes)
    assert f"60 layers with vectors only, such as norms; {placed.hidden} layers" in picture.caption
    assert f"{181 - shown} groups" in picture.caption
    [picture] = pictures_of_groups(outline(crowded(500)))
    assert f"{500 - MOST_TRACKS} groups" in picture.caption
    [picture] = pictures_of_groups(outline(transformer(2)))
    assert "Left out" not in picture.caption


def test_a_group_on_vectors_alone_is_kept() -> None:
    groups = {f"g{n}": 2 for n in range(40)} | {"scale": 3}
    tensors = {f"m{n}.weight": [f"g{n}", 2] for n in range(40)}
    spec = spec_of(groups, {**tensors, "norm.weight": ["g0"], "only.weight": ["scale"]})
    placed = layout(outline(spec))
    names = [module.name for module in placed.rows if module is not None]
    assert "only" in names
    assert "norm" not in names
    assert placed.vectors == 1


# What the picture shows


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    "name", slow(SPECS, but=[name for name in SPECS if not name.startswith("deep")])
)
def test_words_keep_apart_and_inside_the_picture(name: str) -> None:
    figure = lane_chart(layout(outline(SPECS[name])))
    width, height = figure.get_size_inches()
    assert height <= ROW * (MOST_ROWS + 1)
    rows: dict[float, list[Any]] = {}
    for text in figure.axes[0].texts:
        rows.setdefault(text.get_position()[1], []).append(text.get_window_extent())
    for row in rows.values():
        row.sort(key=lambda box: box.x0)
        for before, after in itertools.pairwise(row):
            assert before.x1 <= after.x0 + 4
        assert row[-1].x1 <= width * figure.dpi


def test_words_of_a_transformer() -> None:
    figure = lane_chart(layout(outline(transformer(1))))
    said = texts(figure)
    for words in ("12", "3", "4 in each [1], sign", "20", "fixed: op embedding"):
        assert words in said
    assert "o" in said, "what a name shares with the one above it is a text of its own"
    lines = figure.axes[0].get_lines()
    hollow = [line for line in lines if to_hex(line.get_markerfacecolor()) == "#ffffff"]
    assert [len(line.get_xdata()) for line in hollow if line.get_marker() == "o"] == [2]


def test_a_group_with_another_name_is_named() -> None:
    spec = spec_of({"a.b.second": 4}, {"a.b.first.weight": ["a.b.second", 2], "c": ["a.b.second"]})
    assert "4 …second" in texts(lane_chart(layout(outline(spec))))
    spec = spec_of({"a.b": 4}, {"a.b.first.weight": ["a.b", 2]})
    assert "4 b" in texts(lane_chart(layout(outline(spec))))
    spec = spec_of({"h": 4}, {"a.weight": ["h", 2]})
    assert "4 h" in texts(lane_chart(layout(outline(spec))))


# The table of groups


@pytest.mark.usefixtures("no_drawing")
def test_groups_inside_others_are_rows_below_them() -> None:
    data = report_pages.result()
    child = {"name": "heads[1]", "units": 64, "moved": 700}
    data["groups"] = [{**group("heads"), "units": 12, "inside": [child]}, group("mlp")]
    data["cost_matrix"]["group"] = "heads[1]"
    text = render_report(data)
    page = Page(text)
    root, inner, other = page.rows("Groups")
    assert [row["group"] for row in (root, inner, other)] == ["heads", "heads[1]", "mlp"]
    assert (root["units"], inner["units"], inner["moved"]) == ("12", "12 × 64", "700")
    assert inner["gap"] == inner["before"] == ""
    assert root["gap"] == "0"
    classes = [attributes.get("class") for tag, attributes in page.tags if tag == "th"]
    assert classes.count("inside") == 1
    assert "in 2 groups and 1 inside their units" in page.text
    assert "inside the units of heads, the group that gained most" in page.text


@pytest.mark.usefixtures("no_drawing")
def test_results_of_earlier_releases_have_neither_groups_inside_nor_an_outline() -> None:
    data = report_pages.result()
    del data["outline"]
    for entry in data["groups"]:
        del entry["inside"]
    page = Page(render_report(data))
    assert len(page.rows("Groups")) == len(data["groups"])
    assert "Groups over the network" not in page.headings
    assert "Sign flips" not in page.terms


# The page of a spec


@pytest.mark.usefixtures("no_drawing")
def test_page_of_a_transformer() -> None:
    page = Page(render_symmetries(transformer(2), "Symmetries of it"))
    assert page.headings == [
        "Symmetries of it",
        "Groups over the network",
        "Groups",
        "What stays fixed",
    ]
    assert page.terms["Sign flips"] == "224"
    assert page.terms["Units"] == "82"
    rows = {row["group"]: row for row in page.rows("Groups")}
    assert rows["layers.1.v[1]"]["units"] == "4 in each of 3"
    assert rows["layers.1.v[1]"]["gauge"] == "sign"
    assert "layers.0.v.weight[0] (3×4)" in rows["layers.0.v"]["lies on"]
    assert [row["because of"] for row in page.rows("What stays fixed")] == [
        "op embedding",
        "graph output",
    ]


@pytest.mark.usefixtures("no_drawing")
def test_page_without_signs_has_no_column_for_them() -> None:
    page = Page(render_symmetries(chain(3)))
    assert page.tables["Groups"][0] == ["group", "units", "lies on"]
    assert "Sign flips" not in page.terms


def test_page_without_groups() -> None:
    page = Page(render_symmetries(PermutationSpec({}, {"w": TensorSpec((Axis.fixed(3),))})))
    assert page.figures() == []
    assert page.tables == {}
    assert page.terms["Groups"] == "0"


@pytest.mark.usefixtures("no_drawing")
def test_page_of_many_groups_and_odd_names() -> None:
    assert len(Page(render_symmetries(crowded(500))).rows("Groups")) == 500
    text = render_symmetries(odd_names(), "<i>")
    page = Page(text)
    assert "<b>" not in text
    assert "<i>" not in text
    assert {row["group"] for row in page.rows("Groups")} == set(odd_names().groups)


def test_group_without_tensors() -> None:
    spec = PermutationSpec({"g": Group("g", 3)}, {"w": TensorSpec((Axis.fixed(3),))})
    assert Page(render_symmetries(spec)).figures() == []


def test_page_is_written(tmp_path: Any) -> None:
    write_symmetries(chain(3), tmp_path / "page.html", title="Chain")
    assert (tmp_path / "page.html").read_text("utf-8") == render_symmetries(chain(3), "Chain")
    with pytest.raises(InputError, match=r"cannot write .*does not exist"):
        write_symmetries(chain(3), tmp_path / "missing" / "page.html")
