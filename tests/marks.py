"""Marks of cases."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(values: Iterable[Any], but: Iterable[Any] = ()) -> list[Any]:
    """Return the values as cases; all but some are left to `make test-slow`."""
    kept = list(but)
    return [v if v in kept else pytest.param(v, marks=pytest.mark.slow) for v in values]
