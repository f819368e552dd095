"""The index of the Python reference, from the pages that describe the names."""

import re
from pathlib import Path

API = Path(__file__).parents[1] / "api"


def index() -> str:
    """Return a table of all pages of the reference and the names on them."""
    rows = []
    for page in sorted(API.glob("*.md"), key=lambda page: (page.stem == "learn", page.stem)):
        text = page.read_text(encoding="utf-8")
        names = re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE)
        title = text.partition("\n")[0].removeprefix("# ")
        if names:
            links = ", ".join(f"`{name}`" for name in names)
            rows.append(f"| [{title}]({page.name}) | {links} |")
    return "\n".join(["| | |", "|---|---|", *rows])
