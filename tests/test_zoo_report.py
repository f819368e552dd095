"""The page of a zoo: what was near, what failed, equal data equal text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from zoos import planted, state, write_folder

from gpu_align import InputError, align_zoo, write_zoo_report
from gpu_align._report import render_zoo

REFERENCE = state(0, 5, 6, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("zoo")
    _, moved = planted(6, REFERENCE)
    source = write_folder(folder / "zoo", moved)
    (source / "net003.safetensors").write_bytes(b"<script>")
    (source / "a<b>.pt").write_bytes(b"nothing")
    torch.save({"w": torch.ones(3)}, source / "other.pt")
    zoo = align_zoo(source, REFERENCE, folder / "out", workers=1)
    zoo.write_report(folder / "page.html")
    assert (folder / "page.html").read_text(encoding="utf-8") == render_zoo(zoo.data)
    return dict(json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8")))


def test_the_page_says_what_came_of_the_zoo(data: dict[str, Any]) -> None:
    page = render_zoo(data)
    assert "5 of 8" in page
    assert "3 models could not be aligned" in page
    assert "a&lt;b&gt;.pt" in page
    assert "a<b>" not in page
    for title in ("Distances of 50p", "mean network", "What could not be aligned", "Families"):
        assert title in page
    assert page == render_zoo(data)


def test_a_zoo_of_failures_only_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "a.pt").write_bytes(b"nothing")
    zoo = align_zoo(tmp_path / "zoo", REFERENCE, tmp_path / "out", workers=1)
    assert zoo.aligned == 0
    assert "1 model could not be aligned" in render_zoo(zoo.data)


def test_what_is_no_summary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the summary of an aligned zoo"):
        write_zoo_report({"families": {}}, tmp_path / "page.html")
