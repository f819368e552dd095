"""What objects show of themselves: a line in a terminal, a table in a notebook."""

from abc import abstractmethod
from collections.abc import Mapping
from html import escape


class Shown:
    """Something whose `repr` is a line, however large it is."""

    @abstractmethod
    def _facts(self) -> dict[str, str]:
        """Return what it is in few words, by name."""

    def _rows(self) -> dict[str, str]:
        """Return the rows of the table: name -> words."""
        return self._facts()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._facts().values())})"

    def _repr_html_(self) -> str:
        return html_table(repr(self), self._rows())


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
