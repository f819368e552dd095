"""README.md and the pages: every block of code runs as it is written."""

import sys
from pathlib import Path

import documents
import pytest
from marks import slow

RUN = [
    page
    for page in documents.PAGES
    if {"python", "sh"} & {b.language for b in documents.blocks(page)}
]


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.stem)
def test_blocks_are_of_known_languages(page: Path) -> None:
    fences = page.read_text(encoding="utf-8").count("\n```")
    found = list(documents.blocks(page))
    assert 2 * len(found) == fences + page.read_text(encoding="utf-8").startswith("```")
    assert {block.language for block in found} <= documents.LANGUAGES


@pytest.mark.parametrize("page", slow(RUN), ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    documents.run(page)
