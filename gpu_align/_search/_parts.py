"""Parts of a batch that stay in the cache of a core, side by side on the threads of the host."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch

from gpu_align._assignment import thread_count

PART_ENTRIES = 2**17
"""Entries of the largest tensor of a part, of which a step makes several copies.

Products of 32 x 32 matrices, 0.5 MiB at a time instead of 30: a third of the time. What is larger
falls out of the cache, and its memory is given back to the system and fetched again each time.
"""

_ALIGNED = 16
"""Parts hold a multiple of so many hypotheses, so that each begins at a line of the cache.

A library may round a product by where its matrices lie, and by whether there is more than one.
"""


def parts_of(count: int, entries: int, most: int = PART_ENTRIES) -> list[slice]:
    """Cut hypotheses into parts, none of which is of a single one.

    Args:
        count: hypotheses.
        entries: of the largest tensor of each.
        most: entries of a part, where they allow several hypotheses.
    """
    step = max(most // max(entries, 1) // _ALIGNED, 1) * _ALIGNED
    starts = list(range(0, max(count - 1, 1), step))
    return [slice(*ends) for ends in zip(starts, [*starts[1:], count], strict=True)]


def for_each_part(
    parts: Sequence[slice], do: Callable[[slice], None], beat: Callable[[str], None]
) -> None:
    """Do something for each part, on as many threads as this process may use.

    Torch is held to one thread meanwhile, so a part is computed alike on whichever it is.

    Args:
        parts: of a batch.
        do: what is done; it writes to its own part only.
        beat: told how many are done. If it raises, no further part is begun.
    """
    workers = min(thread_count(None), len(parts))
    if workers == 1:
        for number, part in enumerate(parts):
            do(part)
            beat(f"part {number + 1} of {len(parts)}")
        return
    inference = torch.is_inference_mode_enabled()

    def inside(part: slice) -> None:
        with torch.inference_mode(inference):  # which is a thread's own
            do(part)

    futures = [_pool(workers, os.getpid()).submit(inside, part) for part in parts]
    try:
        for number, future in enumerate(futures):
            future.result()
            beat(f"part {number + 1} of {len(parts)}")
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@lru_cache(maxsize=8)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Keep one pool for each thread count; a forked `process` has none of its parent's threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix="gpu-align-parts")
