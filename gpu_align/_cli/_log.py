"""`--log`: what a command does and says, line by line with the time, in a file."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TextIO

from gpu_align._errors import InputError

SUFFIXES = (".log", ".txt")

_FILE: ContextVar[TextIO | None] = ContextVar("log", default=None)


@contextmanager
def logging_to(path: Path | None, others: Iterable[object] = ()) -> Iterator[None]:
    """Append to a file what is noted within the body; None for no file.

    Args:
        path: the file.
        others: among them the paths that the command reads and writes.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        yield
        return
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot write the log {path}: call it .log or .txt")
    for other in others:
        if isinstance(other, Path) and os.path.realpath(other) == os.path.realpath(path):
            raise InputError(f"cannot write the log {path}: the command has another use for it")
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write the log {path}: it is no file; choose another path")
    try:
        file = open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"cannot write the log {path}: {error.strerror}; choose another path"
        ) from error
    token = _FILE.set(file)
    try:
        yield
    finally:
        _FILE.reset(token)
        file.close()


def note(text: str) -> None:
    """Write a line to the log, if there is one; a full disk ends the log and nothing else."""
    file = _FILE.get()
    if file is None:
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        file.write(f"{stamp} {text}\n")
    except OSError:
        _FILE.set(None)
