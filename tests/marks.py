"""Marks of cases."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(values: Iterable[Any], but: Iterable[Any] = ()) -> list[Any]:
    """Return the values as cases; all but some are left to `make test-slow`."""
    kept = list(but)
    return [v if v in kept else pytest.param(v, marks=pytest.mark.slow) for v in values]


def each_once(first: Iterable[str], second: Iterable[str]) -> list[Any]:
    """Return all pairs of names as cases; `make test` takes as few as show every name."""
    first, second = list(first), list(second)
    kept = {
        (first[index % len(first)], second[index % len(second)])
        for index in range(max(len(first), len(second)))
    }
    pairs = [(a, b) for a in first for b in second]
    return [p if p in kept else pytest.param(*p, marks=pytest.mark.slow) for p in pairs]
