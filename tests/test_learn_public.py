"""The face of gpu_align.learn: its names, what an import loads, the example in the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu_align import learn

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


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


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (example,) = (block for block in blocks if "gpu_align.learn" in block)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    difference, shapes = capsys.readouterr().out.splitlines()
    assert 0 <= float(re.findall(r"tensor\(([^,)]+)", difference)[0]) < 1e-4
    assert shapes == "[(100, 16, 16), (100, 16, 8), (100, 16, 8), (100, 8)]"
    moved = zip(names["weights"], names["reordered"], strict=True)
    assert all(not torch.equal(x, y) for x, y in list(moved)[:3])
