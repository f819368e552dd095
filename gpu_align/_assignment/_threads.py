"""Spread the problems of a batch over threads; the solvers release the GIL while they work."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_align._assignment._batch import CostBatch, identity_matching
from gpu_align._errors import InputError

# Measured: below this many rows for each thread, the threads wait for the GIL longer than they
# compute (2000 problems, two threads: n = 8 takes twice the time of one thread, n = 16 the same,
# n = 24 0.8 times).
_ROWS_PER_THREAD = 12


def check_threads(threads: int | None) -> None:
    """Raise InputError unless `threads` is None or at least 1."""
    if threads is not None and threads < 1:
        raise InputError(
            f"threads: expected at least 1, or None for every usable CPU; got {threads}."
        )


@contextmanager
def at_most_threads(threads: int) -> Iterator[None]:
    """Let solvers that are not told otherwise use at most so many threads within the body.

    For processes and threads of which there is one for each CPU; others are not concerned.
    """
    check_threads(threads)
    before = _limit.set(threads)
    try:
        yield
    finally:
        _limit.reset(before)


_limit: ContextVar[int | None] = ContextVar("limit", default=None)


def thread_count(threads: int | None) -> int:
    """Return `threads`, or where that is None the number of CPUs this process may use."""
    if threads is not None:
        return threads
    if (limit := _limit.get()) is not None:
        return limit
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def solve_each(
    costs: CostBatch, match: Callable[[NDArray[Any]], NDArray[Any]], threads: int
) -> tuple[NDArray[np.int64], int]:
    """Match each finite problem by its own call of `match`.

    Args:
        costs: the batch.
        match: takes one cost matrix [m, m] to be minimised and returns the column of each row.
        threads: at most this many; fewer are used for small problems.

    Returns:
        The matchings [b, n], the identity where there is nothing to solve, and the number of
        threads used.
    """
    batch, n = costs.cost.shape[:2]
    col_ind = identity_matching(batch, n)
    todo = np.flatnonzero(costs.solvable)

    def solve_some(indices: NDArray[np.int64]) -> None:
        for i in indices.tolist():
            size = sizes[i]
            col_ind[i, :size] = match(costs.cost[i, :size, :size])

    sizes = costs.sizes.tolist()
    workers = max(1, min(threads, len(todo), n // _ROWS_PER_THREAD))
    if workers == 1:
        solve_some(todo)
    else:
        # Four shares for each thread even out problems of unequal difficulty.
        shares = np.array_split(todo, min(len(todo), 4 * workers))
        list(_pool(workers, os.getpid()).map(solve_some, shares))
    return col_ind, workers


@lru_cache(maxsize=8)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Keep one pool for each thread count; a forked `process` has none of its parent's threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix="gpu-align-assignment")
