"""The face of gpu_align.learn: its names, what an import loads, the example of its page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu_align import learn

PAGE = (Path(__file__).parents[1] / "docs" / "learning.md").read_text(encoding="utf-8")


def test_names_are_complete_and_sorted() -> None:
    assert learn.__all__ == sorted(learn.__all__)
    assert set(learn.__all__) <= set(dir(learn))
    for name in learn.__all__:
        assert getattr(learn, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'EquivariantLiner'"):
        learn.EquivariantLiner  # noqa: B018


def test_import_loads_no_torch() -> None:
    code = "import sys, gpu_align.learn; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(compile(example, "learning.md", "exec"), names)
    difference, shapes = capsys.readouterr().out.splitlines()
    assert 0 <= float(re.findall(r"tensor\(([^,)]+)", difference)[0]) < 1e-4
    assert shapes == "[(100, 16, 16), (100, 16, 8), (100, 16, 8), (100, 8)]"
    moved = zip(names["weights"], names["reordered"], strict=True)
    assert all(not torch.equal(x, y) for x, y in list(moved)[:3])
