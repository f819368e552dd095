"""Ctrl-C and SIGTERM: what must not be cut in two, and how the command line takes them.

Nothing heavy is imported here: the command takes signals before it imports the rest.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_SAME = 0.3
"""Seconds within which a second signal is the first one again, forwarded by a wrapper."""

_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def uninterrupted(*, deliver: bool = True) -> Iterator[None]:
    """Hold back the interruptions that Python would raise while the body runs.

    Args:
        deliver: whether they arrive right after the body; if not, they are dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread is interrupted
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, lambda number, frame: held.append(number))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    if deliver and held:
        ours[signal.Signals(held[0])](held[0], None)


def take_signals() -> None:
    """Let the first Ctrl-C or SIGTERM raise KeyboardInterrupt, and the second one quit at once.

    Python runs handlers between two of its own instructions, and a product of large matrices is
    one of them. So a thread of its own waits for the second signal.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="gpu-align-signals", daemon=True).start()


@contextmanager
def quitting_at_once() -> Iterator[None]:
    """Let the first signal quit, if it is taken, while the body imports libraries.

    Nothing is lost by that, and some would take a KeyboardInterrupt for a failure of their own.
    """
    taken = [number for number in SIGNALS if signal.getsignal(number) is _interrupt]
    for number in taken:
        signal.signal(number, _quit)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, _interrupt)


def _watch(reader: int) -> None:
    first: float | None = None
    while number := os.read(reader, 1):
        if number[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is not None and now > first + _SAME:
            _quit(number[0], None)
        first = first or now


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _quit(number: int, frame: FrameType | None) -> NoReturn:
    try:
        # The progress line may have hidden the cursor.
        os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"interrupted\n")
    finally:
        os._exit(1)
