"""The page of a merge: what it says is what was found, and it needs nothing but itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_pages import Page, parsed, result
from test_barrier_report import FOUND as BARRIER
from trained_digits import DIGITS, MLP
from typer.testing import CliRunner

import gpu_align
from gpu_align import merge
from gpu_align._cli._main import app
from gpu_align._merge import GroupMatch, MergeResult, Trial
from gpu_align._report import Study, render_report

CHOSEN = Trial("weights and data, 1", "refit", 0.0716, 0.9867, 0.014, 47.8, 750, 1500)
FOUND = MergeResult(
    state_dict={},
    chosen=CHOSEN,
    trials=(
        Trial("a<1>.pt", "", 0.0703, 0.9787, 0.01, None, 750),
        Trial("b.pt", "", 0.0748, 0.9853, 0.02, None, 750),
        Trial("as given", "norms", 1.5219, 0.7227, 0.3, 62.5, 750, 750),
        CHOSEN,
    ),
    permutations=(),
    cycle_error=None,
    weights=(0.25, 0.75),
    notes=("the merged network is worse than <a>",),
    groups=(GroupMatch("P_0", 24, 23, 0.51, 0.83), GroupMatch("P_<1>", 48, 40, 0.5, 0.625)),
    seconds=12.0,
    seed=3,
)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(FOUND, "Merge of <a> and <b>"))


def test_headline_is_the_chosen_way(page: Page) -> None:
    assert page.terms["Chosen"] == "weights and data, 1: refit"
    assert parsed(page.terms["Loss"]) == pytest.approx(CHOSEN.loss, rel=1e-3)
    assert parsed(page.terms["Accuracy"]) == pytest.approx(98.67)
    assert page.headings[0] == "Merge of <a> and <b>"
    assert FOUND.notes[0] in page.text
    assert "750 held-back examples" in page.text


def test_table_has_every_trial_and_marks_the_chosen_one(page: Page) -> None:
    rows = page.rows("What was tried")
    assert len(rows) == len(FOUND.trials)
    for row, trial in zip(rows, FOUND.trials, strict=True):
        assert row["order of units"].startswith(trial.order)
        assert row["set right by"] == (trial.method or "not merged")
        assert parsed(row["loss"]) == pytest.approx(trial.loss, rel=1e-3)
        assert parsed(row["accuracy"]) == pytest.approx(100 * (trial.accuracy or 0), abs=0.005)
    assert page.marked == [3]


def test_groups_say_what_the_mean_keeps(page: Page) -> None:
    rows = page.rows("How well the groups match")
    for row, group in zip(rows, FOUND.groups, strict=True):
        assert (row["group"], row["units"]) == (group.name, str(group.units))
        assert row["moved"] == str(group.moved)
        assert parsed(row["kept as given"]) == pytest.approx(100 * group.kept_before)
        assert parsed(row["kept"]) == pytest.approx(100 * group.kept)


def test_page_needs_nothing_but_itself(page: Page) -> None:
    [picture] = [attributes for tag, attributes in page.tags if tag == "img"]
    assert str(picture["src"]).startswith("data:image/")
    assert "0.0716" in str(picture["alt"])


@pytest.mark.usefixtures("no_pictures")
def test_a_report_of_alignments_has_what_came_after_each() -> None:
    given = [result(), result()]
    alone = Page(render_report(given))
    page = Page(render_report(given, studies=[Study(BARRIER, FOUND)] * 2))
    for title in ("Between the two networks", "Losses of what was tried", "What was tried"):
        assert page.headings.count(title) == 2
        assert title not in alone.headings


def test_without_losses_there_is_no_figure() -> None:
    bare = Trial("weights", "none", distance=3.0)
    found = replace(FOUND, chosen=bare, trials=(bare,))
    page = Page(render_report(found))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert list(page.rows("What was tried")[0]) == ["order of units", "set right by", "distance"]


def test_what_the_mean_keeps_is_one_for_copies_and_half_for_opposites(tmp_path: Path) -> None:
    state = {"0.weight": torch.randn(5, 3), "2.weight": torch.randn(2, 5)}
    shuffled = gpu_align.Permutation.random(gpu_align.chain_spec(state), seed=1).apply(state)
    same = merge([state, shuffled])
    [group] = same.groups
    assert group.units == 5
    assert group.moved > 0
    assert group.kept == pytest.approx(1)
    assert group.kept_before < 0.999
    apart = [{"0.weight": torch.eye(4)[half], "2.weight": torch.zeros(1, 2)} for half in HALVES]
    [group] = merge(apart).groups
    assert group.kept == pytest.approx(0.5)


HALVES = (slice(0, 2), slice(2, 4))


def test_the_command_writes_the_page(trained_folder: Path) -> None:
    pair = ("mlp0.safetensors", "mlp1.safetensors", "--search", "descent", "--device", "cpu")
    out = ("-o", "o.pt", "--json-file", "r.json", "--report", "r.html", "--method", "repair")
    found = CliRunner().invoke(app, ["merge", *pair, *out, *MLP, *DIGITS])
    assert found.exit_code == 0, found.output
    assert "wrote report: r.html" in found.stdout
    page = Page(Path("r.html").read_text(encoding="utf-8"))
    document = json.loads(Path("r.json").read_text(encoding="utf-8"))
    rows = page.rows("How well the groups match")
    assert [row["group"] for row in rows] == [group["name"] for group in document["groups"]]
