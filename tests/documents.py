"""The code blocks of README.md and of the pages, as a reader would type them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "sh", "text", "bibtex"}
"""Blocks of `text` and `bibtex` are not run."""


@dataclass(frozen=True)
class Block:
    """Some code of a page.

    Attributes:
        language: what follows the fence.
        title: name of the file that the block is, "" for code to be run.
        code: what stands in it.
        place: file and line, for messages.
    """

    language: str
    title: str
    code: str
    place: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        language, title, code = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        yield Block(language, title or "", code, f"{page.relative_to(ROOT)}:{line}")


def run(page: Path) -> None:
    """Run the Python and shell blocks of a page in order, in the present folder.

    Blocks of Python share their names; one with a title is written to a file of that name.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
        elif block.language == "sh":
            _run_shell(block)


def _run_shell(block: Block) -> None:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        env=os.environ | {"PATH": programs, "GPU_ALIGN_CLONE": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block.place}:\n{done.stdout}\n{done.stderr}"
