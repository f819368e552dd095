"""Packaging: the list of packages, what an import loads, the public names."""

import importlib.metadata
import importlib.resources
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import gpu_align

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Return where setuptools finds a package, by the longest matching entry of package-dir."""
    mapping = SETUPTOOLS["package-dir"]
    parent = max((name for name in mapping if f"{package}.".startswith(f"{name}.")), key=len)
    rest = package.removeprefix(parent).strip(".").replace(".", "/")
    return ROOT / mapping[parent] / rest


def test_every_folder_of_the_tree_is_packaged() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "gpu_align").rglob("__init__.py")
    }
    assert sorted(found | {"gpu_align.kernels"}) == sorted(SETUPTOOLS["packages"])
    assert SETUPTOOLS["packages"] == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_package_is_there_with_all_its_files(package: str) -> None:
    folder = folder_of(package)
    assert (folder / "__init__.py").is_file()
    patterns = ["*.py", *SETUPTOOLS["package-data"].get(package, [])]
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc"]
    left_out = [path.name for path in files if not any(map(path.match, patterns))]
    assert left_out == []


def test_nothing_but_gpu_align_becomes_importable() -> None:
    assert {name.partition(".")[0] for name in SETUPTOOLS["packages"]} == {"gpu_align"}
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert importlib.util.find_spec("gpu_align.kernels") is not None
    top_level = importlib.metadata.distribution("gpu-align").read_text("top_level.txt")
    assert top_level is None or top_level.split() == ["gpu_align"]


def test_package_is_marked_as_typed() -> None:
    assert importlib.resources.files("gpu_align").joinpath("py.typed").is_file()


def loaded_by(code: str, before: str = "", **environment: str) -> set[str]:
    """Return the names of what a fresh interpreter has loaded after some code, at any level."""
    program = (
        f"import sys\n{before}\nbefore = set(sys.modules)\n"
        f"try:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n"
        "print(*set(sys.modules) - before, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return set(run.stderr.split())


COMMANDS = (
    *("align", "barrier", "merge", "repair", "inspect", "apply", "canonicalize", "report", "demo"),
    *("env", "learn"),
)
HEAVY = {"torch", "scipy", "numpy", "triton", "cupy", "matplotlib", "sklearn", "jinja2"}
COMMAND = "sys.argv = ['gpu-align']; from gpu_align._cli import main; main()"
RUN = """
def run(words):
    sys.argv = ["gpu-align", *words]
    from gpu_align._cli import main
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""


def test_import_loads_nothing() -> None:
    loaded = loaded_by("import gpu_align, gpu_align._errors")
    assert "gpu_align._errors" in loaded
    assert (HEAVY | {"typer", "rich", "gpu_align._cli"}).isdisjoint(loaded)


@pytest.mark.parametrize("name", ["GpuAlignError", "Status", "InputError"])
def test_a_name_loads_what_it_stands_on_only(name: str) -> None:
    loaded = loaded_by(f"from gpu_align import {name}")
    assert {module for module in loaded if module.startswith("gpu_align.")} <= {
        "gpu_align._errors",
        "gpu_align._status",
    }
    assert HEAVY.isdisjoint(loaded)


def test_everything_loads_neither_kernels_nor_pages() -> None:
    # torch itself may load some of these; only what gpu_align adds counts.
    loaded = loaded_by("from gpu_align import *", before="import torch, safetensors.torch")
    assert "gpu_align._align" in loaded
    assert (HEAVY - {"scipy", "numpy", "torch"} | {"typer", "rich"}).isdisjoint(loaded)


def test_the_help_needs_no_torch() -> None:
    asked = [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)]
    loaded = loaded_by(f"for words in {asked}:\n        run(words)", before=RUN)
    assert "gpu_align._cli._main" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_completion_needs_no_torch() -> None:
    words = {"COMP_WORDS": "gpu-align align --se", "COMP_CWORD": "2"}
    loaded = loaded_by(COMMAND, _GPU_ALIGN_COMPLETE="complete_bash", **words)
    assert "gpu_align._cli._main" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_public_names_are_complete_and_sorted() -> None:
    names = gpu_align.__all__
    assert set(names) <= set(dir(gpu_align))
    for name in names:
        assert getattr(gpu_align, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'algin'"):
        gpu_align.algin  # noqa: B018
    public = {
        name
        for name, value in vars(gpu_align).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    drawing = {"write_report", "write_zoo_report"}  # `import *` would load what draws
    assert set(names) == public - drawing

    def kind(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert names == sorted(names, key=kind)
    assert len(set(names)) == len(names)


def test_metadata_agrees_with_the_project() -> None:
    metadata = importlib.metadata.metadata("gpu-align")
    assert metadata["Name"] == PROJECT["project"]["name"]
    assert metadata["Version"] == PROJECT["project"]["version"]
    assert sys.version_info >= tuple(
        map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split("."))
    )


def test_the_citation_agrees_with_the_project() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = dict(re.findall(r'^([a-z-]+): "?(.+?)"?$', text, re.MULTILINE))
    project = PROJECT["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "type"} <= citation.keys()
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    (author,) = re.findall(r"^  - name: (.+)$", text, re.MULTILINE)
    assert author.removeprefix("The ") in (ROOT / "LICENSE").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for value in (citation["title"], citation["version"], f"{{{author}}}"):
        assert f"{{{value}}}" in readme
