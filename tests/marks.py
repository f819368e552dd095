"""Marks of cases."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def slow(values: Iterable[Any], but: Iterable[Any] = ()) -> list[Any]:
    """Return the values as cases; all but some are left to `make test-slow`."""
    kept = list(but)
    return [v if v in kept else pytest.param(v, marks=pytest.mark.slow) for v in values]


def every(step: int, cases: Mapping[str, Any]) -> list[Any]:
    """Return the cases of a long table under their names; `make test` takes one of so many."""
    return [
        pytest.param(case, id=name, marks=pytest.mark.slow if number % step else ())
        for number, (name, case) in enumerate(cases.items())
    ]


def each_once(
    first: Iterable[Any], second: Iterable[Any], but: Iterable[Any] | None = None
) -> list[Any]:
    """Return all pairs as cases; `make test` takes as few as show every value.

    With `but` it takes these of the second values only.
    """
    first, second = list(first), list(second)
    shown = second if but is None else list(but)
    kept = {
        (first[index % len(first)], shown[index % len(shown)])
        for index in range(max(len(first), len(shown)))
    }
    pairs = [(a, b) for a in first for b in second]
    return [p if p in kept else pytest.param(*p, marks=pytest.mark.slow) for p in pairs]
