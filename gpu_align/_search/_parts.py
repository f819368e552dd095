"""Parts of a batch that stay in the cache of a core, side by side on the threads of the host."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

from gpu_align._assignment import at_most_threads, thread_count

T = TypeVar("T")

PART_ENTRIES = 2**18
"""Entries of the largest tensor of a part, of which a step makes several copies.

Products of 32 x 32 matrices, 0.5 MiB at a time instead of 30: a third of the time, and 1 MiB at a
time some hundredths less. What is larger falls out of the cache, and its memory is given back to
the system and fetched again each time.
"""

_ALIGNED = 16
"""Parts hold a multiple of so many hypotheses, so that each begins at a line of the cache.

A library may round a product by where its matrices lie, and by whether there is more than one.
"""


def parts_of(
    count: int, entries: int, workers: int, most_entries: int = PART_ENTRIES
) -> list[slice]:
    """Cut hypotheses into parts, none of which is of a single one.

    Each worker gets as many as the others, but for parts of less than half of what one may hold:
    in those the threads wait for each other between operations of a few microseconds.

    Args:
        count: hypotheses.
        entries: of the largest tensor of each.
        workers: at least 1.
        most_entries: of a part, where they allow several hypotheses.
    """
    most, least = (
        max(most_entries // share // max(entries, 1) // _ALIGNED, 1) * _ALIGNED for share in (1, 2)
    )
    rounds = -(-count // (most * workers))
    even = -(-count // (rounds * workers * _ALIGNED)) * _ALIGNED if rounds else most
    step = min(max(even, least), most)
    starts = list(range(0, max(count - 1, 1), step))
    return [slice(*ends) for ends in zip(starts, [*starts[1:], count], strict=True)]


def for_each_part(
    parts: Sequence[slice], do: Callable[[slice], T], beat: Callable[[str], None]
) -> list[T]:
    """Do something for each part, on as many threads as this process may use.

    Torch is held to one thread meanwhile, so a part is computed alike on whichever it is, and
    solvers of assignments use no others.

    Args:
        parts: of a batch.
        do: what is done; it writes to its own part only.
        beat: told how many are done. If it raises, no further part is begun.

    Returns:
        What was done for each part.
    """
    workers, done = min(thread_count(None), len(parts)), []
    if workers == 1:
        for number, part in enumerate(parts):
            done.append(do(part))
            beat(f"part {number + 1} of {len(parts)}")
        return done
    inference = torch.is_inference_mode_enabled()

    def inside(part: slice) -> T:
        with torch.inference_mode(inference), at_most_threads(1):  # which are a thread's own
            return do(part)

    futures = [_pool(workers, os.getpid()).submit(inside, part) for part in parts]
    try:
        for number, future in enumerate(futures):
            done.append(future.result())
            beat(f"part {number + 1} of {len(parts)}")
    finally:
        for future in futures:
            future.cancel()
        wait(futures)
    return done


@lru_cache(maxsize=8)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Keep one pool for each thread count; a forked `process` has none of its parent's threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix="gpu-align-parts")
