"""The notebooks: run, kept with their outputs, and shown as pages.

    python -m docs.generate.notebooks [NAME ...]

Runs `docs/notebooks/*.py` (jupytext's percent format) and writes the notebooks beside them. Needs
`pip install 'gpu-align[notebooks]'`.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
TITLES = {
    "first_alignment": "A first alignment",
    "merging_with_data": "Merging with data",
    "inside_a_transformer": "Inside a transformer's symmetries",
    "a_zoo_of_inrs": "A zoo of INRs",
    "searches_compared": "Searches compared",
}
COLAB = "https://colab.research.google.com/"
_SECONDS = 600  # of a cell, at most


def executed(name: str) -> Any:
    """Return a notebook with its outputs."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    client = NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3")
    client.coalesce_streams = True
    client.execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same in every run
        cell.metadata = {}
    return notebook


def main() -> None:
    """Run the notebooks that are named, or all."""
    import nbformat

    for name in sys.argv[1:] or TITLES:
        nbformat.write(executed(name), FOLDER / f"{name}.ipynb")
        print(FOLDER / f"{name}.ipynb")


def colab(name: str) -> str:
    """Return where a notebook is opened in Colab: at once if the repository has an address."""
    repository = os.environ.get("GPU_ALIGN_REPOSITORY", "").removeprefix("https://github.com/")
    return (
        f"{COLAB}github/{repository}/blob/main/docs/notebooks/{name}.ipynb" if repository else COLAB
    )


def page(name: str) -> str:
    """Return a notebook in Markdown, with its outputs."""
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    notebook = f'<a href="{name}.ipynb" download>Notebook</a>'
    links = f"{notebook} · [Open in Colab]({colab(name)})"
    first, *rest = [part for cell in cells for part in _cell(cell)]
    return "\n\n".join([first, links, *rest])


def _cell(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            png = "".join(data["image/png"]).replace("\n", "")
            yield f'<img alt="figure" src="data:image/png;base64,{png}">'
        elif output["output_type"] == "stream":
            yield f"```text\n{''.join(output['text']).rstrip()}\n```"


if __name__ == "__main__":
    main()
