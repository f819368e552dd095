"""What mkdocs calls: tables and references for the pages, and files of the repository as pages.

A line `<!-- table: NAME -->` stands for a table of recorded figures, `<!-- commands -->` for the
reference of the command line, `<!-- gallery -->` for the architectures, `<!-- names -->` for the
public names. Links go to files of the repository, so that pages can be read there too; here they
are turned to places on the site.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs imports this file by its path

from docs.generate import benchmark, commands, gallery, names, notebooks, tables  # noqa: E402

BESIDE = {
    "bench.md": "bench/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "kernels.md": "kernels/README.md",
}
"""Pages that are files of the repository."""

_PLACE = re.compile(r"^<!-- (\w+)(?:: (\w+))? -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([\w./-]+)((?:#[\w-]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages above and those of the notebooks, recorded runs and their drawings."""
    for name in notebooks.TITLES:
        page = f"notebooks/{name}.md"
        files.append(File.generated(config, page, content=notebooks.page(name)))
    for page, name in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for path in (*sorted(tables.RESULTS.glob("*")), ROOT / "bench/instances/records.json"):
        if path.suffix in (".json", ".png"):
            name = f"figures/{path.name}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace what stands for a table or a reference, and turn links to where files are."""
    uri = page.file.src_uri
    here = posixpath.dirname(BESIDE.get(uri, f"docs/{uri}"))

    def turned(link: re.Match[str]) -> str:
        before, target, after = link.groups()
        place = _on_site(posixpath.normpath(posixpath.join(here, target)))
        return f"{before}{posixpath.relpath(place, posixpath.dirname(uri) or '.')}{after}"

    return _PLACE.sub(_made, _LINK.sub(turned, markdown))


def _on_site(path: str) -> str:
    """Return where a file of the repository is on the site."""
    if path.startswith("bench/results/"):
        return f"figures/{posixpath.basename(path)}"
    pages = {name: page for page, name in BESIDE.items()} | {"README.md": "index.md"}
    notebooks_as_pages = re.sub(r"^(docs/notebooks/\w+)\.ipynb$", r"\1.md", path)
    return pages.get(path, notebooks_as_pages.removeprefix("docs/"))


def _made(place: re.Match[str]) -> str:
    kind, name = place.groups()
    match kind:
        case "table":
            return _table(name)
        case "commands":
            return commands.reference()
        case "names":
            return names.index()
        case "gallery":
            return gallery.page()
    return place.group()


def _table(name: str) -> str:
    """Return a table; of a run that has not been recorded, a sentence that says so."""
    try:
        return (tables.TABLES | benchmark.TABLES)[name]()
    except FileNotFoundError as missing:
        return f"*Not yet measured: there is no `{Path(missing.filename).name}`.*"
