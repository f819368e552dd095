"""Processes that a test starts: none is waited for without end, and none outlives its test."""

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

WAIT = 60.0
"""Seconds after which a child is killed; whoever waits for it or for its words goes on."""


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and kill it at the end or after `WAIT`; options are those of Popen."""
    process = subprocess.Popen(command, text=True, **options)
    timer = threading.Timer(WAIT, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
