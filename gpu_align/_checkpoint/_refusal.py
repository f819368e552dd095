"""Errors about files that cannot be read, and the checks that come before any reader."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpu_align._errors import CheckpointError, folded


def unreadable(path: Path, problem: str, remedy: str) -> CheckpointError:
    """Build the error for a checkpoint that cannot be read.

    Args:
        path: the file or folder.
        problem: expected and got.
        remedy: what to do.
    """
    return CheckpointError(f"cannot read {path}: {problem}; {remedy}")


def quoted(names: list[str], limit: int = 20) -> str:
    """Join names for a message, and count those beyond `limit`."""
    return folded([f'"{name}"' for name in names], limit)


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; a pipe or a device is refused, and not waited for.

    Raises:
        CheckpointError: it is not a regular file.
        OSError: it cannot be opened.
    """
    # Opened in the usual way, a pipe without a writer blocks for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise unreadable(
            path, "expected a file, got a pipe or a device", "copy the checkpoint to a file first"
        )
    return os.fdopen(descriptor, "rb")


@contextmanager
def opened_once(path: Path) -> Iterator[BufferedReader]:
    """Open a file whose content the body reads into memory, never to be looked at again.

    So what is written into the file later changes nothing.

    Args:
        path: an existing file.

    Raises:
        CheckpointError: the file was written to meanwhile, or is a pipe or a device.
    """
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        yield file
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise unreadable(
            path, "it was written to while it was read", "repeat this when the file is finished"
        )


def parse_json(path: Path, content: bytes, expected: str) -> Any:
    """Parse JSON from a file that nobody vouches for.

    Args:
        path: where it came from, for messages.
        content: the text, UTF-8.
        expected: what the text should be.

    Raises:
        CheckpointError: it is not JSON, names a key twice, or nests too deep.
    """
    try:
        return json.loads(content, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as failure:
        # Numbers of thousands of digits are a ValueError, and so is text that is not UTF-8.
        raise unreadable(
            path,
            f"expected {expected}, the parser says: {str(failure)[:200]}",
            "copy or download it again",
        ) from failure


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result
