"""Results and pages for the tests of the report."""

import copy
import functools
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, ClassVar

import torch
from torch import nn

from gpu_align import AlignmentProblem, AlignmentResult, Budget, align, chain_spec
from gpu_align._report import beam_width_study

FIGURES = (
    "Distance by step",
    "Improvement by group",
    "Costs in group",
    "Width of the beam",
    "Groups over the network",
)


class Page(HTMLParser):
    """Reads a page into headings, tables, checks, pictures and plain text."""

    VOID: ClassVar = {"meta", "img", "br", "link", "input"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.headings, self.answers = "", [], []
        self.terms: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.marked: list[int] = []
        self._title, self._term = "", ""
        self.feed(page)
        self.close()
        assert self.open == [], "a tag is left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        elif tag == "table":
            self._title = self.headings[-1]
            self.tables[self._title] = []
        elif tag == "tr":
            if dict(attrs).get("class") == "best":
                self.marked.append(len(self.tables[self._title]) - 1)
            self.tables[self._title].append([])
        elif tag in ("th", "td"):
            self.tables[self._title][-1].append("")
        elif tag == "dt":
            self._term = ""
        elif tag == "li":
            self.answers.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        inside = set(self.open)
        if "style" in inside:
            return
        self.text += data
        if inside & {"h1", "h2", "h3"}:
            self.headings[-1] += data
        elif "table" in inside and inside & {"th", "td"}:
            self.tables[self._title][-1][-1] += data
        elif "dt" in inside:
            self._term += data
        elif "dd" in inside:
            self.terms[self._term] = self.terms.get(self._term, "") + data
        elif "li" in inside:
            self.answers[-1] += data

    def rows(self, title: str) -> list[dict[str, str]]:
        head, *rows = self.tables[title]
        return [dict(zip(head, row, strict=True)) for row in rows]

    def figures(self) -> list[str]:
        pictures = sum(tag == "figure" for tag, _ in self.tags)
        found = [h for h in self.headings if h.startswith(FIGURES) and "numbers" not in h]
        assert len(found) == pictures
        return found


def parsed(text: str) -> float:
    """Return the number that a text of the page shows."""
    plain = text.replace("−", "-").replace("\u202f", "").strip()
    digits = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    if match := re.fullmatch(r"(-?[\d.]+)×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", plain):
        return float(f"{match[1]}e{match[2].translate(digits)}")
    return float(plain.removesuffix("%"))


def mlp(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def result() -> dict[str, Any]:
    """Return the JSON form of a result with all that a page can show."""
    return copy.deepcopy(_result())


@functools.cache
def found() -> AlignmentResult:
    """Return a result as `align` does."""
    networks = [mlp(seed, 6, 12, 9, 4) for seed in (0, 1)]
    spec = chain_spec(networks[0].state_dict())
    torch.manual_seed(2)
    inputs = torch.randn(3, 6)
    result = align(*networks, spec=spec, example_inputs=inputs, budget=Budget(steps=25))
    problem = AlignmentProblem(*(net.state_dict() for net in networks), spec)
    return replace(result, studies={"beam_width": beam_width_study(problem, (1, 2, 4))})


@functools.cache
def _result() -> dict[str, Any]:
    data = json.loads(json.dumps(found().to_json()))
    data["studies"] |= {
        "comparison": [
            {"search": "first", "distance": 12.5, "accuracy_after": 0.8125, "seconds": 0.5},
            {"search": "second", "distance": 12.25, "accuracy_after": 0.95, "seconds": 2.0},
            {"search": "third", "distance": 12.5, "gap_percent": 7.0, "seconds": None},
        ],
    }
    return data


def group(name: str, before: float = 10.0, after: float = 5.0, gap: float = 0.0) -> dict[str, Any]:
    """Return the JSON form of a `GroupReport`."""
    return {
        "name": name,
        "units": 8,
        "inside": [],
        "moved": 7,
        "distance_before": before,
        "distance_after": after,
        "primal": 4.0 - gap,
        "dual": 4.0,
        "gap": gap,
    }
