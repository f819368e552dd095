"""README.md and the pages: every block of code runs as it is written, every name is described."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import documents
import jupytext
import nbformat
import pytest
import test_architectures
from marks import slow

import gpu_align
from docs.generate import gallery, notebooks, tables
from gpu_align import learn

RUN = [
    page
    for page in documents.PAGES
    if {"python", "sh"} & {b.language for b in documents.blocks(page)}
]
PROSE = [*documents.PAGES, *(documents.ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.stem)
def test_blocks_are_of_known_languages(page: Path) -> None:
    fences = page.read_text(encoding="utf-8").count("\n```")
    found = list(documents.blocks(page))
    assert 2 * len(found) == fences + page.read_text(encoding="utf-8").startswith("```")
    assert {block.language for block in found} <= documents.LANGUAGES


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.stem)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", slow(RUN), ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    documents.run(page)


@pytest.mark.parametrize("module", [gpu_align, learn], ids=lambda module: module.__name__)
def test_every_public_name_has_its_place_in_the_reference(module: ModuleType) -> None:
    pages = (documents.ROOT / "docs" / "api").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    described = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", text, re.MULTILINE)
    beside = {"write_report", "write_zoo_report"} if module is gpu_align else set()
    assert sorted(described) == sorted({*module.__all__, *beside})


def test_the_gallery_has_every_architecture_of_the_tests() -> None:
    known = test_architectures.SMALL | test_architectures.FULL
    titles = {name for kind in gallery.KINDS.values() for name in kind}
    found = json.loads((gallery.GALLERY / "gallery.json").read_text(encoding="utf-8"))
    assert titles == known.keys() == found.keys()
    for name, (_, expected) in known.items():
        assert found[name]["log10"] == pytest.approx(expected, abs=1e-6), name
        assert (gallery.GALLERY / f"{name}.svg").is_file()


@pytest.mark.parametrize("name", notebooks.TITLES)
def test_notebooks_are_those_of_the_scripts_and_have_run(name: str) -> None:
    script = jupytext.read(notebooks.FOLDER / f"{name}.py")
    kept = nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)
    assert [cell.source for cell in kept.cells] == [cell.source for cell in script.cells]
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any(output.output_type == "display_data" for cell in code for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.TITLES)
def test_notebooks_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_ALIGN_FAST", "1")
    kinds = {
        o.output_type for cell in notebooks.executed(name).cells for o in cell.get("outputs", [])
    }
    assert "display_data" in kinds


def test_the_table_of_the_readme_is_what_was_recorded() -> None:
    rows = [line for line in tables.reference().splitlines() if line.startswith("| ")][1:]
    text = (documents.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(rows) == 4
    assert [row for row in rows if row not in text] == []
