"""Tables for notebooks: what an object is, in a few lines."""

from collections.abc import Mapping
from html import escape


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return a heading and a table of names and values as HTML, all of it escaped."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    return f"<div><strong>{escape(title)}</strong><table>{cells}</table></div>"


def counted(number: int, what: str) -> str:
    """Return "1 group", "2 groups"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
