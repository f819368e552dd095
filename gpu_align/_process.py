"""What belongs to the whole process, and how threads of the caller share it."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

MODULES = threading.RLock()
"""Held while modules are traced or run, and while the filters of warnings are changed.

Tracing is for one thread at a time, and a module that runs has other parameters for that time.
"""


@contextmanager
def full_precision() -> Iterator[None]:
    """Leave the caller's autocast, in which products would have the bits of bfloat16."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class _TorchThreads:
    """The number of threads of torch: the same for all who compute at one time.

    Those who want the same number compute side by side; the others wait, for it decides how sums
    are rounded.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = 0
        self._single = False
        self._usual = 1
        self._own = threading.local()

    @contextmanager
    def held(self, *, single: bool) -> Iterator[None]:
        """Compute on one thread or on the usual number; within another such body, as that does."""
        if getattr(self._own, "holds", False):
            yield
            return
        self._take(single=single)
        self._own.holds = True
        try:
            yield
        finally:
            self._own.holds = False
            self._give_back()

    def _take(self, *, single: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._holders == 0 or self._single == single)
            if self._holders == 0:
                self._usual = torch.get_num_threads()
            self._holders += 1
            self._single = single
            # A thread begins with the number that another one has set last.
            torch.set_num_threads(1 if single else self._usual)

    def _give_back(self) -> None:
        with self._changed:
            torch.set_num_threads(self._usual)
            self._holders -= 1
            if self._holders and self._single:
                # MKL's number is that of the process; torch's, which is that of a thread, stays.
                other = threading.Thread(target=torch.set_num_threads, args=(1,))
                other.start()
                other.join()
            self._changed.notify_all()


torch_threads = _TorchThreads()
