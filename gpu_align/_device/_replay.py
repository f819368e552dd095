"""Running one function again and again: on a CUDA device as a graph, without its launches."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from gpu_align._errors import GpuAlignError

_EAGER_CALLS = 2  # before the capture: kernels are compiled and libraries set up


class Replay:
    """Calls a function that works in place on tensors which stay where they are.

    On a CUDA device the third call captures it as a CUDA graph, and from then on the graph is
    replayed: where launches take longer than what they launch, that is most of the time. The
    function must not wait for the device, and what it depends on besides its tensors must not
    change.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function, self._device = function, device
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the function once more on the current stream.

        Raises:
            GpuAlignError: the function cannot be captured. The device's memory pool may be left
                in the capture, so nothing should be computed there after it.
        """
        self._calls += 1
        if self._device.type == "cuda" and self._calls == _EAGER_CALLS + 1:
            self._graph = self._captured()
        if self._graph is None:
            self._function()
        else:
            self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), _capture_stream(self._device)
        current = torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream), _no_garbage_collection():
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._function()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            raise GpuAlignError(
                f"a step could not be captured as a CUDA graph on {self._device}: {error}. Another "
                "thread may be using the device; run alone, or use device 'cpu'"
            ) from error
        current.wait_stream(stream)
        return graph


@lru_cache(maxsize=16)
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of a device that captures: each takes a workspace of cuBLAS's own."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Leave garbage where it is: to free another graph on the way would invalidate a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
