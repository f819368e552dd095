"""Processes that a test starts: none is waited for without end, and none outlives its test."""

import multiprocessing
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from typing import Any

WAIT = 60.0
"""Seconds after which a child is killed; whoever waits for it or for its words goes on."""


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and kill it at the end or after `WAIT`; options are those of Popen."""
    process = subprocess.Popen(command, text=True, **options)
    try:
        with _killed_in_time(process):
            yield process
    finally:
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def forked(body: Callable[..., object], *arguments: object) -> Iterator[ForkProcess]:
    """Call a function in a copy of this process, which has imported everything already.

    Its exit code is 0 where the function returns, 1 where it raises. It is killed at the end or
    after `WAIT`.
    """
    with warnings.catch_warnings():
        # What watches the time of a test is a thread, which the copy does without.
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=body, args=arguments)
        process.start()
    try:
        with _killed_in_time(process):
            yield process
    finally:
        process.join()


def exit_code_of(body: Callable[..., object], *arguments: object) -> int | None:
    """Return the exit code of a function in a copy of this process."""
    with forked(body, *arguments) as process:
        process.join()
        return process.exitcode


@contextmanager
def _killed_in_time(process: subprocess.Popen[str] | ForkProcess) -> Iterator[None]:
    timer = threading.Timer(WAIT, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()
