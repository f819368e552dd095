"""Repeated timings as a row of results keeps them."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the median, the 20 % and the 80 % quantile, and how many there were."""
    some = milliseconds if len(milliseconds) > 1 else milliseconds * 2
    low, *_, high = statistics.quantiles(some, n=5, method="inclusive")
    found = {"median": statistics.median(milliseconds), "q20": low, "q80": high}
    return found | {"repetitions": len(milliseconds)}


def synchronize() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def settle() -> None:
    """Let the threads of the libraries before go to sleep: for a while they wait by spinning."""
    time.sleep(0.5)


def wall_clock(run: Callable[[], object], seconds: float = 0.4) -> dict[str, float]:
    """Time synchronised runs, in milliseconds: for `seconds`, and 3 to 20 times.

    A run of more than a second is timed once. What has to be compiled or warmed up is so already.
    """
    times: list[float] = []
    while len(times) < 20 and (sum(times) < 1e3 * seconds or len(times) < 3):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        times.append(1e3 * (time.perf_counter() - started))
        if times[0] > 1e3:
            break
    return quantiles(times)
